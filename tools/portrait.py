"""A picture of a real person that may be used freely."""

import numpy as np
import skimage.data


def portrait() -> np.ndarray:
    """Eileen Collins, by NASA, in the public domain; her face as large as those of the training data: uint8 (192, 192,
    3), RGB."""
    top, left, side = 11, 128, 192
    return skimage.data.astronaut()[top : top + side, left : left + side]
