"""Writes the edges between the labels of a data set as pictures: python -m tools.edges --dataset list --data DIR
--labels lapa --out DIR/edges. An edge's pixels, on both of its sides, are 255, all others 0. train_eagrnet.py finds
edges by itself; the files are for other programs, such as its authors' code, which reads them from edges/ next to
images/ and labels/."""

import sys
from pathlib import Path

import torch
from PIL import Image

from data.edges import edges
from data.listing import SPLITS
from data.source import FaceData, label_maps
from scoring.options import add_data_options, check
from scoring.pictures import encode
from utils import files
from utils.cli import Parser
from utils.errors import InputError
from utils.runtime import run_main


def main(argv: list[str] | None = None) -> int:
    cli = Parser(__doc__)
    add_data_options(cli, required=True)
    cli.add_argument("--split", nargs="+", choices=SPLITS, help="default: all three")
    cli.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the edge maps")
    args = cli.parse_args(argv)
    check(args)
    data = FaceData(args.dataset, args.data, args.partition, label_set=args.labels, ignore=args.ignore_255)
    written = write_edges(data, args.split or SPLITS, args.out)
    print(f"{written} edge maps in {args.out}")
    return 0


def write_edges(data: FaceData, splits: tuple[str, ...], folder: Path) -> int:
    """Write <name>.png for each face of the splits; returns how many there are.

    Files of an earlier, interrupted call stay. Raises InputError for bad data, for a folder that cannot be written,
    and where a file lies there that holds something else.
    """
    count = 0
    for split in splits:
        for sample, labels_HW in label_maps(data, split):
            edges_1HW = edges(torch.from_numpy(labels_HW)[None])
            picture = encode(Image.fromarray(edges_1HW[0].numpy().astype("uint8") * 255), "PNG")
            path = folder / f"{sample.name}.png"
            files.make_folder(folder, "--out")
            if not path.exists():
                files.write_bytes(path, picture)
            elif files.read_bytes(path) != picture:
                raise InputError(f"--out {path} has other content: choose another folder, or remove the file")
            count += 1
    return count


if __name__ == "__main__":
    sys.exit(run_main(main))
