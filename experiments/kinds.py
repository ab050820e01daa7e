"""Which faces a parser fails on: F1 by kind of face (glasses, hats, hidden parts, turned heads, skin, open mouths).

The kinds are read off the true masks and the photo; nothing is labelled by hand, and a face can be of several.
"""

import sys
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data.labels import PARTS
from data.loaders import Faces
from experiments import common
from experiments.common import Result
from models.parser import FaceParser
from scoring.evaluation import score_faces
from scoring.metrics import headline, scores
from utils.errors import InputError
from utils.runtime import run_main
from utils.tables import markdown

NAME = "kinds"
BROW1, BROW2, EYE1, EYE2, NOSE, MOUTH = range(len(PARTS))
LUMA_3 = (0.299, 0.587, 0.114)


class Traits(NamedTuple):
    """What the masks and the photo say of each face of a split; NaN for what they do not.

    labels_NK: whether a label of the data set is in its mask (bool). present_NP: whether a part is (bool).
    turn_N: how far the nose lies off the middle between the eyes, as a share of their distance. brightness_N: mean luma
    of the skin, in [0, 1].
    """

    labels_NK: np.ndarray
    present_NP: np.ndarray
    turn_N: np.ndarray
    brightness_N: np.ndarray


def measure(faces: Faces) -> Traits:
    """The traits of every face. Raises InputError for label sets that lack a part."""
    names = faces.data_labels.names
    if not faces.labels.part_ids:
        raise InputError(f"label set {faces.labels.name} lacks some of the six parts: choose another --checkpoint")
    skin = [label for label, name in enumerate(names) if name == "skin"]
    present_NP, centres_NP2, _ = faces.parts()
    centres_NP2 = centres_NP2.astype(np.float64)
    eyes_N = present_NP[:, EYE1] & present_NP[:, EYE2]
    along_N2 = np.where(eyes_N[:, None], centres_NP2[:, EYE2] - centres_NP2[:, EYE1], np.nan)
    distance_N = np.linalg.norm(along_N2, axis=1)
    to_nose_N2 = centres_NP2[:, NOSE] - centres_NP2[:, [EYE1, EYE2]].mean(1)
    turn_N = np.abs((to_nose_N2 * along_N2).sum(1)) / distance_N**2
    labels_NK = np.zeros((len(faces), len(names)), bool)
    brightness_N = np.full(len(faces), np.nan)
    for k in tqdm(range(len(faces)), disable=None, leave=False):
        ids_HW = faces.ids(k)
        labels_NK[k] = np.bincount(ids_HW.ravel(), minlength=len(names)) > 0
        skin_N3 = faces.photo(k)[np.isin(ids_HW, skin)]
        if len(skin_N3):
            brightness_N[k] = (skin_N3 @ LUMA_3).mean() / 255
    return Traits(labels_NK, present_NP, np.where(present_NP[:, NOSE], turn_N, np.nan), brightness_N)


def kinds(traits: Traits, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Title of a kind -> its faces (bool). names: the data set's labels. Fifths are the split's own."""
    low, high = np.nanquantile(traits.brightness_N, (0.2, 0.8)) if np.isfinite(traits.brightness_N).any() else (0, 1)

    def labelled(*wanted: str) -> np.ndarray:
        """The faces whose masks hold one of these labels (bool); none where the data set does not have it."""
        return np.any(traits.labels_NK[:, np.isin(names, wanted)], axis=1)

    open_N = labelled("mouth", "inner_mouth")
    return {
        "all": np.ones(len(traits.turn_N), bool),
        "glasses": labelled("eye_g"),
        "hat": labelled("hat"),
        "an eye hidden": ~traits.present_NP[:, [EYE1, EYE2]].all(1),
        "a brow hidden": ~traits.present_NP[:, [BROW1, BROW2]].all(1),
        "head turned": traits.turn_N > 0.25,
        "mouth open": open_N,
        "mouth closed": ~open_N & traits.present_NP[:, MOUTH],
        "skin in the darkest fifth": traits.brightness_N <= low,
        "skin in the brightest fifth": traits.brightness_N >= high,
    }


def main(argv: list[str] | None = None) -> int:
    args = common.parse(common.checkpoint_parser(__doc__), argv)
    model, faces, machine = common.load(args, FaceParser)
    found = kinds(measure(faces), faces.data_labels.names)
    matrices_NKK = score_faces(model, faces, machine, args.batch_size)
    rows = []
    for kind, chosen_N in found.items():
        result = scores(matrices_NKK[chosen_N].sum(0), model.labels)
        rows.append({"kind": kind, "faces": int(chosen_N.sum()), "f1": headline(result)})
    rows = [row for row in rows if row["faces"]]
    return common.write(NAME, args, argv, {"faces": len(faces), "rows": rows}, table)


def table(result: Result) -> str:
    """Markdown: one line for each kind."""
    rows = [[row["kind"], row["faces"], *map(row["f1"].get, common.HEADLINES)] for row in result["rows"]]
    return markdown(["kind of face", "faces", *common.HEADLINES], rows, 3)


if __name__ == "__main__":
    sys.exit(run_main(main))
