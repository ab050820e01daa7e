"""All labels of the face: by one network of the whole face, by STN-iCNN's parts, and by both as one parser."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from data.loaders import open_faces
from experiments import common
from models.loading import SHIPPED_WEIGHTS, SHIPPED_WHOLE, load_for_inference
from scoring import options
from scoring.evaluation import score_faces
from scoring.metrics import all_classes
from utils.runtime import run_main
from utils.tables import markdown

NAME = "fused"
PARSERS = ("whole face", "parts", "fused")


def main(argv: list[str] | None = None) -> int:
    made = common.parser(__doc__, common.BATCH_SIZE)
    for flag, default, what in (
        ("--whole", SHIPPED_WHOLE, "of the whole face, in the data set's own labels"),
        ("--parts", SHIPPED_WEIGHTS, "of STN-iCNN"),
    ):
        made.add_argument(
            flag, type=Path, default=default, metavar="FILE", help=f"a checkpoint {what}; default: the one that ships"
        )
    args = common.parse(made, argv)
    machine, data = options.machine(args), options.face_data(args)
    scores = {}
    for title, paths in zip(PARSERS, ([args.whole], [args.parts], [args.whole, args.parts]), strict=True):
        parser = load_for_inference(paths, machine.device)
        faces = open_faces(data, args.split, parser.labels, threads=machine.threads)
        matrices_NKK = score_faces(parser, faces, machine, args.batch_size)
        found, labels = all_classes(matrices_NKK.sum(0), parser.labels), parser.labels
        shared = [labels.shared.get(name, name) for name in labels.names]
        by_label = {measure: dict(zip(shared, found[measure].values(), strict=True)) for measure in ("f1", "iou")}
        means = {name: value for name, value in found.items() if name not in by_label}
        scores[title] = {**by_label, "means": means}
    rows = []
    for name in data.labels.foreground:
        same = data.labels.shared.get(name, name)
        measures = {m: {title: scores[title][m].get(same) for title in PARSERS} for m in ("f1", "iou")}
        rows.append({"label": name, **measures})
    means = {name: {title: scores[title]["means"].get(name) for title in PARSERS} for name in scores["fused"]["means"]}
    numbers = {"faces": len(faces), "split": args.split, "rows": rows, "means": means}
    common.write(NAME, NAME, args, argv, numbers, draw, table)
    return 0


def table(result: dict[str, Any]) -> str:
    """Markdown: F1 of each label, then the means."""
    rows = [[row["label"], *(row["f1"][title] for title in PARSERS)] for row in result["rows"]]
    for name, values in result["means"].items():
        rows.append([name, values["whole face"], None, values["fused"]])  # the parts alone have other labels to average
    return markdown(["F1", *PARSERS], rows, 3)


def draw(result: dict[str, Any]) -> Figure:
    """Bars of the F1 of each label for the three parsers."""
    figure, (ax,) = common.panels(1)
    figure.set_size_inches(9.2, 3.6)
    places = np.arange(len(result["rows"]))
    for offset, title in zip((-0.28, 0, 0.28), PARSERS, strict=True):
        ax.bar(places + offset, [row["f1"][title] or 0 for row in result["rows"]], 0.28, label=title)
    ax.set_xticks(places, [row["label"] for row in result["rows"]], rotation=45)
    ax.set(ylabel="F1", title=f"{result['faces']} faces, {result['split']} split")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


if __name__ == "__main__":
    sys.exit(run_main(main))
