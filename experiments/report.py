"""Every table and plot of the results, from what the runs left behind: results/README.md, and a picture beside each.
In the README.md beside the results, tables between ``<!-- table: NAME -->`` and ``<!-- end -->`` are written again.

Read are, where they are there: <run>/{stage1,cropper,stage2,end2end}/{config.json,log.jsonl}, <run>/command.txt,
<run>/{val,test}/<row>/scores.json, experiments/<experiment>.json and any benchmark.md, all under --results.
Runs that differ in a suffix -seedN alone are the same run with other seeds.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

import reproduce
from data.labels import PAPER_GROUPS
from experiments import ablation, coarse_size, common, crop_parity, few_images, hidden_parts, kinds, robustness
from utils import options
from utils.errors import InputError
from utils.metrics import FOREGROUND
from utils.runtime import run_main

TITLES = (
    "coarse mask enlarged",
    "iCNN (old cropper)",
    "STN-iCNN before end-to-end",
    "STN-iCNN",
    "STN-iCNN, mirrored too",
    "STN-iCNN, crops on the truth",
)
# What the paper's tables print, test split, columns of PAPER_GROUPS.
PUBLISHED = {
    "helen": {
        "iCNN (Zhou 2015)": (0.778, 0.863, 0.920, 0.777, 0.824, 0.808, 0.889, 0.845),
        "iCNN": (0.863, 0.790, 0.936, 0.812, 0.772, 0.830, 0.908, 0.865),
        "STN-iCNN before end-to-end": (0.891, 0.845, 0.956, 0.853, 0.792, 0.834, 0.920, 0.893),
        "STN-iCNN": (0.895, 0.848, 0.963, 0.856, 0.824, 0.866, 0.928, 0.910),
    },
    "celebamask": {
        "iCNN": (0.883, 0.848, 0.910, 0.896, 0.712, 0.763, 0.849, 0.879),
        "STN-iCNN before end-to-end": (0.866, 0.834, 0.937, 0.906, 0.878, 0.893, 0.948, 0.915),
        "STN-iCNN": (0.900, 0.851, 0.943, 0.917, 0.877, 0.893, 0.948, 0.924),
    },
}
Result = dict[str, Any]
EXPERIMENTS: dict[str, tuple[str, Callable[[Result], str], Callable[[Result], Figure]]] = {
    "hidden_parts": ("Parts hidden in the photo (Fig. 5)", hidden_parts.table, hidden_parts.draw),
    "coarse_size": ("Size of the coarse input (Fig. 6)", coarse_size.table, coarse_size.draw),
    "crop_parity": ("Crops of odd and even size (Fig. 7, 8)", crop_parity.table, crop_parity.draw),
    "few_images": ("Drawn faces first, few real ones after (§3.1)", few_images.table, few_images.draw),
    "training_images": ("Score over training faces", few_images.table, few_images.draw_curve),
    "robustness": ("Photos of other kinds", robustness.table, robustness.draw),
    "kinds": ("Kinds of faces", kinds.table, kinds.draw),
    "ablation": ("What each change of recipe brings", ablation.table, ablation.draw),
}
LOWER_IS_BETTER = ("theta_loss",)
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


class Stage(NamedTuple):
    """What a training left: its config.json, and its log, one row an epoch."""

    config: Result
    log: list[Result]


class Run(NamedTuple):
    """One run folder. scores: split -> row's title -> scores.json. command: what was typed, or empty."""

    name: str
    stages: dict[str, Stage]
    scores: dict[str, dict[str, Result]]
    command: str

    @property
    def dataset(self) -> str | None:
        found = [stage.config["dataset"] for stage in self.stages.values()]
        found += [row["dataset"] for rows in self.scores.values() for row in rows.values()]
        return found[0] if found else None


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser(__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="read, and written into")
    args = parser.parse_args(argv)
    if not args.results.is_dir():
        raise InputError(f"--results {args.results} is no folder: name the one that holds the runs")
    runs = [run for path in sorted(args.results.iterdir()) if path.is_dir() and (run := read_run(path))]
    found = {name: path for name in EXPERIMENTS if (path := args.results / "experiments" / f"{name}.json").is_file()}
    if not runs and not found:
        raise InputError(f"--results {args.results} holds neither runs nor experiments")
    lines = ["# Results", "", "Written by `python -m experiments.report`; edits get lost.", ""]
    groups = by_seed(runs)
    spreads = {name: spread(group) for name, group in groups.items()}
    for name, group in groups.items():
        lines += [f"## {name}", "", *spreads[name].values()]
        for run in group:
            if len(group) > 1:
                lines += [f"### {run.name}, seed {seed_of(run)}", ""]
            lines += section(run)
            if run.stages:
                common.save_figure(curves(run), args.results / f"{run.name}-curves.png")
                lines += [f"![training curves of {run.name}]({run.name}-curves.png)", ""]
    for name, path in found.items():
        title, table, draw = EXPERIMENTS[name]
        result = read_json(path)
        common.save_figure(draw(result), args.results / f"{name}.png")
        lines += [f"## {title}", "", told(result), "", f"```\n{result['command']}\n```", "", table(result)]
        lines += [f"![{title}]({name}.png)", ""]
    for path in sorted(args.results.glob("**/benchmark.md")):
        lines += [re.sub("^#", "##", path.read_text(), flags=re.MULTILINE)]
    file = args.results / "README.md"
    file.write_text("\n".join(lines).rstrip() + "\n")
    print(f"written: {file}, from {len(runs)} runs and {len(found)} experiments")
    beside = args.results.resolve().parent / "README.md"
    if beside.is_file():
        tables = {f"experiments/{name}": EXPERIMENTS[name][1](read_json(path)) for name, path in found.items()}
        for name, by_split in spreads.items():
            tables |= {f"{name}/{split}/seeds": table for split, table in by_split.items()}
        for run in runs:
            for split in run.scores:
                tables[f"{run.name}/{split}/paper"] = f1_table(run, split)
                tables[f"{run.name}/{split}/strict"] = strict_table(run.scores[split])
        beside.write_text(with_tables(beside.read_text(), tables))
    return 0


def with_tables(text: str, tables: dict[str, str]) -> str:
    """The text with its marked tables as they are now. Raises InputError for a mark that names none."""
    if lost := {name for _, name, _ in MARKED.findall(text)} - tables.keys():
        raise InputError(f"no results for the tables {', '.join(sorted(lost))}: there are {', '.join(sorted(tables))}")
    return MARKED.sub(lambda match: f"{match[1]}{tables[match[2]]}{match[3]}", text)


def read_json(path: Path) -> Any:
    """Raises InputError for a damaged file."""
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is damaged ({error}): write it again, or remove it") from error


def read_run(folder: Path) -> Run | None:
    """A run folder; None for one without stages and scores. Raises InputError for damaged files."""
    stages = {}
    for stage in reproduce.STAGES:
        config, log = folder / stage / "config.json", folder / stage / "log.jsonl"
        if config.is_file() and log.is_file():
            try:
                rows = [json.loads(line) for line in log.read_text().splitlines() if line]
            except json.JSONDecodeError as error:
                raise InputError(f"{log} is damaged ({error}): copy it again") from error
            stages[stage] = Stage(read_json(config), rows)
    scores = {}
    titles = {reproduce.slug(title): title for title in TITLES}
    for split in ("val", "test"):
        files = {path.parent.name: path for path in sorted((folder / split).glob("*/scores.json"))}
        order = [name for name in titles if name in files] + [name for name in files if name not in titles]
        if order:
            scores[split] = {titles.get(name, name.replace("_", " ")): read_json(files[name]) for name in order}
    command = folder / "command.txt"
    if not stages and not scores:
        return None
    return Run(folder.name, stages, scores, command.read_text().strip() if command.is_file() else "")


def by_seed(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs that differ in their seeds alone, together, by their common name, in the order of their names."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(re.sub(r"-seed\d+$", "", run.name), []).append(run)
    return groups


def seed_of(run: Run) -> str:
    return ", ".join(sorted({str(stage.config["seed"]) for stage in run.stages.values()})) or "unknown"


def spread(group: list[Run]) -> dict[str, str]:
    """For several seeds, split -> Markdown: mean and range of the headline scores of each row that all of them have."""
    tables: dict[str, str] = {}
    for split in ("val", "test") if len(group) > 1 else ():
        scores = [run.scores.get(split, {}) for run in group]
        rows = []
        for title in (title for title in scores[0] if all(title in of for of in scores)):
            cells = []
            for which in ("overall", "strict"):
                values = [value for of in scores if (value := common.headline(of[title])[which]) is not None]
                low, high = min(values, default=0.0), max(values, default=0.0)
                cells.append(f"{sum(values) / len(values):.4f} ({low:.4f}–{high:.4f})" if values else None)
            rows.append([title, *cells])
        if rows:
            header = [f"{len(group)} seeds, {split} split: mean (range)", "overall", "strict mean"]
            tables[split] = common.markdown(header, rows)
    return tables


def section(run: Run) -> list[str]:
    """A run's command, trainings and scores."""
    lines = [f"```\n{run.command}\n```", ""] if run.command else []
    if run.stages:
        lines += [trainings(run)]
    for split, rows in run.scores.items():
        faces = sorted({str(row["images"]) for row in rows.values()})
        lines += [
            f"{split.capitalize()} split, {' or '.join(faces)} faces.",
            "",
            f1_table(run, split),
            strict_table(rows),
        ]
    return lines


def trainings(run: Run) -> str:
    """How each stage was trained, and what its best epoch scored on the validation split."""
    header = ["stage", "faces", "epochs", "batch", "optimiser", "crops", "best on val", "minutes", "on"]
    rows = []
    for name, (config, log) in run.stages.items():
        optimisation, model = config["optimisation"], config["config"]
        windows = f"margin {model['window_margin']:g}" if model["window_margin"] else "of their pixels"
        if (aspect := model.get("window_aspect", 1)) < 1:
            windows += f", aspect {aspect:g}"
        rates = ", ".join(f"{lr:g}" for lr in dict.fromkeys(optimisation["lr"].values()) if lr)
        rows.append(
            [
                name,
                config["images"],
                f"{len(log)} of {optimisation['epochs']}",
                config["recipe"]["batch_size"],
                f"{optimisation['optimizer']}, {rates}, {optimisation['schedule']}",
                f"{model['crop_size']}, {windows}",
                best_of(log),
                f"{sum(row['train_s'] + row['val_s'] for row in log) / 60:.1f}",
                config["environment"]["device"],
            ]
        )
    return common.markdown(header, rows)


def best_of(log: list[Result]) -> str | None:
    """The best epoch's score, as ``f1 0.9171, epoch 4``."""
    for key in ("f1", *LOWER_IS_BETTER):
        scored = [row for row in log if key in row]
        if scored:
            row = (min if key in LOWER_IS_BETTER else max)(scored, key=lambda row: row[key])
            return f"{key} {row[key]:.4f}, epoch {row['epoch'] + 1}"
    return None


def f1_table(run: Run, split: str) -> str:
    """The paper's columns: the run's rows, then the published ones."""
    rows: list[list[object]] = [
        [title, *(scores["paper"][group] for group in PAPER_GROUPS)] for title, scores in run.scores[split].items()
    ]
    for title, values in PUBLISHED.get(run.dataset or "", {}).items():
        rows.append([f"*paper, its test split: {title}*", *(f"{value:.3f}" for value in values)])
    return common.markdown(["F1, paper", *PAPER_GROUPS], rows)


def strict_table(rows: dict[str, Result]) -> str:
    """F1 of each of the eight labels and their mean."""
    columns = [*FOREGROUND, "mean"]
    lines = [[title, *(scores["strict"][name] for name in columns)] for title, scores in rows.items()]
    return common.markdown(["F1, strict", *columns], lines)


def curves(run: Run) -> Figure:
    """A plot for each stage: what is learned (dashed, right) and the validation scores (left) over epochs."""
    figure, axes = common.panels(len(run.stages), 3.2)
    for ax, (name, (_, log)) in zip(axes, run.stages.items(), strict=True):
        epochs = [row["epoch"] + 1 for row in log]
        for key, colour in (("f1", "tab:blue"), ("strict", "tab:orange"), ("centre_px", "tab:blue")):
            if log and key in log[0]:
                ax.plot(epochs, [row[key] for row in log], "-o", ms=3, color=colour, label=key)
        loss = ax.twinx()
        loss.plot(epochs, [row["loss"] for row in log], "--", color="grey", lw=1)
        loss.set_yscale("log")
        loss.tick_params(axis="y", labelsize=7, colors="grey", which="both")
        ax.set(title=name, xlabel="epoch (dashed: training loss)")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend(fontsize=8)
    return figure


def told(result: Result) -> str:
    """On which faces an experiment was made."""
    about = result["options"]
    words = [f"{about['dataset']}, {result['split']} split"]
    words += [f"{result['faces']} faces"] if "faces" in result else []
    words += [f"at most {about['max_images']} faces of a split"] if about.get("max_images") else []
    words += [f"photos of {about['face_size']} pixels"] if about.get("face_size") else []
    words += [f"recipe {about['recipe']}"] if about.get("recipe") else []
    words += [f"{'all four stages' if result['stage'] == 'chain' else result['stage']}"] if "stage" in result else []
    return ", ".join(words) + "."


if __name__ == "__main__":
    sys.exit(run_main(main))
