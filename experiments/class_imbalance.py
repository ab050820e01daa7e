"""How rare the classes are: each label's share of all pixels of a split, and of the faces that show it.

Counted in the data set's own masks, at their own size; photos are not read and no cache is made.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from data.source import label_maps
from experiments import common
from experiments.common import Result
from scoring import options
from utils import files
from utils.runtime import run_main
from utils.tables import markdown

NAME = "class_imbalance"


def main(argv: list[str] | None = None) -> int:
    cli = common.parser(__doc__)
    cli.set_defaults(split="train")
    cli.add_argument("--figure", type=Path, metavar="FILE", help="also draw the shares as bars, .png or .pdf")
    args = common.parse(cli, argv)
    if args.figure:
        files.make_folder(args.figure.parent, "--figure")
    data = options.face_data(args)
    maps = label_maps(data, args.split)
    count = len(data.labels)
    pixels_NK = np.array([np.bincount(ids_HW.ravel(), minlength=count)[:count] for _, ids_HW in maps])
    pixels_K, faces_K = pixels_NK.sum(0), (pixels_NK > 0).mean(0)
    rows = [
        {
            "label": data.labels.names[k],
            "pixels": int(pixels_K[k]),
            "share": pixels_K[k] / pixels_K.sum(),
            "faces": faces_K[k],
        }
        for k in np.argsort(-pixels_K, kind="stable").tolist()
    ]
    if args.figure:
        draw(rows, args.figure)
    return common.write(NAME, args, argv, {"faces": len(pixels_NK), "rows": rows}, table)


def table(result: Result) -> str:
    """Markdown: one line for each label, the most frequent first."""
    rows = [[row["label"], f"{row['share']:.5f}", f"{row['faces']:.3f}"] for row in result["rows"]]
    return markdown(["label", "share of pixels", "share of faces"], rows)


def draw(rows: list[Result], path: Path) -> None:
    """Each label's share of the pixels, and of the faces, as PNG or PDF by the file's name. Raises OSError."""
    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    for ax, key, title in zip(figure.subplots(1, 2), ("share", "faces"), ("pixels", "faces"), strict=True):
        ax.bar([row["label"] for row in rows], [row[key] for row in rows])
        ax.tick_params(axis="x", rotation=90)
        ax.set(ylabel=f"share of {title}", yscale="log" if key == "share" else "linear")
    kind = "pdf" if path.suffix.lower() == ".pdf" else "png"
    files.write_whole(path, partial(figure.savefig, format=kind, dpi=110))


if __name__ == "__main__":
    sys.exit(run_main(main))
