"""Which faces a model fails on: F1 by kind of face (glasses, hats, hidden parts, turned heads, dark skin, open mouths).

The kinds are read off the true masks and the photo; nothing is labelled by hand, and a face can be of several.
"""

import sys
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from data.labels import PARTS, TABLES
from data.loading import Faces, evaluation_batches
from experiments import common
from utils import engine, runtime
from utils.metrics import scores
from utils.parsing import label_batch
from utils.runtime import run_main

NAME = "kinds"
SHOWN = ("eyes", "brows", "nose", "mouth")
BROW1, BROW2, EYE1, EYE2, NOSE, MOUTH = range(len(PARTS))
LUMA_3 = (0.299, 0.587, 0.114)


class Traits(NamedTuple):
    """What is known of each face of a split.

    classes_NC: whether a class of the data set is in its masks (bool). present_NP: whether a part is (bool).
    turn_N: how far the nose lies off the middle between the eyes, as a share of their distance. roll_N: degrees from
    upright, by the eyes. brightness_N: mean luma of the skin, in [0, 1]. Of what cannot be told, NaN.
    """

    classes_NC: np.ndarray
    present_NP: np.ndarray
    turn_N: np.ndarray
    roll_N: np.ndarray
    brightness_N: np.ndarray


def measure(faces: Faces) -> Traits:
    """The traits of every face."""
    names = TABLES[faces.dataset].names
    present_NP, centres_NP2 = np.array(faces.records["present"]), faces.records["centre"].astype(np.float64)
    eyes_N = present_NP[:, EYE1] & present_NP[:, EYE2]
    along_N2 = np.where(eyes_N[:, None], centres_NP2[:, EYE2] - centres_NP2[:, EYE1], np.nan)
    distance_N = np.linalg.norm(along_N2, axis=1)
    to_nose_N2 = centres_NP2[:, NOSE] - centres_NP2[:, [EYE1, EYE2]].mean(1)
    turn_N = np.abs((to_nose_N2 * along_N2).sum(1)) / distance_N**2
    classes_NC = np.zeros((len(faces), len(names)), bool)
    brightness_N = np.full(len(faces), np.nan)
    for k in tqdm(range(len(faces)), disable=None, leave=False):
        classes_HW = faces.classes(k)
        classes_NC[k] = np.bincount(classes_HW.ravel(), minlength=len(names))[: len(names)] > 0
        skin_N3 = faces.photo(k)[classes_HW == names.index("skin")]
        if len(skin_N3):
            brightness_N[k] = (skin_N3 @ LUMA_3).mean() / 255
    return Traits(
        classes_NC,
        present_NP,
        np.where(present_NP[:, NOSE], turn_N, np.nan),
        np.rad2deg(np.abs(np.arctan2(along_N2[:, 1], along_N2[:, 0]))),
        brightness_N,
    )


def holding(traits: Traits, names: tuple[str, ...], name: str) -> np.ndarray:
    """The faces whose masks hold a class (bool); none where the data set does not know it."""
    return traits.classes_NC[:, names.index(name)] if name in names else np.zeros(len(traits.classes_NC), bool)


def kinds(traits: Traits, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Title of a kind -> its faces (bool). Fifths are the split's own."""
    low, high = np.nanquantile(traits.brightness_N, (0.2, 0.8)) if np.isfinite(traits.brightness_N).any() else (0, 1)
    open_N = holding(traits, names, "mouth") | holding(traits, names, "inner_mouth")
    return {
        "all": np.ones(len(traits.turn_N), bool),
        "glasses": holding(traits, names, "eye_g"),
        "hat": holding(traits, names, "hat"),
        "an eye hidden": ~traits.present_NP[:, [EYE1, EYE2]].all(1),
        "a brow hidden": ~traits.present_NP[:, [BROW1, BROW2]].all(1),
        "head turned": traits.turn_N > 0.25,
        "head tilted by more than 10°": traits.roll_N > 10,
        "mouth open": open_N,
        "mouth closed": ~open_N & traits.present_NP[:, MOUTH],
        "skin in the darkest fifth": traits.brightness_N <= low,
        "skin in the brightest fifth": traits.brightness_N >= high,
    }


def main(argv: list[str] | None = None) -> int:
    args = common.parse(common.checkpoint_parser(__doc__, batch_size=8), argv)
    model, faces, device = common.load(args)
    batches = evaluation_batches(faces, args.batch_size, workers=args.workers)
    bar = tqdm(batches, disable=None, leave=False)
    with torch.inference_mode(), runtime.autocast(device, args.amp):
        _, matrices_N99 = engine.evaluate(lambda batch: label_batch(model, batch), bar, device)
    found = kinds(measure(faces), TABLES[faces.dataset].names)
    rows = []
    for kind, chosen_N in found.items():
        result = scores(matrices_N99.numpy()[chosen_N].sum(0))
        f1 = {**common.headline(result), **{group: result["paper"][group] for group in SHOWN}}
        rows.append({"kind": kind, "faces": int(chosen_N.sum()), "f1": f1})
    rows = [row for row in rows if row["faces"]]
    common.write(NAME, NAME, args, argv, {"faces": len(faces), "split": args.split, "rows": rows}, draw, table)
    return 0


def table(result: dict[str, Any]) -> str:
    """Markdown: one line for each kind."""
    columns = ("overall", "strict", *SHOWN)
    rows = [[row["kind"], row["faces"], *(row["f1"][name] for name in columns)] for row in result["rows"]]
    return common.markdown(["kind of face", "faces", *columns], rows, 3)


def draw(result: dict[str, Any]) -> Figure:
    """Bars of both F1 for each kind."""
    titles = [f"{row['kind']} ({row['faces']})" for row in result["rows"]]
    return common.bars(result, titles)


if __name__ == "__main__":
    sys.exit(run_main(main))
