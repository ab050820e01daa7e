"""What windows around the true parts are worth: do better windows help, or do annotated windows leak the answer?

A true window is 1.6 times the annotated part, so its edges say how far the annotation goes. Windows around the parts
that a first look found lie nearer to the true ones than the localizer's, but say nothing of the annotation. True
windows that are off by what another face's are off by are as near, but no longer say it.
"""

import sys
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from data.batch import Batch
from data.view import Parts
from experiments import common
from experiments.common import Result
from models.stn_icnn.baseline import mask_geometry
from models.stn_icnn.model import STNiCNN
from models.stn_icnn.windows import target_theta
from utils.runtime import run_main
from utils.tables import markdown

NAME = "true_windows"
LOCALIZER, SECOND, TRUE = "localizer", "second pass", "true"
ALIEN_LOCALIZER, ALIEN_SECOND = (f"{TRUE}, displaced as by the {where}" for where in (LOCALIZER, SECOND))


def displaced(truth_NP23: Tensor, found_NP23: Tensor, present_NP: Tensor) -> Tensor:
    """True windows of each face, off by what the found ones are off by in the face before it that has the part.

    A window's offset is measured in sides of the true one, its size as a ratio. Windows of parts that a face lacks
    (present_NP, bool) stay the found ones. Both thetas are upright, in the frame of each photo.
    """
    true_NP2, found_NP2 = (torch.diagonal(theta[..., :2], dim1=-2, dim2=-1) for theta in (truth_NP23, found_NP23))
    offset_NP2, ratio_NP2 = (found_NP23 - truth_NP23)[..., 2] / true_NP2, found_NP2 / true_NP2
    for part, present_N in enumerate(present_NP.T):
        for off_NP2 in (offset_NP2, ratio_NP2):
            off_NP2[present_N, part] = off_NP2[present_N, part].roll(1, 0)
    centre_NP2 = truth_NP23[..., 2] + offset_NP2 * true_NP2
    return torch.cat([torch.diag_embed(ratio_NP2 * true_NP2), centre_NP2.unsqueeze(-1)], -1)


def distances(theta_NP23: Tensor, truth_NP23: Tensor, sizes_N2: Tensor, present_NP: Tensor) -> dict[str, float]:
    """How far windows are off, means over the parts that are there: their centres in pixels of the photo, and their
    sides as a share of the true ones."""
    (centres, sides), (true_centres, true_sides) = (
        common.window_boxes(theta, sizes_N2) for theta in (theta_NP23, truth_NP23)
    )
    pixels_NP = (centres - true_centres).norm(dim=-1)
    share_NP = ((sides / true_sides).log().abs().exp() - 1).mean(-1)
    return {
        "pixels": round(float(pixels_NP[present_NP].mean()), 3),
        "sides": round(float(share_NP[present_NP].mean()), 4),
    }


class Looks(NamedTuple):
    """Windows of every face of a split, theta_NP23 by row of the table, and what they are compared by."""

    theta_NP23: dict[str, Tensor]
    sizes_N2: Tensor
    present_NP: Tensor


def find(model: STNiCNN, batches: Iterable[Batch]) -> Looks:
    """All windows that are compared."""
    found: dict[str, list[Tensor]] = {LOCALIZER: [], SECOND: [], TRUE: []}
    sizes, present = [], []
    for batch in batches:
        labels_BHW, theta_BP23 = model.parse(batch, "predicted")
        assert theta_BP23 is not None  # the localizer makes windows
        found[LOCALIZER].append(theta_BP23.float())
        found[SECOND].append(target_theta(Parts(*mask_geometry(labels_BHW)), batch.sizes_B2, model.config.windows))
        found[TRUE].append(model.windows_of(batch, "truth"))
        sizes.append(batch.sizes_B2)
        present.append(batch.present_BP)
    theta_NP23, present_NP = {name: torch.cat(parts) for name, parts in found.items()}, torch.cat(present)
    for alien, name in ((ALIEN_LOCALIZER, LOCALIZER), (ALIEN_SECOND, SECOND)):
        theta_NP23[alien] = displaced(theta_NP23[TRUE], theta_NP23[name], present_NP)
    return Looks(theta_NP23, torch.cat(sizes), present_NP)


def score(model: STNiCNN, batches: Iterable[Batch], theta_NP23: Tensor) -> dict[str, float | None]:
    """Both F1 of the part networks in the given windows."""
    tally = common.Tally(model.labels)
    for batch in batches:
        labels_BHW, _ = model.paste_whole(model.probs_in(batch, theta_NP23[batch.index_B]), batch)
        tally.add_batch(labels_BHW, batch.labels_BHW, batch.sizes_B2)
    return tally.f1()


def main(argv: list[str] | None = None) -> int:
    args = common.parse(common.checkpoint_parser(__doc__), argv)
    model, faces, machine = common.load(args, STNiCNN)
    batches = partial(common.batches, faces, machine, args.batch_size)
    with common.inference(machine):
        looks = find(model, batches("first look"))
        rows = []
        for name, theta_NP23 in looks.theta_NP23.items():
            off = distances(theta_NP23, looks.theta_NP23[TRUE], looks.sizes_N2, looks.present_NP)
            rows.append({"windows": name, "off": off, "f1": score(model, batches(name), theta_NP23)})
    return common.write(NAME, args, argv, {"faces": len(faces), "rows": rows}, table)


def table(result: Result) -> str:
    """Markdown: one line for each kind of windows, how far they are off, and both F1."""
    rows = [
        [row["windows"], f"{row['off']['pixels']:.1f}", f"{row['off']['sides']:.0%}", *row["f1"].values()]
        for row in result["rows"]
    ]
    return markdown(["windows", "centres off by, pixels", "sides off by", *common.HEADLINES], rows, 4)


if __name__ == "__main__":
    sys.exit(run_main(main))
