"""Pictures end to end as JPEG or PNG: one array of bytes, and where each picture's bytes end."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import os

import cv2
import numpy as np

QUALITY = 95
FORMATS = ('jpeg', 'png')


def encode_picture(picture: np.ndarray, kind: str = 'jpeg', quality: int = QUALITY) -> np.ndarray:
    """
    Return the bytes of one (H, W, 3) uint8 RGB picture, (N,) uint8.

    Args:
        picture: to encode.
        kind: 'png' loses nothing.
        quality: of a JPEG.
    """
    # 4:4:4: colour at full resolution, where small pictures have their edges.
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality,
                cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return cv2.imencode(f'.{kind}', cv2.cvtColor(picture, cv2.COLOR_RGB2BGR),
                        settings if kind == 'jpeg' else [])[1]


def pixel_error(blob: np.ndarray, picture: np.ndarray) -> int:
    """Return the most by which the encoding `blob` changes a value of an RGB picture, 0 to 255."""
    return int(cv2.absdiff(cv2.cvtColor(_picture(blob, 0), cv2.COLOR_BGR2RGB), picture).max())


def encode(pictures: Sequence[np.ndarray], kind: str = 'jpeg') -> tuple[np.ndarray, np.ndarray]:
    """
    Return the bytes of (H, W, 3) uint8 RGB pictures; one that is the one before has none.

    Returns:
        (N,) uint8, all pictures end to end; (len(pictures),) int64, where each one ends in it.
    """
    blobs, last = [np.zeros(0, np.uint8)], None
    for picture in pictures:
        blobs.append(blobs[0] if picture is last else encode_picture(picture, kind))
        last = picture
    return np.concatenate(blobs), np.cumsum([len(blob) for blob in blobs[1:]], dtype=np.int64)


def shown_pictures(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Return (P,) where each picture ends, and (N,) which of them each row shows.

    Args:
        ends: (N,) where each row's picture ends; a row that ends where the one before does shows
            the same.
    """
    fresh = np.diff(ends, prepend=0) > 0
    return ends[fresh], np.cumsum(fresh) - 1


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
        raise ValueError(f'picture {number} is no JPEG or PNG')
    return picture
