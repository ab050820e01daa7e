"""Crops of odd against even sides (paper Fig. 7, 8). Nothing is trained: windows of as many photo pixels as samples.

An odd window around a pixel samples pixels; an even one samples between them. The photo's crops are compared with plain
array slicing.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from data.labels import NINE, NUM_PARTS
from data.view import View
from experiments import common
from experiments.common import Result
from geometry.theta import window_theta
from scoring import options
from scoring.pictures import tile
from utils.runtime import run_main
from utils.tables import markdown

NAME = "crop_parity"
SIZES = (80, 81, 126, 127)  # sides of the windows, pixels; the first two are drawn


def slices(photo_HW3: np.ndarray, centres_P2: np.ndarray, size: int) -> np.ndarray:
    """Windows by array slicing, zeros outside: (6, size, size, 3). An even one begins size / 2 before its centre."""
    padded = np.pad(photo_HW3, ((size, size), (size, size), (0, 0)))
    corners = centres_P2.astype(int) + size - size // 2
    return np.stack([padded[y : y + size, x : x + size] for x, y in corners])


def main(argv: list[str] | None = None) -> int:
    cli = common.parser(__doc__, common.BATCH_SIZE)
    cli.add_argument("--pictures", type=Path, metavar="DIR", help="also draw the first face, as in Fig. 7 and 8")
    args = common.parse(cli, argv)
    machine = options.machine(args)
    faces = common.open_split(args, NINE)
    errors: dict[int, list[float]] = {size: [] for size in SIZES}
    cells: list[np.ndarray] = []
    for batch in common.batches(faces, machine, args.batch_size):
        centres_BP2 = batch.centres_BP2.round()
        for size in SIZES:
            theta_BP23 = window_theta(centres_BP2, torch.full_like(centres_BP2, size), batch.sizes_B2)
            crops_BPSS3 = View(batch).crops(theta_BP23, size).permute(0, 1, 3, 4, 2).cpu().numpy() * 255
            for b, present_P in enumerate(batch.present_BP.cpu().numpy()):
                sliced = slices(batch.photos_BHW3[b].cpu().numpy(), centres_BP2[b].cpu().numpy(), size)
                apart = np.abs(crops_BPSS3[b] - sliced)
                if size in SIZES[:2] and not errors[size]:  # the first face: sliced, sampled, and how they differ
                    cells += [*sliced, *crops_BPSS3[b].round().astype(np.uint8), *apart.round().astype(np.uint8)]
                errors[size].extend(apart[present_P].mean((1, 2, 3)).tolist())
    if args.pictures:
        common.save_picture(args.pictures / f"{NAME}.jpg", tile(cells, NUM_PARTS, 100))
    rows = [{"size": size, "error": float(np.mean(found)) if found else None} for size, found in errors.items()]
    return common.write(NAME, args, argv, {"faces": len(faces), "rows": rows}, table)


def table(result: Result) -> str:
    """Markdown: one line for each size."""
    return markdown(["crop size", "differs from slicing by (of 255)"], [row.values() for row in result["rows"]])


if __name__ == "__main__":
    sys.exit(run_main(main))
