"""The square frame of a face, as in CelebA-HQ's public recipe: upright, the face as large as in the training data."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Frame:
    """A square on a photo, turned as the face is.

    centre_2: (x, y) pixels. axis_2: from the centre along the square's own x axis to its right side, pixels; its y axis
    is the same turned by a quarter to the image's bottom.
    """

    centre_2: np.ndarray
    axis_2: np.ndarray

    @property
    def half(self) -> float:
        """Half of the square's side, pixels."""
        return float(np.hypot(*self.axis_2))

    @property
    def degrees(self) -> float:
        """How far the face is turned clockwise, -180 to 180."""
        return float(np.degrees(np.arctan2(self.axis_2[1], self.axis_2[0])))

    def matrix(self) -> np.ndarray:
        """(2, 3): the square's coordinates, -1 to 1 from edge to edge (x, y), to pixels of the photo."""
        x, y = self.axis_2
        return np.array([[x, -y, self.centre_2[0]], [y, x, self.centre_2[1]]])


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
    return Frame(eyes_2 + 0.1 * m_2, axis_2 * half)
