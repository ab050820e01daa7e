"""All labels of the face: by one network of the whole face, by STN-iCNN's parts, and by both as one parser."""

import sys
from pathlib import Path

from experiments import common
from experiments.common import Result
from models.loading import SHIPPED_WEIGHTS, SHIPPED_WHOLE, load_for_inference
from scoring import options
from scoring.evaluation import score_faces
from scoring.metrics import all_classes
from utils.runtime import run_main
from utils.tables import markdown

NAME = "fused"
PARSERS = ("whole face", "parts", "fused")


def main(argv: list[str] | None = None) -> int:
    cli = common.parser(__doc__, common.BATCH_SIZE)
    for flag, default, what in (
        ("--whole", SHIPPED_WHOLE, "of the whole face, in the data set's own labels"),
        ("--parts", SHIPPED_WEIGHTS, "of STN-iCNN"),
    ):
        cli.add_argument(
            flag, type=Path, default=default, metavar="FILE", help=f"a checkpoint {what}; default: the one that ships"
        )
    args = common.parse(cli, argv)
    machine, data = options.machine(args), options.face_data(args)
    checkpoints = zip(PARSERS, ([args.whole], [args.parts], [args.whole, args.parts]), strict=True)
    parsers = {title: load_for_inference(paths, machine.device) for title, paths in checkpoints}
    scores = {}
    for title, parser in parsers.items():
        faces = common.open_split(args, parser.labels)
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
    return common.write(NAME, args, argv, {"faces": len(faces), "rows": rows, "means": means}, table)


def table(result: Result) -> str:
    """Markdown: F1 of the labels that fusing changes, then the means, before and after."""
    shown = ("whole face", "fused")  # the parts alone have the fused scores
    rows = [[row["label"], *map(row["f1"].get, shown)] for row in result["rows"]]
    rows = [
        [name, before, after] for name, before, after in rows if not (before and after and abs(before - after) < 5e-4)
    ]
    means = [[name, *map(values.get, shown)] for name, values in result["means"].items()]
    return markdown(["F1", *shown], rows + means, 3)


if __name__ == "__main__":
    sys.exit(run_main(main))
