"""MP4 files with one frame a row, through the ffmpeg that imageio-ffmpeg brings along."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np

# A frame is read after one other at most, and none is stored ahead of its time.
WRITTEN = ['-g', '2', '-bf', '0', '-crf', '12', '-preset', 'veryfast', '-movflags', '+faststart']
# No frame is repeated or left out, whatever the file says of its rate; and colours are rounded:
# ffmpeg's fast way makes every picture darker by one or two of 255.
READ = ['-fps_mode', 'passthrough', '-sws_flags', 'bicubic+accurate_rnd+full_chroma_int']


class VideoWriter:
    """
    An H.264 file of constant frame rate.

    Args:
        path: of the file.
        fps: frames a second.
        size: height and width, both even.

    Attributes:
        frames: that were added.
    """

    def __init__(self, path: Path, fps: int, size: tuple[int, int]) -> None:
        self.path, self.frames = path, 0
        height, width = size
        self._encoder = imageio_ffmpeg.write_frames(
            str(path), (width, height), fps=fps, codec='libx264', pix_fmt_out='yuv420p',
            quality=None, macro_block_size=2, ffmpeg_log_level='quiet', output_params=WRITTEN)
        self._encoder.send(None)

    def add(self, picture: np.ndarray) -> None:
        """
        Append (H, W, 3) uint8 RGB.

        Raises:
            OSError: ffmpeg has stopped, for a full disk, say.
        """
        try:
            self._encoder.send(np.ascontiguousarray(picture))
        except OSError as error:
            raise OSError(f'{self.path}: ffmpeg has stopped ({_lines(error)[0]}); is the disk '
                          'full?') from None
        self.frames += 1

    def close(self) -> None:
        """
        Finish the file.

        Raises:
            OSError: it does not hold every frame that was added.
        """
        self._encoder.close()
        try:
            found, _ = imageio_ffmpeg.count_frames_and_secs(str(self.path))
        except RuntimeError:
            found = 0
        if found != self.frames:
            raise OSError(f'{self.path}: holds {found} frames, expected the {self.frames} that '
                          'were written; is the disk full?')

    def abort(self) -> None:
        """Stop, whatever the file holds then."""
        self._encoder.close()


class VideoReader:
    """
    The frames of a file, of any codec, one after the other.

    Args:
        path: of the file.

    Attributes:
        size: height and width.
        position: number of the frame that is next.

    Raises:
        ValueError: there is no such file, or no video in it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.position = path, 0
        if not path.is_file():
            raise ValueError(f'{path}: the video is missing')
        self._frames = imageio_ffmpeg.read_frames(str(path), output_params=READ)
        try:
            width, height = next(self._frames)['size']
        except (OSError, KeyError, StopIteration) as error:
            raise ValueError(f'{path}: found no video that ffmpeg can read '
                             f'({_lines(error)[-1]})') from None
        self.size = (height, width)

    def read(self, first: int, count: int) -> Iterator[np.ndarray]:
        """
        Yield some frames, (H, W, 3) uint8 RGB.

        Args:
            first: number of the first; none before `position` can be had.
            count: of frames.

        Raises:
            ValueError: the file has fewer.
        """
        while self.position < first + count:
            try:
                frame = next(self._frames)
            except (OSError, RuntimeError, StopIteration):
                raise ValueError(f'{self.path}: has {self.position} frames, expected '
                                 f'{first + count} for its rows') from None
            self.position += 1
            if self.position > first:
                yield np.frombuffer(frame, np.uint8).reshape(*self.size, 3)

    def close(self) -> None:
        """Stop reading."""
        self._frames.close()


def _lines(error: Exception) -> list[str]:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines or [type(error).__name__]
