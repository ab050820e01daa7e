"""A photo with any number of faces: each is found, framed upright, parsed, and put back where it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.batch import framed_batch
from data.images import as_photo
from data.labels import LabelSet
from faces.align import Frame, frame_of, whole_photo
from faces.detect import Detection, Detector
from geometry.paste import Patch
from geometry.sampling import most_probable
from geometry.theta import window_corners
from models.parser import FaceParser, on_host
from scoring.pictures import draw_outlines, overlay
from utils import runtime
from utils.errors import InputError

Photo = str | PathLike | Image.Image | np.ndarray
Kept = tuple[tuple[Patch, np.ndarray], Frame, Detection | None]
WHICH = ("all", "largest")
# A face that the detector is less sure of than DOUBTED counts only where the parser's certainty is UNSURE or more;
# without a detection, a whole photo counts as a face where it is SURE or more.
DOUBTED, UNSURE, SURE = 0.9, 0.6, 0.85
EDGE = 1.03  # windows reach so far in their own coordinates, so that the outermost samples count as inside


@dataclass(frozen=True)
class Face:
    """A face in a photo; coordinates are pixels (x, y; centre of the first pixel: 0).

    frame: the square in which it was parsed. windows_P42: corners of the parser's windows, clockwise from the top left
    one of the upright face. areas, confidences: by the name of each label that the face shows, its pixels and the mean
    of their probabilities. detection: None where the whole photo was taken for a face.
    """

    frame: Frame
    windows_P42: np.ndarray
    areas: dict[str, int]
    confidences: dict[str, float]
    detection: Detection | None

    def report(self) -> dict[str, Any]:
        """The face as plain values, for JSON."""
        found = self.detection
        return {
            "box": None if found is None else [round(value, 1) for value in found.box],
            "points": None if found is None else np.round(found.points_52, 1).tolist(),
            "score": None if found is None else round(found.score, 3),
            "turned": round(self.frame.degrees, 1),
            "parts": {
                name: {"pixels": pixels, "confidence": round(self.confidences[name], 3)}
                for name, pixels in self.areas.items()
            },
        }


class Scene(NamedTuple):
    """What a photo shows.

    labels: what the ids mean. labels_HW: uint8; left and right are those of the upright face. owners_HW: uint16, which
    of ``faces`` a labelled pixel belongs to, from 1; 0 elsewhere. faces: largest first. probs_KHW: float16, the labels'
    probabilities, None unless asked for.
    """

    labels: LabelSet
    labels_HW: np.ndarray
    owners_HW: np.ndarray
    faces: list[Face]
    probs_KHW: np.ndarray | None


class TensorScene(NamedTuple):
    """``Scene`` as tensors on the parser's device, with the F faces that were kept.

    labels_HW: uint8. owners_HW: int32, which face a labelled pixel belongs to, from 1. probs_KHW: float32, of sum 1.
    frames_F23: float32, the faces' squares, as ``FaceParser.forward_framed`` takes them. theta_FP23: float32, the
    parser's windows in the frame of the photo. detections: None where the whole photo was taken for a face.
    """

    labels: LabelSet
    labels_HW: Tensor
    owners_HW: Tensor
    probs_KHW: Tensor
    frames_F23: Tensor
    theta_FP23: Tensor
    detections: list[Detection | None]


class SceneParser:
    """Finds and parses the faces of photos. which: "all" of them or the "largest" alone. batch_size: faces that the
    networks see at once, which limits the memory that a group photo takes.

    ``parse = SceneParser(...)``; ``scene = parse("photo.jpg")``.
    """

    def __init__(
        self, parser: FaceParser, detector: Detector, which: str = "all", amp: str = "off", batch_size: int = 8
    ) -> None:
        if which not in WHICH:
            raise InputError(f"faces must be {' or '.join(WHICH)}, not {which!r:.80}")
        self.parser, self.detector, self.which, self.amp = parser, detector, which, amp
        self.device, self.batch_size = next(parser.parameters()).device, batch_size

    @overload
    def __call__(self, photo: Photo, tensors: Literal[False] = False) -> Scene: ...
    @overload
    def __call__(self, photo: Photo, tensors: Literal[True]) -> TensorScene: ...
    def __call__(self, photo: Photo, tensors: bool = False) -> Scene | TensorScene:
        """photo: see ``data.images.as_photo``. tensors: as a ``TensorScene``. Raises InputError for anything else."""
        return self.parse([photo], tensors=True)[0] if tensors else self.parse([photo])[0]

    @overload
    def parse(self, photos: Sequence[Photo], keep_probs: bool = ..., tensors: Literal[False] = ...) -> list[Scene]: ...
    @overload
    def parse(
        self, photos: Sequence[Photo], keep_probs: bool = ..., *, tensors: Literal[True]
    ) -> list[TensorScene]: ...
    def parse(self, photos: Sequence[Photo], keep_probs: bool = False, tensors: bool = False) -> Any:
        """Parse photos, see ``data.images.as_photo``; those of one size are seen together. keep_probs: fill in
        ``Scene.probs_KHW``. tensors: give a ``TensorScene`` for each. Raises InputError for what is no photo."""
        arrays = [as_photo(photo, f"photos[{k}]" if len(photos) > 1 else "photo") for k, photo in enumerate(photos)]
        alike = len({array.shape for array in arrays}) == 1
        groups = [arrays] if alike else [[array] for array in arrays]
        return [
            scene
            for group in groups
            for scene in self.parse_found(group, [self.find(photo) for photo in group], keep_probs, tensors)
        ]

    def find(self, photo: np.ndarray) -> list[Detection]:
        """The faces of a photo that are to be parsed, largest first."""
        found = self.detector.find(photo)
        return found[:1] if self.which == "largest" else found

    def parse_found(
        self,
        photos: Sequence[np.ndarray],
        found: Sequence[Sequence[Detection]],
        keep_probs: bool = False,
        tensors: bool = False,
    ) -> list[Any]:
        """``parse`` of faces that are known. found: for each photo its faces."""
        frames = [[frame_of(face.points_52) for face in faces] for faces in found]
        labels, scenes = self.parser.labels, []
        compose = self._tensors if tensors else partial(compose_scene, labels)
        for photo, faces, places, patches in zip(
            photos, found, frames, self._patches(photos, frames, keep_probs, tensors), strict=True
        ):
            kept: list[Kept] = [
                (patch, place, face)
                for patch, place, face in zip(patches, places, faces, strict=True)
                if face.score >= DOUBTED or not labels.part_ids or certainty(patch[0], labels) >= UNSURE
            ]
            if not kept:
                kept = self._without_detection(photo, keep_probs, tensors)
            scenes.append(compose(photo.shape[:2], *(zip(*kept, strict=True) if kept else ([], [], []))))
        return scenes

    def _patches(
        self, photos: Sequence[np.ndarray], frames: list[list[Frame]], keep_probs: bool, tensors: bool
    ) -> list[list[tuple[Patch, np.ndarray]]]:
        """The patches of each photo's faces. tensors: with all probabilities, on the device."""
        if not any(frames):
            return [[] for _ in frames]
        matrices = [[frame.matrix_23 for frame in places] for places in frames]
        batch = framed_batch(list(photos), matrices, self.parser.labels).to(self.device)
        patches: list[tuple[Patch, np.ndarray]] = []
        with torch.inference_mode(), runtime.autocast(self.device, self.amp):
            for first in range(0, len(batch.images_256_BSS3), self.batch_size):
                faces = batch.part(slice(first, first + self.batch_size))
                patches += (
                    self.parser.patches(faces, True) if tensors else on_host(self.parser.patches(faces, keep_probs))
                )
        rest = iter(patches)
        return [[next(rest) for _ in places] for places in frames]

    def _without_detection(self, photo: np.ndarray, keep_probs: bool, tensors: bool) -> list[Kept]:
        """What a photo without a detected face shows: nothing, unless it is plainly a face from edge to edge."""
        frame = whole_photo(*photo.shape[:2])
        ((found,),) = self._patches([photo], [[frame]], keep_probs, tensors)
        return [] if certainty(found[0], self.parser.labels) < SURE else [(found, frame, None)]

    @torch.inference_mode(False)
    def _tensors(
        self,
        size: tuple[int, int],
        patches: Sequence[tuple[Patch, np.ndarray]],
        frames: Sequence[Frame],
        found: Sequence[Detection | None],
    ) -> TensorScene:
        """``compose_scene`` on the device."""
        probs_KHW = torch.zeros(len(self.parser.labels), *size, device=self.device)
        probs_KHW[0] = 1
        owners_HW = torch.zeros(size, dtype=torch.int32, device=self.device)
        for owner, (place, taken_YX, (patch, _)) in enumerate(zip(*shares(patches, size), patches, strict=True), 1):
            assert patch.probs_KYX is not None
            taken = torch.from_numpy(taken_YX).to(self.device)
            own_KYX = patch.probs_KYX / patch.probs_KYX.sum(0)  # where windows overlap, the sum is more than 1
            part_KYX = probs_KHW[:, place[0], place[1]]
            part_KYX.copy_(torch.where(taken, own_KYX, part_KYX))
            owned = owner * (patch.labels_YX > 0).int()
            owners_HW[place] = torch.where(taken, owned, owners_HW[place])
        thetas = np.stack([theta_P23 for _, theta_P23 in patches]) if patches else np.zeros((0, 0, 2, 3))
        squares = np.stack([frame.matrix_23 for frame in frames]) if frames else np.zeros((0, 2, 3))
        frames_F23, theta_FP23 = (torch.from_numpy(a).float().to(self.device) for a in (squares, thetas))
        labels_HW = most_probable(probs_KHW, 0)
        return TensorScene(self.parser.labels, labels_HW, owners_HW, probs_KHW, frames_F23, theta_FP23, list(found))


def drawn(photo_HW3: np.ndarray, scene: Scene, windows: bool = False, opacity: float = 0.5) -> np.ndarray:
    """The photo with its labels over it, uint8 (H, W, 3). windows: and with the parser's windows. opacity: of the
    labels' colours."""
    shown_HW3 = overlay(photo_HW3, scene.labels_HW, scene.labels, opacity)
    for face in scene.faces if windows else ():
        shown_HW3 = draw_outlines(shown_HW3, face.windows_P42, scene.labels)
    return shown_HW3


def certainty(patch: Patch, labels: LabelSet) -> float:
    """How sure a parser is that it sees a face: of each of the six parts the mean probability of its pixels, 0 where
    there are none, and of these the mean over the parts. 0 for label sets that lack a part."""
    areas_K, sums_K = _totals(patch.labels_YX.cpu().numpy(), patch.confidence_YX.cpu().numpy(), labels)
    parts = [sums_K[list(ids)].sum() / max(1, areas_K[list(ids)].sum()) for ids in labels.part_ids]
    return float(sum(parts) / max(1, len(parts)))


def _totals(ids_N: np.ndarray, confidence_N: np.ndarray, labels: LabelSet) -> tuple[np.ndarray, np.ndarray]:
    """Of each label its pixels and the sum of their probabilities."""
    ids_N, count = ids_N.ravel(), len(labels)
    return np.bincount(ids_N, minlength=count), np.bincount(ids_N, confidence_N.ravel(), minlength=count)


def compose_scene(
    labels: LabelSet,
    size: tuple[int, int],
    patches: Sequence[tuple[Patch, np.ndarray]],
    frames: Sequence[Frame],
    found: Sequence[Detection | None],
) -> Scene:
    """Put the patches of a photo's faces together. size: (height, width) of the photo.

    Where the windows of two faces overlap, the face with the nearest window centre decides about a pixel.
    """
    height, width = size
    labels_HW, owners_HW = np.zeros(size, np.uint8), np.zeros(size, np.uint16)
    confidence_HW = np.zeros(size, np.float32)
    probs_KHW = None
    if any(patch.probs_KYX is not None for patch, _ in patches):
        probs_KHW = np.zeros((len(labels), height, width), np.float16)
        probs_KHW[0] = 1
    places, taken = shares(patches, size)
    for owner, (place, taken_YX, (patch, _)) in enumerate(zip(places, taken, patches, strict=True), 1):
        labels_YX = patch.labels_YX.numpy()
        labels_HW[place][taken_YX] = labels_YX[taken_YX]
        owners_HW[place][taken_YX] = owner * (labels_YX[taken_YX] > 0)
        confidence_HW[place][taken_YX] = patch.confidence_YX.numpy()[taken_YX]
        if probs_KHW is not None and patch.probs_KYX is not None:
            probs_KYX = patch.probs_KYX / patch.probs_KYX.sum(0)  # where windows overlap, the sum is more than 1
            probs_KHW[:, place[0], place[1]][:, taken_YX] = probs_KYX.numpy()[:, taken_YX]
    faces = []
    for owner, (place, (_, theta_P23), frame, detection) in enumerate(
        zip(places, patches, frames, found, strict=True), 1
    ):
        own_YX = owners_HW[place] == owner
        areas, sums = _totals(labels_HW[place][own_YX], confidence_HW[place][own_YX], labels)
        shown = [label for label in range(1, len(labels)) if areas[label]]
        faces.append(
            Face(
                frame,
                window_corners(theta_P23, size),
                {labels.names[label]: int(areas[label]) for label in shown},
                {labels.names[label]: float(sums[label] / areas[label]) for label in shown},
                detection,
            )
        )
    return Scene(labels, labels_HW, owners_HW, faces, probs_KHW)


def shares(
    patches: Sequence[tuple[Patch, np.ndarray]], size: tuple[int, int]
) -> tuple[list[tuple[slice, slice]], list[np.ndarray]]:
    """Of each patch its rows and columns in the photo, and the pixels there, bool (Y, X), that it writes, in order."""
    nearest_HW = np.full(size, np.inf, np.float32) if overlapping([patch for patch, _ in patches]) else None
    places, taken = [], []
    for patch, theta_P23 in patches:
        height, width = patch.labels_YX.shape
        place = slice(patch.top, patch.top + height), slice(patch.left, patch.left + width)
        taken_YX = np.ones((height, width), bool)
        if nearest_HW is not None:
            distance_YX = window_distance(theta_P23, size, patch.top, patch.left, (height, width))
            taken_YX = distance_YX < nearest_HW[place]
            nearest_HW[place][taken_YX] = distance_YX[taken_YX]
        places.append(place)
        taken.append(taken_YX)
    return places, taken


def overlapping(patches: Sequence[Patch]) -> bool:
    """Whether the boxes of any two patches share a pixel."""
    boxes_N4 = np.array([(p.top, p.left, p.top + p.labels_YX.shape[0], p.left + p.labels_YX.shape[1]) for p in patches])
    return any(
        bool(((boxes_N4[k, :2] < boxes_N4[:k, 2:]) & (boxes_N4[:k, :2] < boxes_N4[k, 2:])).all(1).any())
        for k in range(1, len(patches))
    )


def window_distance(
    theta_P23: np.ndarray, size: tuple[int, int], top: int, left: int, shape: tuple[int, int]
) -> np.ndarray:
    """Pixels from each pixel of a box to the nearest centre of those windows that it lies in: float32 (Y, X), infinite
    outside all windows. theta_P23: in the frame of the photo of ``size``; the box begins at (top, left)."""
    half_2 = np.maximum([size[1] - 1, size[0] - 1], 1) / 2
    x_X = np.arange(left, left + shape[1], dtype=np.float32)
    y_Y1 = np.arange(top, top + shape[0], dtype=np.float32)[:, None]
    nearest_YX = np.full(shape, np.inf, np.float32)
    for theta_23 in theta_P23:
        linear_22, centre_2 = theta_23[:, :2] * half_2[:, None], (theta_23[:, 2] + 1) * half_2
        if not np.isfinite(theta_23).all() or abs(np.linalg.det(linear_22)) < 1e-6:
            continue
        inverse_22 = np.linalg.inv(linear_22).astype(np.float32)
        dx_X, dy_Y1 = x_X - np.float32(centre_2[0]), y_Y1 - np.float32(centre_2[1])
        inside_YX = np.abs(inverse_22[0, 0] * dx_X + inverse_22[0, 1] * dy_Y1) <= EDGE
        inside_YX &= np.abs(inverse_22[1, 0] * dx_X + inverse_22[1, 1] * dy_Y1) <= EDGE
        distance_YX = np.hypot(dx_X, dy_Y1)
        nearest_YX = np.where(inside_YX, np.minimum(nearest_YX, distance_YX), nearest_YX)
    return nearest_YX
