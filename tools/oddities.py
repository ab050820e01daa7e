"""What looks wrong in one face of many: parts in strange places, a photo twice. For ``tools.check``."""

from typing import NamedTuple

import cv2
import numpy as np

from data.cache import label_geometry, part_geometry
from data.images import make_thumb
from data.labels import LabelSet

FAR = 6.5  # distances from the usual place, in those of the typical face
GREY, BITS = 32, 8  # sides of the small grey photo, and of the block of its cosine transform that is hashed
DIFFERING_BITS = 6  # of 64, at most, between two copies of a photo
MARKED, MIRRORED = [2, 3, 4, 5], [3, 2, 4, 5]  # the parts that a detector marks, and with the eyes exchanged
ALIKE = 0.95  # least correlation of the small grey photos of two copies
CHUNK = 1024  # faces that are compared with all others at once


class PhotoHash(NamedTuple):
    """By what a photo is known again. bits_64: bool, a perceptual hash. grey_NN: uint8, the photo in small."""

    bits_64: np.ndarray
    grey_NN: np.ndarray


def part_places(ids_HW: np.ndarray, labels: LabelSet) -> np.ndarray:
    """Centroids of the parts as shares of the photo's sides: (P, 2), NaN where absent. ids_HW: ids of ``labels``."""
    record = label_geometry(ids_HW, len(labels))
    (present_P,), (centres_P2,), _ = part_geometry(record[None], labels.part_ids)
    return np.where(present_P[:, None], centres_P2 / ids_HW.shape[::-1], np.nan)


def off_face(places_P2: np.ndarray, points_N52: np.ndarray, shape: tuple[int, int]) -> float:
    """How far a label map lies from the nearest of a photo's N faces: the median distance of eyes, nose and mouth from
    their points, in eye distances of that face; in profiles in distances of eyes and mouth. NaN
    without two parts or a face.

    places_P2: see ``part_places``. points_N52: as of ``faces.detect.Detection``, in shares of the photo's sides.
    shape: height and width of the label map. Exchanged eyes are no distance.
    """
    scale_2 = np.array(shape[::-1])
    marks_N42 = np.stack([*points_N52[:, :3].swapaxes(0, 1), points_N52[:, 3:].mean(1)], 1) * scale_2
    across_N = np.linalg.norm(marks_N42[:, 0] - marks_N42[:, 1], axis=1)
    down_N = np.linalg.norm(marks_N42[:, :2].mean(1) - marks_N42[:, 3], axis=1)
    unit_N = np.maximum(across_N, 0.9 * down_N)
    seen_2N4 = np.array([np.linalg.norm(places_P2[ids] * scale_2 - marks_N42, axis=2) for ids in (MARKED, MIRRORED)])
    if np.isfinite(places_P2[MARKED, 0]).sum() < 2 or not len(points_N52):
        return np.nan
    return float((np.nanmedian(seen_2N4, 2) / unit_N).min())


def far_parts(places_NP2: np.ndarray) -> np.ndarray:
    """Which parts lie far from where they usually do: bool (N, P). places_NP2: see ``part_places``.

    A part's usual place is the median of its centroids, its spread the median distance from there, and a part is far
    beyond 6.5 times that. Parts that hardly move, as the eyes that a data set is aligned by, count with the median
    spread of all parts.
    """
    far_NP = np.zeros(places_NP2.shape[:2], bool)
    known_P = ~np.isnan(places_NP2).all((0, 2))
    places_NK2 = places_NP2[:, known_P]
    if places_NK2.size:
        distance_NK = np.linalg.norm(places_NK2 - np.nanmedian(places_NK2, 0), axis=2)
        spread_K = np.nanmedian(distance_NK, 0)
        far_NP[:, known_P] = distance_NK > FAR * np.maximum(spread_K, np.median(spread_K))
    return far_NP


def photo_hash(photo_HW3: np.ndarray) -> PhotoHash:
    """The hash of a photo, or of its thumbnail, which gives the same: uint8 (H, W, 3). Its bits say which of the
    lowest frequencies of the grey thumbnail are above the median."""
    grey_TT = cv2.cvtColor(make_thumb(photo_HW3), cv2.COLOR_RGB2GRAY)
    grey_NN = cv2.resize(grey_TT, (GREY, GREY), interpolation=cv2.INTER_AREA)
    waves_64 = cv2.dct(grey_NN.astype(np.float32))[:BITS, :BITS].ravel()
    return PhotoHash(waves_64 > np.median(waves_64[1:]), grey_NN)  # the first is the mean brightness


def copies(ones: list[PhotoHash], others: list[PhotoHash]) -> list[tuple[int, int]]:
    """(index in the first list, index in the second) of photos that are nearly the same."""
    if not ones or not others:
        return []
    signs_N64, signs_M64 = (2 * np.array([p.bits_64 for p in some], np.float32) - 1 for some in (ones, others))
    found = []
    for start in range(0, len(ones), CHUNK):
        agreeing_NM = signs_N64[start : start + CHUNK] @ signs_M64.T  # bits that agree less those that differ
        for i, j in np.argwhere(agreeing_NM >= BITS * BITS - 2 * DIFFERING_BITS):
            if _correlation(ones[start + i].grey_NN, others[j].grey_NN) >= ALIKE:
                found.append((start + int(i), int(j)))
    return found


def _correlation(one_NN: np.ndarray, other_NN: np.ndarray) -> float:
    """Of two grey pictures' pixels, -1 to 1; of flat ones 1 if they are the same, else 0."""
    a_N, b_N = (grey.ravel() - grey.mean() for grey in (one_NN, other_NN))
    scale = np.linalg.norm(a_N) * np.linalg.norm(b_N)
    return float(a_N @ b_N / scale) if scale > 0 else float(np.array_equal(one_NN, other_NN))
