"""Camera pixels to RGB of one size: the same call in training, in evaluation and on the robot."""

from __future__ import annotations

import cv2
import numpy as np

_TO_RGB = {
    'rgb8': None,
    'bgr8': cv2.COLOR_BGR2RGB,
    'rgba8': cv2.COLOR_RGBA2RGB,
    'bgra8': cv2.COLOR_BGRA2RGB,
    'mono8': cv2.COLOR_GRAY2RGB,
}


def camera_image(pixels: np.ndarray, encoding: str, height: int, width: int) -> np.ndarray:
    """
    Return a camera's pixels as RGB of the size asked for.

    Args:
        pixels: (h, w[, c]) uint8.
        encoding: of sensor_msgs/Image: rgb8, bgr8, rgba8, bgra8 or mono8.
        height, width: pixels of the result; the area is averaged when shrinking.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        ValueError: for another encoding.
    """
    if encoding not in _TO_RGB:
        raise ValueError(f'encoding is {encoding!r}, expected one of {", ".join(_TO_RGB)}')
    code = _TO_RGB[encoding]
    image = pixels if code is None else cv2.cvtColor(pixels, code)
    if image.shape[:2] == (height, width):
        return image
    shrinking = height <= image.shape[0] and width <= image.shape[1]
    return cv2.resize(image, (width, height),
                      interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)
