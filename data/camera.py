"""What cameras, messengers and thumbnails do to a photo: fewer pixels, blur, sensor noise, JPEG.

In the loading processes, one photo at a time: the codec is OpenCV's own, and the look at a soft photo is soft.
"""

import cv2
import numpy as np

SHRINK = 0.2  # the smallest photo, as a share of its sides
BLUR = 2.2  # largest standard deviation, pixels of the shrunk photo
NOISE = 10  # largest standard deviation, of 255
QUALITY = (5, 75)  # of the JPEG; even in the logarithm, so that low ones are frequent


def is_degraded(key: tuple[int, ...], probability: float) -> bool:
    """Whether the face of this key (seed, epoch, position) is shown through a bad camera."""
    return bool(probability) and np.random.default_rng((*key, 3)).random() < probability


def degraded(photo: np.ndarray, key: tuple[int, ...]) -> np.ndarray:
    """The photo after one draw of the camera, of the same size: uint8 (H, W, 3).

    photo: uint8 (H, W, 3), RGB. key: of the random numbers; the same key gives the same photo.
    """
    rng = np.random.default_rng((*key, 2))
    height, width = photo.shape[:2]
    share = np.exp(rng.uniform(np.log(SHRINK), 0))
    small = cv2.resize(
        photo, (max(8, round(width * share)), max(8, round(height * share))), interpolation=cv2.INTER_AREA
    )
    if rng.random() < 0.6:
        small = cv2.GaussianBlur(small, (0, 0), rng.uniform(0.2, BLUR))
    if rng.random() < 0.3:
        small = np.clip(small + rng.normal(0, rng.uniform(0, NOISE), small.shape), 0, 255).astype(np.uint8)
    if rng.random() < 0.6:
        small = jpeg(small, int(np.exp(rng.uniform(*np.log(QUALITY)))))
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def jpeg(photo: np.ndarray, quality: int) -> np.ndarray:
    """The photo, uint8 (H, W, 3), as a JPEG file of this quality (0 to 100) keeps it."""
    _, encoded = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))
