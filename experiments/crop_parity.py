"""Crops of odd against even sides (paper Fig. 7, 8). Nothing is trained: windows of as many photo pixels as samples.

An odd window around a pixel samples pixels; an even one samples between them. Compared are the photo's crops with plain
array slicing, and the true labels with themselves, cropped (nearest) and pasted back.
"""

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from data.labels import NUM_PARTS, PART_LABELS
from data.loading import Batch
from experiments import common
from models.grid import crop_labels
from models.parts import part_targets
from models.stn_icnn import STNiCNN, STNiCNNConfig
from utils import options, runtime
from utils.errors import InputError
from utils.metrics import confusion_matrix, scores
from utils.parsing import label_crops
from utils.runtime import run_main

NAME = "crop_parity"
CERTAIN = 1e4  # a logit whose softmax is 1


def slices(photo_HW3: np.ndarray, centres_P2: np.ndarray, size: int) -> np.ndarray:
    """Windows by array slicing, zeros outside: (6, size, size, 3). An even one begins size / 2 before its centre."""
    padded = np.pad(photo_HW3, ((size, size), (size, size), (0, 0)))
    corners = centres_P2.astype(int) + size - size // 2
    return np.stack([padded[y : y + size, x : x + size] for x, y in corners])


def within(labels_BHW: Tensor, centres_BP2: Tensor, size: int) -> Tensor:
    """The labels with every part erased outside its own window, whose border passes at (size - 1) / 2 pixels."""
    height, width = labels_BHW.shape[-2:]
    kept_BHW = torch.zeros_like(labels_BHW)
    y_H, x_W = torch.arange(height, device=labels_BHW.device), torch.arange(width, device=labels_BHW.device)
    for part, labels in enumerate(PART_LABELS):
        x_B1, y_B1 = centres_BP2[:, part, :1], centres_BP2[:, part, 1:]
        near_BH, near_BW = ((ticks - centre).abs() <= (size - 1) / 2 for ticks, centre in ((y_H, y_B1), (x_W, x_B1)))
        part_BHW = (labels_BHW >= labels[0]) & (labels_BHW <= labels[-1])
        kept_BHW += labels_BHW * (part_BHW & near_BH[:, :, None] & near_BW[:, None])
    return kept_BHW


def paste_back(model: STNiCNN, batch: Batch, theta_BP23: Tensor, padded_BP23: Tensor) -> Tensor:
    """The true labels, cropped and pasted: labels_BHW."""
    labels_BPSS = crop_labels(batch.labels_BHW, theta_BP23, model.config.crop_size, batch.sizes_B2)
    logits = [
        CERTAIN * F.one_hot(target_BSS, 1 + len(labels)).permute(0, 3, 1, 2).float()
        for target_BSS, labels in zip(part_targets(labels_BPSS), PART_LABELS, strict=True)
    ]
    return model.paste_labels(logits, padded_BP23, *batch.labels_BHW.shape[-2:])


def main(argv: list[str] | None = None) -> int:
    parser = common.parser(__doc__, batch_size=8)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[80, 81, 126, 127], metavar="N", help="sides of the windows, pixels"
    )
    args = common.parse(parser, argv)
    device = runtime.pick_device(args.device)
    try:
        models = {size: STNiCNN(STNiCNNConfig(crop_size=size)).to(device).eval() for size in args.sizes}
    except ValueError as error:
        raise InputError(f"--sizes {' '.join(map(str, args.sizes))}: {error}") from error
    for model in models.values():
        model.parts = nn.Identity()  # type: ignore[assignment]  # crops are what would be labelled
    faces = options.open_split(args, args.split)
    errors: dict[int, list[float]] = {size: [] for size in models}
    worst = dict.fromkeys(models, 0.0)
    matrices = {size: np.zeros((9, 9), np.int64) for size in models}
    bar = tqdm(common.batches(args, faces, device), total=-(-len(faces) // args.batch_size), disable=None, leave=False)
    with torch.inference_mode():
        for batch in bar:
            batch = replace(batch, centres_BP2=batch.centres_BP2.round())
            for size, model in models.items():
                crops_BP3SS, theta_BP23, padded_BP23 = label_crops(model, batch, "truth")
                crops_BPSS3 = torch.as_tensor(crops_BP3SS).permute(0, 1, 3, 4, 2).cpu().numpy() * 255
                for b, (photo, centres, present) in enumerate(
                    zip(batch.photos_BHW3.cpu().numpy(), batch.centres_BP2.cpu().numpy(), batch.present_BP, strict=True)
                ):
                    difference = np.abs(crops_BPSS3[b] - slices(photo, centres, size))[present.cpu().numpy()]
                    errors[size].extend(difference.mean((1, 2, 3)).tolist())
                    worst[size] = max(worst[size], float(difference.max(initial=0)))
                pasted_BHW = paste_back(model, batch, theta_BP23, padded_BP23)
                true_BHW = within(batch.labels_BHW, batch.centres_BP2, size)
                matrices[size] += confusion_matrix(within(pasted_BHW, batch.centres_BP2, size), true_BHW)
    rows = []
    for size in models:
        result = scores(matrices[size])
        mean = float(np.mean(errors[size])) if errors[size] else None
        row = {"size": size, "error": mean, "worst": worst[size], "f1": common.headline(result)}
        rows.append({**row, "strict": result["strict"]})
    numbers = {"faces": len(faces), "split": args.split, "parts": NUM_PARTS, "rows": rows}
    common.write(NAME, NAME, args, argv, numbers, draw, table)
    return 0


def table(result: dict[str, Any]) -> str:
    """Markdown: one line for each size."""
    header = ["crop size", "parity", "differs from slicing by (of 255)", "at most", "F1 pasted back, overall", "strict"]
    rows = [
        [row["size"], "odd" if row["size"] % 2 else "even", row["error"], row["worst"], *row["f1"].values()]
        for row in result["rows"]
    ]
    return common.markdown(header, rows)


def draw(result: dict[str, Any]) -> Figure:
    """Bars for each size: error against slicing, F1 of labels pasted back."""
    figure, (off, f1) = common.panels(2)
    rows = result["rows"]
    names = [str(row["size"]) for row in rows]
    colours = ["tab:blue" if row["size"] % 2 else "tab:orange" for row in rows]
    off.bar(names, [row["error"] or 0 for row in rows], color=colours)
    off.set(title="crop against array slicing", ylabel="mean difference, of 255", xlabel="crop size (blue: odd)")
    means = [row["f1"]["strict"] or 0 for row in rows]
    f1.bar(names, means, color=colours)
    f1.set(title="true labels cropped and pasted back", ylabel="strict mean F1", xlabel="crop size (blue: odd)")
    f1.set_ylim(max(0.0, min(means) - 0.02), 1.0)
    return figure


if __name__ == "__main__":
    sys.exit(run_main(main))
