"""The square frame of a face, as in CelebA-HQ's public recipe: upright, the face as large as in the training data."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Frame:
    """Where a face is seen upright: matrix_23, float64, from the frame's coordinates, -1 to 1 from edge to edge (x, y),
    to pixels of the photo (centre of the first pixel: 0)."""

    matrix_23: np.ndarray

    @property
    def degrees(self) -> float:
        """How far the face is turned clockwise, -180 to 180."""
        return float(np.degrees(np.arctan2(self.matrix_23[1, 0], self.matrix_23[0, 0])))

    def corners(self) -> np.ndarray:
        """corners_42 in pixels of the photo, clockwise from the top left one of the upright face."""
        corners_24 = np.array([(-1, 1, 1, -1), (-1, -1, 1, 1)])
        return (self.matrix_23[:, :2] @ corners_24 + self.matrix_23[:, 2:]).T


def square(centre_2: np.ndarray, axis_2: np.ndarray) -> Frame:
    """A square frame. axis_2: from its centre to the middle of its right side, pixels (x, y)."""
    x, y = axis_2
    return Frame(np.array([[x, -y, centre_2[0]], [y, x, centre_2[1]]], np.float64))


def turned_square(centre_2: np.ndarray, half: float, degrees: float) -> Frame:
    """A square frame that is turned clockwise. half: of its side, pixels."""
    return square(centre_2, half * np.array([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))]))


def whole_photo(height: int, width: int) -> Frame:
    """The whole photo, stretched to a square."""
    return Frame(np.array([[width / 2, 0, (width - 1) / 2], [0, height / 2, (height - 1) / 2]]))


def frame_of(points_52: np.ndarray) -> Frame:
    """The frame of a face with these eyes, nose and mouth corners (see ``faces.detect.Detection``).

    With e the vector from the eye on the image's left to the other and m that from the eyes' middle to the mouth
    corners' middle, the x axis points along (e_x + m_y, e_y - m_x), half the side is max(2 |e|, 1.8 |m|), and the
    centre is the eyes' middle plus 0.1 m.
    """
    eyes_2, mouth_2 = points_52[:2].mean(0), points_52[3:5].mean(0)
    e_2, m_2 = points_52[1] - points_52[0], mouth_2 - eyes_2
    axis_2 = np.array([e_2[0] + m_2[1], e_2[1] - m_2[0]])
    length = np.hypot(*axis_2)
    axis_2 = axis_2 / length if length > 0 else np.array([1.0, 0.0])
    half = max(2.0 * np.hypot(*e_2), 1.8 * np.hypot(*m_2), 1.0)
    return square(eyes_2 + 0.1 * m_2, axis_2 * half)
