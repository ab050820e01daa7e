"""What looks wrong in one face of many: parts in strange places, a face twice. For ``tools.check``."""

import cv2
import numpy as np

from data.cache import label_geometry, part_geometry
from data.images import resize_labels, warp_frame
from data.labels import LabelSet
from faces.align import frame_of
from faces.detect import Detection

FAR = 6.5  # distances from the usual place, in those of the typical face
GREY, BITS = 32, 8  # sides of a small grey picture, and of the block of its cosine transform that is hashed
DIFFERING_BITS = 12  # of 64, at most, between two copies of a face
FACE_SIDE = 0.8  # of the square that is hashed, in sides of the face's frame
ALIKE = 0.96  # least correlation of the squares of two copies, once one is warped to fit the other
CHUNK = 1024  # faces that are compared with all others at once
SMALL = 64  # side of the faces and of the label maps that are compared with one another
KINDS = (1, 1, 2, 2, 3, 4)  # of the six parts; left and right count as one, as sides are checked elsewhere
KNOWN = 0.75  # least median agreement at which single faces are reported: below it, such photos confuse the parser
POOR, BETTER = 0.6, 0.05  # a share of the median agreement, and by how much another photo's label map agrees better


def part_places(ids_HW: np.ndarray, labels: LabelSet) -> np.ndarray:
    """Centroids of the parts as shares of the photo's sides: (P, 2), NaN where absent. ids_HW: ids of ``labels``."""
    record = label_geometry(ids_HW, len(labels))
    (present_P,), (centres_P2,), _ = part_geometry(record[None], labels.part_ids)
    return np.where(present_P[:, None], centres_P2 / ids_HW.shape[::-1], np.nan)


def small_parts(ids_HW: np.ndarray, labels: LabelSet) -> np.ndarray:
    """A label map in small, of brows, eyes, nose and mouth alone: uint8 (64, 64), 1 to 4. ids_HW: ids of ``labels``."""
    lut = np.zeros(256, np.uint8)
    for ids, kind in zip(labels.part_ids, KINDS, strict=True):
        lut[list(ids)] = kind
    return lut[resize_labels(ids_HW, SMALL, SMALL)]


def agreement(one_SS: np.ndarray, others_NSS: np.ndarray) -> np.ndarray:
    """F1 of the pixels of a small label map in each of the others: (N,)."""
    hits_N = ((others_NSS == one_SS) & (one_SS > 0)).sum((1, 2))
    return 2 * hits_N / np.maximum(1, (one_SS > 0).sum() + (others_NSS > 0).sum((1, 2)))


def misfits(parsed_NSS: np.ndarray, own_NSS: np.ndarray) -> tuple[float, list[tuple[int, int | None]]]:
    """The median agreement of a parser and the label maps, 0 to 1, NaN of none; and, unless it is below ``KNOWN``, the
    faces whose label map is hardly theirs, and whose agrees better, if any does. parsed_NSS: what the parser sees in
    each photo, own_NSS: the label maps, both as of ``small_parts``.

    Of 125 aligned faces of CelebAMask-HQ none is found while its label map is its own; of faces whose label maps are
    exchanged all are, and 92 % of those whose own label map is not among the others.
    """
    fits_N = np.array([agreement(*pair)[0] for pair in zip(parsed_NSS, own_NSS[:, None], strict=True)])
    usual = float(np.median(fits_N)) if len(fits_N) else np.nan
    found: list[tuple[int, int | None]] = []
    for n in np.flatnonzero(fits_N < usual - BETTER) if usual >= KNOWN else ():
        others_N = agreement(parsed_NSS[n], own_NSS)
        best = int(others_N.argmax())
        if others_N[best] > max(fits_N[n] + BETTER, POOR * usual):
            found.append((int(n), best))
        elif fits_N[n] < POOR * usual:
            found.append((int(n), None))
    return usual, found


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


def face_square(photo_HW3: np.ndarray, face: Detection) -> np.ndarray:
    """A face in small, uint8 (64, 64), grey, by which ``copies`` knows a photo again, also turned, cropped or
    resized."""
    matrix_23 = frame_of(face.points_52).matrix_23 * [FACE_SIDE, FACE_SIDE, 1]
    grey_TT = cv2.cvtColor(warp_frame(photo_HW3, matrix_23), cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey_TT, (SMALL, SMALL), interpolation=cv2.INTER_AREA)


def _signs(squares_NSS: np.ndarray) -> np.ndarray:
    """A perceptual hash of each face's square, (N, 64) float32: 1 for those of its lowest frequencies that are above
    their median, else -1."""
    small = [cv2.resize(one, (GREY, GREY), interpolation=cv2.INTER_AREA).astype(np.float32) for one in squares_NSS]
    waves_N64 = np.array([cv2.dct(one_SS)[:BITS, :BITS].ravel() for one_SS in small])
    medians_N1 = np.median(waves_N64[:, 1:], 1, keepdims=True)  # the first is the mean brightness
    return np.where(waves_N64 > medians_N1, np.float32(1), np.float32(-1))


def copies(ones_NSS: np.ndarray, others_MSS: np.ndarray) -> list[tuple[int, int]]:
    """(index of the first kind, index of the second) of faces whose photos are nearly the same, but for a small warp;
    of each its ``face_square``.

    Of 100 photos that were turned by up to 10 degrees, sheared, shifted and scaled by up to a fifth, 92 are found, and
    none of 62,250 pairs of other people.
    """
    if not len(ones_NSS) or not len(others_MSS):
        return []
    signs_N64, signs_M64 = _signs(ones_NSS), _signs(others_MSS)
    found = []
    for start in range(0, len(ones_NSS), CHUNK):
        agreeing_NM = signs_N64[start : start + CHUNK] @ signs_M64.T  # bits that agree less those that differ
        for i, j in np.argwhere(agreeing_NM >= BITS * BITS - 2 * DIFFERING_BITS):
            if _warped_correlation(ones_NSS[start + i], others_MSS[j]) >= ALIKE:
                found.append((start + int(i), int(j)))
    return found


def _warped_correlation(one_SS: np.ndarray, other_SS: np.ndarray) -> float:
    """Of two grey pictures' pixels, -1 to 1, after the affine map that makes it greatest; 0 where none is found."""
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 1e-4)
    try:
        identity_23, all_SS = np.eye(2, 3, dtype=np.float32), np.ones_like(one_SS)
        return cv2.findTransformECC(one_SS, other_SS, identity_23, cv2.MOTION_AFFINE, stop, all_SS, 3)[0]
    except cv2.error:
        return 0.0
