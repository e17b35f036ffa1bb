"""Camera pixels to the picture that a policy sees: the same call live, offline and in training."""

from __future__ import annotations

import contextlib

import cv2
import numpy as np

# Encoding -> index of the red, green and blue channel; None where the one channel is all three.
CHANNELS = {
    'rgb8': (0, 1, 2),
    'bgr8': (2, 1, 0),
    'rgba8': (0, 1, 2),
    'bgra8': (2, 1, 0),
    'mono8': None,
}
CHANNEL_COUNT = {'rgb8': 3, 'bgr8': 3, 'rgba8': 4, 'bgra8': 4, 'mono8': 1}


def camera_image(pixels: np.ndarray, encoding: str, height: int, width: int) -> np.ndarray:
    """
    Return a camera's pixels as RGB of the size asked for.

    Shrinking averages over areas (no aliasing), enlarging is bilinear, and pixels that have the
    size already are not touched.

    Args:
        pixels: (h, w) or (h, w, channels) uint8, without row padding.
        encoding: `sensor_msgs/Image.encoding`: rgb8, bgr8, rgba8, bgra8 or mono8.
        height, width: size of the result.

    Returns:
        (height, width, 3) uint8 RGB, contiguous; it shares memory with `pixels` where nothing had
        to be done.

    Raises:
        ValueError: an encoding that is not known, or pixels that do not fit it.
    """
    if encoding not in CHANNELS:
        raise ValueError(f'encoding is {encoding!r}, expected one of {", ".join(CHANNELS)}')
    pixels = np.asarray(pixels)
    channels = CHANNEL_COUNT[encoding]
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    fits = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == channels
    if not fits or not pixels.size:
        raise ValueError(f'pixels are {pixels.dtype} {pixels.shape}, expected uint8 '
                         f'(height, width, {channels}) for {encoding}')
    if height <= 0 or width <= 0:
        raise ValueError(f'size asked for is {height}x{width}, expected at least 1x1')
    if pixels.shape[:2] != (height, width):
        shrinks = height <= pixels.shape[0] and width <= pixels.shape[1]
        pixels = cv2.resize(np.ascontiguousarray(pixels), (width, height),
                            interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    order = CHANNELS[encoding]
    if order is None:
        return np.repeat(pixels.reshape(height, width, 1), 3, axis=2)
    if pixels.shape[2] == 3 and order == (0, 1, 2):
        return np.ascontiguousarray(pixels)
    return np.ascontiguousarray(pixels[:, :, order])


def decode_image(data: bytes) -> np.ndarray:
    """
    Return a compressed picture's pixels, (H, W, 3) uint8 in the order blue, green, red.

    Raises:
        ValueError: 'data: found, expected': a JPEG cut short, or no JPEG or PNG at all.
    """
    # OpenCV fills what is missing of a JPEG with grey, and says nothing.
    if data.startswith(b'\xff\xd8') and b'\xff\xd9' not in data:
        raise ValueError(f'data: {len(data)} bytes of a JPEG without its end, expected all of it')
    pixels = None
    if data:
        # A header that states an absurd size raises; other damage returns None.
        with contextlib.suppress(cv2.error):
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8),
                                  cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise ValueError(f'data: {len(data)} bytes that are no image, expected jpeg or png')
    return pixels
