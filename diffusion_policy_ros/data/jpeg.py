"""Pictures end to end as JPEG: one array of bytes, and where each picture's bytes end."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import os

import cv2
import numpy as np

QUALITY = 95
# 4:4:4: colour at full resolution, where small pictures have their edges.
_SETTINGS = [cv2.IMWRITE_JPEG_QUALITY, QUALITY,
             cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]


def encode(pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """
    Return the bytes of (H, W, 3) uint8 RGB pictures.

    Returns:
        (N,) uint8, all pictures end to end; (len(pictures),) int64, where each one ends in it.
    """
    blobs = [cv2.imencode('.jpg', cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), _SETTINGS)[1]
             for picture in pictures]
    ends = np.cumsum([len(blob) for blob in blobs], dtype=np.int64)
    return np.concatenate(blobs) if blobs else np.zeros(0, np.uint8), ends


def picture_shape(blob: np.ndarray, ends: np.ndarray) -> tuple[int, int, int]:
    """
    Return the shape of the first picture.

    Raises:
        ValueError: it is broken, or there is none.
    """
    return _picture(blob[:ends[0]] if len(ends) else blob[:0], 0).shape


def decode(blob: np.ndarray, ends: np.ndarray, out: np.ndarray) -> None:
    """
    Decode all pictures, on every core.

    Args:
        blob: (N,) uint8 of `encode`.
        ends: (T,) int64 of `encode`.
        out: (T, H, W, 3) uint8, is filled with RGB.

    Raises:
        ValueError: a picture is broken or of another size; its number is named.
    """
    starts = np.concatenate([[0], ends[:-1]])

    def one(i: int) -> None:
        picture = _picture(blob[starts[i]:ends[i]], i)
        if picture.shape != out.shape[1:]:
            raise ValueError(f'picture {i} has shape {picture.shape}, expected {out.shape[1:]}')
        out[i] = picture[..., ::-1]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(one, range(len(ends)), chunksize=64):
            pass


def _picture(part: np.ndarray, number: int) -> np.ndarray:
    """Return (H, W, 3) uint8 BGR."""
    picture = cv2.imdecode(part, cv2.IMREAD_COLOR) if len(part) else None
    if picture is None:
        raise ValueError(f'picture {number} is no JPEG')
    return picture
