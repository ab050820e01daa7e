"""Hidden parts, the old cropper against the STN: how often and how far the windows miss (paper Fig. 5).

Each face's parts are covered one by one, in random order, with a patch of the photo's mean colour; all networks and
both croppers see only the covered photo. Labels under a patch still count.
"""

import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.batch import Batch
from data.images import make_image_256
from data.labels import NUM_PARTS
from data.view import View
from experiments import common
from experiments.common import Result
from models.stn_icnn.model import STNiCNN
from scoring import pictures
from utils import files
from utils.runtime import run_main
from utils.tables import markdown

NAME = "hidden_parts"
PATCH = 1.3  # side of a patch, in sides of the part's bounding box


def hiding_rank(present_P: np.ndarray, seed: int, index: int) -> np.ndarray:
    """When each part of a face is hidden: 0 for the first, …; ``NUM_PARTS`` for those that it lacks."""
    order = np.random.default_rng((seed, index)).permutation(NUM_PARTS)
    order = order[present_P[order]]
    rank_P = np.full(NUM_PARTS, NUM_PARTS)
    rank_P[order] = np.arange(len(order))
    return rank_P


def hide(batch: Batch, boxes_BP4: Tensor, hidden_BP: np.ndarray) -> Batch:
    """The batch with patches over the hidden parts (bool), in photos and small images; labels stay.

    boxes_BP4: see ``experiments.common.part_boxes``.
    """
    host, boxes_BP4 = batch.host, boxes_BP4.cpu()
    photos_BHW3, images_256_BSS3 = host.photos_BHW3.clone(), host.images_256_BSS3.clone()
    for b in np.flatnonzero(hidden_BP.any(1)):
        height, width = host.sizes_B2[b].tolist()
        photo = photos_BHW3[b, :height, :width].numpy()
        mean = photo.mean((0, 1)).round()
        for part in np.flatnonzero(hidden_BP[b]):
            left, top, right, bottom = boxes_BP4[b, part].tolist()
            grow_x, grow_y = ((PATCH - 1) / 2 * (high - low + 1) for low, high in ((left, right), (top, bottom)))
            rows = slice(max(0, round(top - grow_y)), round(bottom + grow_y) + 1)
            columns = slice(max(0, round(left - grow_x)), round(right + grow_x) + 1)
            photo[rows, columns] = mean
        images_256_BSS3[b] = torch.from_numpy(make_image_256(photo))
    covered = replace(host, photos_BHW3=photos_BHW3, images_256_BSS3=images_256_BSS3)
    return covered.to(batch.photos_BHW3.device)


def picture(model: STNiCNN, batch: Batch, covered: Batch, hidden_BP: np.ndarray) -> np.ndarray:
    """The paper's Fig. 5, a row for each face: covered photo, its rough mask, and what each cropper cuts out of the
    photo as it was for the part that is hidden (bool); uint8 (H, W, 3)."""
    rough_BHW = model.parse(covered, "none").labels_BHW
    crops = [View(batch).crops(model.windows_of(covered, crops), 81) for crops in common.CROPPERS.values()]
    cells = []
    for b, part in enumerate(hidden_BP.argmax(1)):
        height, width = batch.sizes_B2[b].tolist()
        cells += [covered.photos_BHW3[b, :height, :width].cpu().numpy()]
        cells += [pictures.colour(rough_BHW[b, :height, :width].cpu().numpy(), model.labels)]
        cells += [(crops_BP3SS[b, part] * 255).byte().permute(1, 2, 0).cpu().numpy() for crops_BP3SS in crops]
    return pictures.tile(cells, 4, 160)


def main(argv: list[str] | None = None) -> int:
    cli = common.checkpoint_parser(__doc__, random=True)
    cli.add_argument("--pictures", type=Path, metavar="DIR", help="also save pictures of the first faces, as in Fig. 5")
    args = common.parse(cli, argv)
    model, faces, machine = common.load(args, STNiCNN)
    keys = [(count, cropper) for count in range(NUM_PARTS + 1) for cropper in common.CROPPERS]
    misses = {key: common.Misses() for key in keys}
    tallies = {key: common.Tally(model.labels) for key in keys}
    with common.inference(machine):
        for batch in common.batches(faces, machine, args.batch_size):
            boxes_BP4, truth_BP23 = common.part_boxes(batch.labels_BHW), model.windows_of(batch, "truth")
            known = zip(batch.present_BP.cpu().numpy(), batch.index_B.tolist(), strict=True)
            rank_BP = np.array([hiding_rank(present_P, args.seed, index) for present_P, index in known])
            for count in range(NUM_PARTS + 1):
                hidden_BP = rank_BP < count
                covered = hide(batch, boxes_BP4, hidden_BP)
                if args.pictures and count == 1 and 0 in batch.index_B:
                    drawn = Image.fromarray(picture(model, batch, covered, hidden_BP))
                    files.write_bytes(args.pictures / f"{NAME}.jpg", pictures.encode(drawn, "JPEG", quality=90))
                for name, crops in common.CROPPERS.items():
                    labels_BHW, theta_BP23 = model.parse(covered, crops)
                    assert theta_BP23 is not None  # both croppers make windows
                    misses[count, name].add(theta_BP23, truth_BP23, boxes_BP4, batch.sizes_B2, batch.present_BP)
                    tallies[count, name].add_batch(labels_BHW, batch.labels_BHW, batch.sizes_B2)
    rows = [
        {"hidden": count, "cropper": name, "windows": misses[count, name].summary(), "f1": tallies[count, name].f1()}
        for count, name in keys
    ]
    return common.write(NAME, args, argv, {"faces": len(faces), "rows": rows}, table)


def table(result: Result) -> str:
    """Markdown: one line for each number of hidden parts."""
    groups: dict[int, list[list[object]]] = {}
    for row in result["rows"]:
        groups.setdefault(row["hidden"], []).append([(row["windows"] or {}).get("miss_rate"), *row["f1"].values()])
    header = [f"{which}, {name}" for which in ("misses", *common.HEADLINES) for name in common.CROPPERS]
    rows = [[hidden, *chain(*zip(*group, strict=True))] for hidden, group in groups.items()]
    return markdown(["hidden", *header], rows, 3)


if __name__ == "__main__":
    sys.exit(run_main(main))
