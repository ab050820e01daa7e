"""Crops of odd against even sides (paper Fig. 7, 8). Nothing is trained: windows of as many photo pixels as samples.

An odd window around a pixel samples pixels; an even one samples between them. The photo's crops are compared with plain
array slicing, and the true labels with themselves, cropped (nearest) and pasted back.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.labels import NINE, NUM_PARTS, among
from data.view import View
from experiments import common
from experiments.common import Result
from geometry.paste import paste_labels
from geometry.theta import compose, image_to_padded
from models.stn_icnn.model import STNiCNNConfig
from models.stn_icnn.parts import part_targets
from models.stn_icnn.windows import target_theta
from scoring import options
from scoring.pictures import tile
from utils.runtime import run_main
from utils.tables import markdown

NAME = "crop_parity"


def slices(photo_HW3: np.ndarray, centres_P2: np.ndarray, size: int) -> np.ndarray:
    """Windows by array slicing, zeros outside: (6, size, size, 3). An even one begins size / 2 before its centre."""
    padded = np.pad(photo_HW3, ((size, size), (size, size), (0, 0)))
    corners = centres_P2.astype(int) + size - size // 2
    return np.stack([padded[y : y + size, x : x + size] for x, y in corners])


def within(labels_BHW: Tensor, centres_BP2: Tensor, size: int) -> Tensor:
    """The labels, with each part erased outside its own window, which ends (size - 1) / 2 pixels from its centre.

    labels_BHW: uint8, the nine labels. centres_BP2: (x, y) in pixels.
    """
    height, width = labels_BHW.shape[-2:]
    kept_BHW = torch.zeros_like(labels_BHW)
    y_H, x_W = torch.arange(height, device=labels_BHW.device), torch.arange(width, device=labels_BHW.device)
    for part, ids in enumerate(NINE.part_ids):
        x_B1, y_B1 = centres_BP2[:, part, :1], centres_BP2[:, part, 1:]
        near_BH, near_BW = ((ticks - centre).abs() <= (size - 1) / 2 for ticks, centre in ((y_H, y_B1), (x_W, x_B1)))
        kept_BHW += labels_BHW * (among(labels_BHW, ids) & near_BH[:, :, None] & near_BW[:, None])
    return kept_BHW


def paste_back(view: View, theta_BP23: Tensor, config: STNiCNNConfig) -> Tensor:
    """The true labels, cropped and pasted: labels_BHW, uint8."""
    height, width = view.batch.labels_BHW.shape[1:]
    targets = part_targets(view.crop_labels(theta_BP23, config.crop_size))
    probs = [
        F.one_hot(target_BSS, 1 + len(ids)).permute(0, 3, 1, 2).float()
        for target_BSS, ids in zip(targets, NINE.part_ids, strict=True)
    ]
    padded_BP23 = compose(image_to_padded(view.sizes_B2, height, width), theta_BP23)
    return paste_labels(probs, padded_BP23, height, width, config.paste)


def main(argv: list[str] | None = None) -> int:
    cli = common.parser(__doc__, common.BATCH_SIZE)
    cli.add_argument(
        "--sizes", type=int, nargs="+", default=[80, 81, 126, 127], metavar="N", help="sides of the windows, pixels"
    )
    cli.add_argument("--pictures", type=Path, metavar="DIR", help="also draw the first face, as in Fig. 7 and 8")
    args = common.parse(cli, argv)
    configs = common.configs_of_sizes("crop_size", args.sizes)
    machine = options.machine(args)
    faces = common.open_split(args, NINE)
    errors: dict[int, list[float]] = {size: [] for size in configs}
    worst = dict.fromkeys(configs, 0.0)
    cells: list[np.ndarray] = []
    tallies = {size: common.Tally(NINE) for size in configs}
    for batch in common.batches(faces, machine, args.batch_size):
        view = View(replace(batch, centres_BP2=batch.centres_BP2.round(), origin=None))
        centres_BP2 = view.batch.centres_BP2
        for size, config in configs.items():
            (theta_BP23,) = view.send(target_theta(view.parts(), view.host.sizes_B2, config.windows))
            crops_BPSS3 = view.crops(theta_BP23, size).permute(0, 1, 3, 4, 2).cpu().numpy() * 255
            for b, present_P in enumerate(batch.present_BP.cpu().numpy()):
                sliced = slices(batch.photos_BHW3[b].cpu().numpy(), centres_BP2[b].cpu().numpy(), size)
                apart = np.abs(crops_BPSS3[b] - sliced)
                if not errors[size]:  # the first face: sliced, sampled, and how they differ
                    cells += [*sliced, *crops_BPSS3[b].round().astype(np.uint8), *apart.round().astype(np.uint8)]
                difference = apart[present_P]
                errors[size].extend(difference.mean((1, 2, 3)).tolist())
                worst[size] = max(worst[size], float(difference.max(initial=0)))
            pasted_BHW = within(paste_back(view, theta_BP23, config), centres_BP2, size)
            tallies[size].add_batch(pasted_BHW, within(batch.labels_BHW, centres_BP2, size), batch.sizes_B2)
    if args.pictures:
        common.save_picture(args.pictures / f"{NAME}.jpg", tile(cells, NUM_PARTS, 100))
    rows = []
    for size in configs:
        mean = float(np.mean(errors[size])) if errors[size] else None
        row = {"size": size, "error": mean, "worst": worst[size], "f1": tallies[size].f1()}
        rows.append({**row, "strict": tallies[size].scores()["strict"]})
    return common.write(NAME, args, argv, {"faces": len(faces), "parts": NUM_PARTS, "rows": rows}, table)


def table(result: Result) -> str:
    """Markdown: one line for each size."""
    rows = [[row["size"], row["error"], *row["f1"].values()] for row in result["rows"]]
    return markdown(["crop size", "differs from slicing by (of 255)", "F1 pasted back, overall", "strict"], rows)


if __name__ == "__main__":
    sys.exit(run_main(main))
