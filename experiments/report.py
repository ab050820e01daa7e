"""Write the tables and plots of the results again, from the files that the runs left behind.

Reads from --results what is there of: <run>/command.txt, <run>/<training>/{config.json,log.jsonl} and
<run>/scores/<split>/<row>/scores.json, all as reproduce.py leaves them, and experiments/<experiment>.json.
Writes there: README.md, <run>/curves.png and, for some, experiments/<experiment>.png.

For this repository's own results, the tables in README.md and docs/*.md are written too: each text between
``<!-- table: NAME -->`` and ``<!-- end -->`` becomes the table of that name. The names are
<run>/<split>/paper, <run>/<split>/strict, <run>/trainings, <runs>/<split>/seeds, paper/<data set> (the paper's Tables 2
and 4, or 3, and ours), experiments/<experiment> and labels (the ids of every label set). Runs whose names differ only
in a suffix -seedN are one training with several seeds.
"""

import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from matplotlib.figure import Figure

import reproduce
from data.labels import LABEL_SETS, NINE
from data.listing import SPLITS
from experiments import (
    ablation,
    class_imbalance,
    coarse_size,
    common,
    crop_parity,
    few_images,
    fused,
    helen68,
    hidden_parts,
    kinds,
    robustness,
    scenes,
    true_windows,
)
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
EXPERIMENTS: dict[str, tuple[str, Callable[[Result], str], Callable[[Result], Figure] | None]] = {
    "hidden_parts": ("Hidden parts (Fig. 5)", hidden_parts.table, hidden_parts.draw),
    "coarse_size": ("Size of the coarse input (Fig. 6)", coarse_size.table, None),
    "crop_parity": ("Crops of odd and even size (Fig. 7, 8)", crop_parity.table, None),
    "few_images": ("Synthetic faces first, few real ones after (§3.1)", few_images.table, few_images.draw),
    "training_images": ("Score over the number of training faces", few_images.table, few_images.draw_curve),
    "robustness": ("Robustness", robustness.table, None),
    "true_windows": ("Annotated windows leak the answer", true_windows.table, None),
    "kinds": ("Kinds of faces", kinds.table, None),
    "scenes": ("Scenes of several faces", scenes.table, None),
    "helen68": ("Unaligned photos", helen68.table, None),
    "fused": ("All labels by two parsers", fused.table, None),
    "class_imbalance": ("Class frequencies", class_imbalance.table, class_imbalance.draw),
    "ablation": ("What each change of the recipe brings", ablation.table, None),
}
LOWER_IS_BETTER = ("theta_loss",)
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
    cli.add_argument(
        "--results",
        type=Path,
        default=HOME / "results",
        metavar="DIR",
        help="folder of the runs; the report goes there",
    )
    args = cli.parse_args(argv)
    if not os.path.isdir(args.results):
        raise InputError(f"--results {args.results} is not a folder: choose the one that holds the runs")
    own = args.results.resolve() == HOME / "results"
    write_tables(args.results, [HOME / "README.md", *sorted((HOME / "docs").glob("*.md"))] if own else [])
    write_plots(args.results)
    return 0


def read_results(results: Path) -> tuple[list[Run], dict[str, Result]]:
    """The runs and experiments of a folder. Raises InputError where there are none, and for damaged files."""
    runs = [run for folder in sorted(results.iterdir()) if folder.is_dir() and (run := read_run(folder))]
    paths = {name: results / "experiments" / f"{name}.json" for name in EXPERIMENTS}
    experiments = {name: files.read_json(path, "results") for name, path in paths.items() if path.exists()}
    if not runs and not experiments:
        raise InputError(f"--results {results} holds neither runs nor experiments")
    for run in runs:
        with blamed(results / run.name):
            overview([run], {}, all_tables([run], {}), [])
    for name, result in experiments.items():
        with blamed(paths[name]):
            overview([], {name: result}, all_tables([], {name: result}), [])
    return runs, experiments


def write_tables(results: Path, documents: Sequence[Path]) -> None:
    """Write README.md of the folder ``results``, and the marked tables of the documents (Markdown files).

    Each experiment has one place: README.md leaves out those whose table or plot a document shows.
    Raises InputError as ``read_results`` does, and for a mark that names no table; nothing is written then.
    """
    runs, experiments = read_results(results)
    texts = {path: files.read_text(path) for path in documents}
    with blamed(results):
        tables = all_tables(runs, experiments)
        changed = {path: with_tables(text, tables, path) for path, text in texts.items()}
        tables |= {name: "" for text in texts.values() for _, name, _ in MARKED.findall(text)}
        plotted = [name for name in EXPERIMENTS if any(f"/{name}.png)" in text for text in texts.values())]
        tables |= {f"experiments/{name}": "" for name in plotted}
        listed = {name: result for name, result in experiments.items() if tables[f"experiments/{name}"]}
        changed[results / "README.md"] = overview(runs, listed, tables, sorted(results.glob("*/benchmark.md")))
    for path, text in changed.items():
        if texts.get(path) != text:
            files.write_text(path, text)
    print(f"written: {results / 'README.md'}, from {len(runs)} runs and {len(experiments)} experiments")


def write_plots(results: Path) -> None:
    """Write <run>/curves.png and experiments/<experiment>.png. Raises InputError as ``read_results`` does."""
    runs, experiments = read_results(results)
    for run in runs:
        if run.stages:
            with blamed(results / run.name):
                figure = curves(run)
            common.save_figure(figure, results / run.name / "curves.png")
    for name, result in experiments.items():
        path = results / "experiments" / f"{name}.json"
        if draw := EXPERIMENTS[name][2]:
            with blamed(path):
                figure = draw(result)
            common.save_figure(figure, path.with_suffix(".png"))


def all_tables(runs: list[Run], experiments: dict[str, Result]) -> dict[str, str]:
    """Every table by its name, in Markdown."""
    tables = {f"experiments/{name}": EXPERIMENTS[name][1](result) for name, result in experiments.items()}
    sets: dict[tuple[str, ...], list[str]] = {}
    for name, labels in LABEL_SETS.items():
        sets.setdefault(labels.names, []).append(name)
    ids = [[i, *names] for i, names in enumerate(zip_longest(*sets))]
    tables["labels"] = markdown(["id", *map(", ".join, sets.values())], ids)
    tables |= {f"paper/{dataset}": beside_the_paper(runs, dataset) for dataset in PAPER}
    for name, group in by_seed(runs).items():
        tables |= {f"{name}/{split}/seeds": table for split, table in spread(group).items()}
    for run in runs:
        if run.stages:
            tables[f"{run.name}/trainings"] = trainings(run)
        for split, rows in run.scores.items():
            if all(scores["paper"] for scores in rows.values()):  # label sets without the paper's groups have none
                tables[f"{run.name}/{split}/paper"] = f1_table(
                    rows, "paper", published_rows(run.dataset) if split == "test" else []
                )
            tables[f"{run.name}/{split}/strict"] = f1_table(rows, "strict", [])
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


@contextmanager
def blamed(path: Path) -> Iterator[None]:
    """What is done inside trusts the values of a file or of a folder; where it fails, InputError names them."""
    try:
        yield
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{path} lacks values, or holds others than it should ({reason}): write it again") from error


def read_scores(path: Path) -> Result:
    """A scores.json. Raises InputError for a damaged one."""
    values = files.read_json(path, "scores")
    tables = [values.get(key, {}) for key in ("paper", "strict")]
    sound = all(isinstance(table, dict) for table in tables) and isinstance(values.get("dataset"), str | None)
    if not sound or not all(isinstance(score, int | float | None) for table in tables for score in table.values()):
        raise InputError(f"{path} lacks values, or holds others than it should: score again")
    return values


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
            read = {name: read_scores(found[name]) for name in order}
            scores[split] = {titles.get(name, name.replace("_", " ")): values for name, values in read.items()}
    command = folder / "command.txt"
    if not stages and not scores:
        return None
    for name in [folder.name, *stages, *(name for rows in scores.values() for name in rows)]:
        if not name.isprintable():
            raise InputError(f"{str(folder)!r}: {name!r} cannot be shown in a table; rename the folder")
    return Run(folder.name, stages, scores, files.read_text(command).strip() if command.exists() else "")


def by_seed(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs by their names without the suffix -seedN, in the order of their names."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(re.sub(r"-seed\d+$", "", run.name), []).append(run)
    return groups


def spread(group: list[Run]) -> dict[str, str]:
    """For several seeds, split -> Markdown: mean and standard deviation (over n - 1) of both headline scores, for each
    row that all runs have."""
    tables: dict[str, str] = {}
    for split in SPLITS if len(group) > 1 else ():
        scores = [run.scores.get(split, {}) for run in group]
        rows = []
        for title in (title for title in scores[0] if all(title in other for other in scores)):
            cells = []
            for which in ("overall", "strict"):
                values = [value for each in scores if (value := headline(each[title])[which]) is not None]
                cells.append(f"{mean(values):.4f} ± {stdev(values):.4f}" if len(values) > 1 else None)
            rows.append([title, *cells])
        if rows:
            header = [f"{len(group)} seeds, {split} split: mean ± standard deviation", "overall", "strict mean"]
            tables[split] = markdown(header, rows)
    return tables


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


def f1_table(rows: dict[str, Scores], measure: str, published: list[list[object]]) -> str:
    """F1 of a run's rows, then of published ones. measure: "paper" (its groups), "strict" (each label, their mean)."""
    columns = list(next(iter(rows.values()))[measure])
    lines = [[title, *map(scores[measure].get, columns)] for title, scores in rows.items()]
    return markdown([f"F1, {measure}", *columns], [*lines, *published])


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
                f"{sum('loss' in row for row in log)} of {optimisation['epochs']}",
                config["recipe"]["batch_size"],
                f"{optimisation['optimizer']}, {rates}, {optimisation['schedule']}",
                windows(config["config"]),
                best_of(log),
                f"{sum(row.get('train_s', 0) + row['val_s'] for row in log) / 60:.1f}",
            ]
        )
    return markdown(header, rows)


def windows(config: Result) -> str:
    """Samples and size of the crops, by the parser's configuration; for parsers without crops, what they see."""
    if "crop_size" not in config:
        return f"none: whole photo, {config['size']} pixels"
    margin = config["window_margin"]
    text = f"{config['crop_size']}, margin {margin:g}" if margin else f"{config['crop_size']} pixels"
    aspect = config.get("window_aspect", 1)  # square windows had none
    return text + (f", aspect {aspect:g}" if aspect < 1 else "")


def best_of(log: list[Result]) -> str | None:
    """The best epoch's score, as ``f1 0.9171, epoch 4``."""
    for key in ("f1", *LOWER_IS_BETTER):
        scored = [row for row in log if key in row]
        if scored:
            row = (min if key in LOWER_IS_BETTER else max)(scored, key=lambda row: row[key])
            return f"{key} {row[key]:.4f}, epoch {row['epoch']}"
    return None


def curves(run: Run) -> Figure:
    """A plot for each stage: the training loss (dashed, right) and the validation scores (left) over epochs."""
    figure, axes = common.panels(len(run.stages), 3.2)
    for ax, (name, (_, log)) in zip(axes, run.stages.items(), strict=True):
        epochs = [row["epoch"] for row in log]
        for key, colour in (("f1", "tab:blue"), ("strict", "tab:orange"), ("centre_px", "tab:blue")):
            if log and key in log[0]:
                ax.plot(epochs, [row[key] for row in log], "-o", ms=3, color=colour, label=key)
        loss = ax.twinx()
        loss.plot(epochs, [row.get("loss", math.nan) for row in log], "--", color="grey", lw=1)
        loss.set_yscale("log")
        loss.tick_params(axis="y", labelsize=7, colors="grey", which="both")
        ax.set(title=name, xlabel="epoch (dashed: training loss)")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend(fontsize=8)
    return figure


def overview(runs: list[Run], experiments: dict[str, Result], tables: dict[str, str], benchmarks: list[Path]) -> str:
    """The report's README.md. benchmarks: files to link to, each in a folder next to it. Empty tables are left out."""
    parts = ["# Results", "Generated by `python -m experiments.report`: do not edit.", headline_table(runs)]
    for dataset in PAPER:
        if tables[f"paper/{dataset}"] and any(
            run.dataset == dataset for group in by_seed(runs).values() for run in group[1:]
        ):
            parts += [f"{dataset}, next to the paper:", tables[f"paper/{dataset}"]]
    for name in by_seed(runs):
        for key in [key for split in reversed(SPLITS) if (key := f"{name}/{split}/seeds") in tables][:1]:
            parts += [f"{name}:", tables[key]] if tables[key] else []
    firsts = [group[0] for group in by_seed(runs).values()]  # of each training's seeds
    for run in runs:
        parts += [f"## {run.name}"]
        parts += [f"```bash\n{run.command}\n```"] if run.command else []
        if run not in firsts:
            continue
        parts += [tables[f"{run.name}/trainings"], f"![training curves]({run.name}/curves.png)"] if run.stages else []
        for split, rows in list(run.scores.items())[-1:]:  # the test split, if it was scored
            key = f"{run.name}/{split}/paper"
            if table := tables[key if key in tables else f"{run.name}/{split}/strict"]:
                faces = sorted({row["images"] for row in rows.values()})
                parts += [f"{split.capitalize()} split, {' or '.join(map(str, faces))} faces:", table]
    parts += ["## Experiments"] if experiments else []
    for name, result in experiments.items():
        title, _, draw = EXPERIMENTS[name]
        plot = f" ([plot](experiments/{name}.png))" if draw else ""
        parts += [f"**{title}**{plot}: {described(result)}"]
        parts += [f"```bash\n{result['command']}\n```"]
    parts += ["## Speed"] if benchmarks else []
    parts += ["\n".join(f"- [{path.parent.name}]({path.parent.name}/{path.name})" for path in benchmarks)]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def headline_table(runs: list[Run]) -> str:
    """Overall F1 and strict mean of every row of every run, on each split; empty where there are no scores."""
    splits = [split for split in SPLITS if any(split in run.scores for run in runs)]
    rows: list[list[object]] = []
    for run in runs:
        for title in dict.fromkeys(title for scores in run.scores.values() for title in scores):
            found = [headline(row) if (row := run.scores.get(split, {}).get(title)) else {} for split in splits]
            cells = [scores.get(which) for scores in found for which in ("overall", "strict")]
            rows.append([f"[{run.name}](#{run.name})", title, *cells])
    header = ["run", "row", *(f"{split}, {which}" for split in splits for which in ("overall", "strict mean"))]
    return markdown(header, rows) if rows else ""


def described(result: Result) -> str:
    """On which faces an experiment was made."""
    about = result["options"]
    words = [about["dataset"]]
    words += [f"{result['split']} split"] if "split" in result else []
    if "faces" in result:
        words += [f"{result['faces']} faces"]
    elif about.get("max_images"):
        words += [f"at most {about['max_images']} faces of a split"]
    words += [f"photos of {about['face_size']} pixels"] if about.get("face_size") else []
    words += [f"recipe {about['recipe']}"] if about.get("recipe") else []
    words += ["all four stages" if result["stage"] == "chain" else result["stage"]] if "stage" in result else []
    return ", ".join(words) + "."


if __name__ == "__main__":
    sys.exit(run_main(main))
