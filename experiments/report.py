"""Write the tables of the results again, from the files that the runs left behind.

Reads these files in --results, if they exist: <run>/command.txt, <run>/<training>/{config.json,log.jsonl} and
<run>/scores/<split>/<row>/scores.json, all as reproduce.py writes them, and experiments/<experiment>.json.
Writes there: README.md.

For this repository's own results, the tables in README.md and docs/*.md are written too: each text between
``<!-- table: NAME -->`` and ``<!-- end -->`` becomes the table of that name. The names are
<run>/<split>/paper, <run>/<split>/strict, <run>/trainings, <runs>/<split>/seeds, paper/<data set> (the paper's Tables 2
and 4, or 3, and ours), experiments/<experiment>, labels (the ids of every label set) and all_labels (scores of their
parsers). Runs whose names differ only in a suffix -seedN are one training with several seeds.
"""

import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from itertools import zip_longest
from operator import itemgetter
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import reproduce
from data.labels import LABEL_SETS, NINE
from data.listing import SPLITS
from experiments.common import Result
from scoring.metrics import Scores, headline
from scoring.published import OURS, PAPER, published_rows
from utils import files
from utils.cli import Parser
from utils.errors import InputError
from utils.runtime import run_main
from utils.tables import markdown

HOME = Path(__file__).resolve().parent.parent
TITLES = (*reproduce.ROWS, "STN-iCNN, with mirroring")  # rows in the order of the tables; others follow them
EXPERIMENTS = (
    *("hidden_parts", "coarse_size", "robustness", "kinds"),
    *("scenes", "helen68", "class_imbalance", "ablation"),
)
CHALLENGE = {"miou": "mIoU", "mean_f1_18": "F1 of 18", "mean_f1_inner8": "F1 of inner 8"}  # in scores.json -> title
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


class Training(NamedTuple):
    """What a training left: its config.json, and its log, one row for each epoch."""

    config: Result
    log: list[Result]


class Run(NamedTuple):
    """One run folder. scores: split -> row's title -> scores.json. command: what was typed, or empty."""

    name: str
    stages: dict[str, Training]
    scores: dict[str, dict[str, Scores]]
    command: str

    @property
    def dataset(self) -> str | None:
        names = [stage.config["dataset"] for stage in self.stages.values()]
        names += [row["dataset"] for rows in self.scores.values() for row in rows.values()]
        return names[0] if names else None


def main(argv: list[str] | None = None) -> int:
    cli = Parser(__doc__)
    what = "folder of the runs, into which the report is written"
    cli.add_argument("--results", type=Path, default=HOME / "results", metavar="DIR", help=what)
    args = cli.parse_args(argv)
    if not os.path.isdir(args.results):
        raise InputError(f"--results {args.results} is not a folder: choose the one that holds the runs")
    own = args.results.resolve() == HOME / "results"
    texts = report(args.results, [HOME / "README.md", *sorted((HOME / "docs").glob("*.md"))] if own else [])
    for path, text in texts.items():
        files.write_text(path, text)
    print(f"written: {', '.join(map(str, texts))}")
    return 0


def report(results: Path, documents: Sequence[Path] = ()) -> dict[Path, str]:
    """What the report writes: file -> text, of README.md in the folder ``results`` and of those documents (Markdown
    files) whose marked tables change.

    Each experiment and table has one place: README.md leaves out those that a document shows. Raises InputError where
    there are no results, for damaged files, and for a mark that names no table.
    """
    runs = [run for folder in sorted(results.iterdir()) if folder.is_dir() and (run := read_run(folder))]
    tables: dict[str, str] = {}
    for name in EXPERIMENTS:
        path = results / "experiments" / f"{name}.json"
        if path.exists():
            table = import_module(f"experiments.{name}").table
            tables[f"experiments/{name}"] = table(files.read_json(path, "results"))
    if not runs and not tables:
        raise InputError(f"--results {results} holds neither runs nor experiments")
    for run in runs:
        try:
            tables |= tables_of(run)
        except KeyError as error:
            raise InputError(
                f"{results / run.name}: a file of this run lacks {error}: run it again, or remove it"
            ) from error
    texts = {path: files.read_text(path) for path in documents}
    shown = {name for text in texts.values() for _, name, _ in MARKED.findall(text)}
    shown |= {name for text in texts.values() for name in re.findall(r"(experiments/\w+)\.json\)", text)}
    tables |= shared_tables(runs)
    made = {path: new for path, text in texts.items() if (new := with_tables(text, tables, path)) != text}
    listed = {name: table for name, table in tables.items() if name not in shown}
    made[results / "README.md"] = overview(runs, listed, sorted(results.glob("*/benchmark.md")))
    return made


def shared_tables(runs: list[Run]) -> dict[str, str]:
    """The tables of several runs, or of none, by their names, in Markdown."""
    sets: dict[tuple[str, ...], list[str]] = {}
    for name, labels in LABEL_SETS.items():
        sets.setdefault(labels.names, []).append(name)
    ids = [[i, *names] for i, names in enumerate(zip_longest(*sets))]
    tables = {"labels": markdown(["id", *map(", ".join, sets.values())], ids), "all_labels": all_labels(runs)}
    tables |= {f"paper/{dataset}": beside_the_paper(runs, dataset) for dataset in PAPER}
    for name, group in by_seed(runs).items():
        for split in SPLITS if len(group) > 1 else ():
            scores = [run.scores.get(split, {}) for run in group]
            titles = [title for title in scores[0] if all(title in other for other in scores)]
            rows = [[title, *spread([each[title] for each in scores])] for title in titles]
            header = [f"{len(group)} seeds, {split} split: mean ± standard deviation", "overall", "strict mean"]
            tables |= {f"{name}/{split}/seeds": markdown(header, rows)} if rows else {}
    return tables


def all_labels(runs: list[Run]) -> str:
    """Parsers of CelebAMask-HQ's 19 labels: the means of the challenge."""
    splits, rows = ("val", "test"), []
    for run in runs:
        for title in dict.fromkeys(title for scores in run.scores.values() for title in scores):
            each = [run.scores.get(split, {}).get(title, {}) for split in splits]
            cells = [scores.get(name) for scores in each for name in CHALLENGE]
            rows += [[title, *cells]] if any("mean_f1_18" in scores for scores in each) else []
    return markdown(["", *(f"{split}, {name}" for split in splits for name in CHALLENGE.values())], rows)


def tables_of(run: Run) -> dict[str, str]:
    """The tables of one run by their names, in Markdown."""
    tables = {f"{run.name}/trainings": trainings(run)} if run.stages else {}
    for split, rows in run.scores.items():
        for measure in ("paper", "strict"):
            columns = list(next(iter(rows.values()))[measure])
            if columns:  # label sets without the paper's groups have none
                lines = [[title, *map(scores[measure].get, columns)] for title, scores in rows.items()]
                tables[f"{run.name}/{split}/{measure}"] = markdown([f"F1, {measure}", *columns], lines)
    return tables


def with_tables(text: str, tables: dict[str, str], path: Path) -> str:
    """The text with its marked tables as they are now. Raises InputError for a mark that names no table.

    path: the text's file, for the message.
    """
    if unknown := {name for _, name, _ in MARKED.findall(text)} - tables.keys():
        raise InputError(
            f"{path}: no results for the tables {', '.join(sorted(unknown))}: there are {', '.join(sorted(tables))}"
        )
    return MARKED.sub(lambda match: f"{match[1]}{tables[match[2]]}{match[3]}", text)


def read_run(folder: Path) -> Run | None:
    """A run folder; None for one without stages and scores. Raises InputError for damaged files."""
    stages = {}
    others = sorted(path.parent.name for path in folder.glob("*/log.jsonl") if path.parent.name not in reproduce.STAGES)
    for stage in (*reproduce.STAGES, *others):
        config, log = folder / stage / "config.json", folder / stage / "log.jsonl"
        if config.exists() and log.exists():
            rows = files.read_json_lines(log, "log")
            if rows and rows[0]["epoch"] == 0 and "loss" in rows[0]:  # older logs count from 0, others score the start
                rows = [{**row, "epoch": row["epoch"] + 1} for row in rows]
            stages[stage] = Training(files.read_json(config, "config"), rows)
    scores = {}
    titles = {reproduce.slug(title): title for title in TITLES}
    for split in SPLITS:
        found = {path.parent.name: path for path in sorted((folder / "scores" / split).glob("*/scores.json"))}
        order = [name for name in titles if name in found] + [name for name in found if name not in titles]
        if order:
            read = {name: files.read_json(found[name], "scores") for name in order}
            scores[split] = {titles.get(name, name.replace("_", " ")): values for name, values in read.items()}
    command = folder / "command.txt"
    if not stages and not scores:
        return None
    return Run(folder.name, stages, scores, files.read_text(command).strip() if command.exists() else "")


def by_seed(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs by their names without the suffix -seedN, in the order of their names."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(re.sub(r"-seed\d+$", "", run.name), []).append(run)
    return groups


def spread(rows: list[Scores]) -> list[object]:
    """Both headline scores; of several seeds as mean ± standard deviation (over n - 1)."""
    cells: list[object] = []
    for which in ("overall", "strict"):
        values = [value for row in rows if (value := headline(row)[which]) is not None]
        cells.append(f"{mean(values):.4f} ± {stdev(values):.4f}" if len(values) > 1 else next(iter(values), None))
    return cells


def beside_the_paper(runs: list[Run], dataset: str) -> str:
    """Tables 2 (and 4), or 3, of the paper: our rows of the same names, means over seeds, then the published ones."""
    ours: list[list[object]] = []
    for name, group in by_seed([run for run in runs if run.dataset == dataset]).items():
        for title in OURS:
            rows = [row["paper"] for run in group if (row := run.scores.get("test", {}).get(title)) and row["paper"]]
            known = [[row[column] for row in rows if row[column] is not None] for column in NINE.groups] if rows else []
            count = f", {len(rows)} seeds" if len(rows) > 1 else ""
            ours += [[f"{name}{count}: {title}", *(mean(values) if values else None for values in known)]] * bool(known)
    missing: list[object] = [f"not run here: `reproduce.py --dataset {dataset}`", *[None] * len(NINE.groups)]
    return markdown(["F1, test split", *NINE.groups], [*(ours or [missing]), *published_rows(dataset, others=True)])


def trainings(run: Run) -> str:
    """How each stage was trained, and what its best epoch scored on the validation split."""
    header = ["stage", "faces", "epochs", "batch", "optimiser", "crops", "best on val", "minutes"]
    rows = []
    for name, (config, log) in run.stages.items():
        optimisation = config["optimisation"]
        rates = ", ".join(f"{lr:g}" for lr in dict.fromkeys(optimisation["lr"].values()) if lr)
        rows.append(
            [
                name,
                config["images"],
                f"{sum('loss' in row for row in log)}/{optimisation['epochs']}",
                config["recipe"]["batch_size"],
                f"{optimisation['optimizer']}, {rates}, {optimisation['schedule']}",
                windows(config["config"]),
                best_of(log),
                f"{sum(row.get('train_s', 0) + row['val_s'] for row in log) / 60:.1f}",
            ]
        )
    return markdown(header, rows)


def windows(config: Result) -> str:
    """Samples and size of the crops, by the parser's configuration; what parsers without crops see."""
    if "crop_size" not in config:
        return f"whole photo, {config['size']} pixels"
    margin = config["window_margin"]
    text = f"{config['crop_size']}, margin {margin:g}" if margin else f"{config['crop_size']} pixels"
    aspect = config.get("window_aspect", 1)  # square windows had none
    return text + (f", aspect {aspect:g}" if aspect < 1 else "")


def best_of(log: list[Result]) -> str | None:
    """The best epoch's score, as ``f1 0.9171, epoch 4``."""
    for key, best in (("f1", max), ("theta_loss", min)):
        if scored := [row for row in log if key in row]:
            row = best(scored, key=itemgetter(key))
            return f"{key} {row[key]:.4f}, epoch {row['epoch']}"
    return None


def overview(runs: list[Run], tables: dict[str, str], benchmarks: list[Path]) -> str:
    """The report's README.md. tables: that it may show. benchmarks: files to link to, each in a folder next to it."""
    parts = ["# Results", "Generated by `python -m experiments.report`: do not edit.", headlines(runs)]
    parts += [tables.get(f"paper/{name}", "") for name in PAPER if any(run.dataset == name for run in runs)]
    for name, (run, *others) in by_seed(runs).items():
        commands = "\n".join(each.command for each in (run, *others) if each.command)
        parts += [f"## {name}", f"```bash\n{commands}\n```" if commands else ""]
        parts += [tables.get(f"{run.name}/trainings", "")]
        for split, rows in list(run.scores.items())[-1:]:  # the test split, if it was scored
            grouped = bool(next(iter(rows.values()))["paper"])
            table = tables.get(f"{run.name}/{split}/{'paper' if grouped else 'strict'}")
            if table and not (grouped and run.dataset in PAPER):  # those stand beside the paper's rows
                faces = " or ".join(sorted({str(row["images"]) for row in rows.values()}))
                parts += [f"{split.capitalize()} split, {faces} faces:", table]
    parts += [f"## {name}\n\n{table}" for name, table in tables.items() if name.startswith("experiments/")]
    parts += ["## Speed"] if benchmarks else []
    parts += ["\n".join(f"- [{path.parent.name}]({path.parent.name}/{path.name})" for path in benchmarks)]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def headlines(runs: list[Run]) -> str:
    """Overall F1 and strict mean of every row of every training, on each split; empty where there are no scores."""
    splits = [split for split in SPLITS if any(split in run.scores for run in runs)]
    rows: list[list[object]] = []
    for name, group in by_seed(runs).items():
        for title in dict.fromkeys(title for run in group for scores in run.scores.values() for title in scores):
            found = [[row for run in group if (row := run.scores.get(split, {}).get(title))] for split in splits]
            rows.append([f"[{name}](#{name})", title, *(cell for each in found for cell in spread(each))])
    header = ["run", "row", *(f"{split}, {which}" for split in splits for which in ("overall", "strict mean"))]
    return markdown(header, rows) if rows else ""


if __name__ == "__main__":
    sys.exit(run_main(main))
