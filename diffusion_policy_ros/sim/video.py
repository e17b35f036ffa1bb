"""The pictures of a run: cameras and outside view, the predicted chunk drawn into each."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from diffusion_policy_ros.datatypes import Chunk, NS_PER_S
from diffusion_policy_ros.sim.cameras import camera_geometry, CameraGeometry

VIEW = 'view'  # the outside view among a frame's pictures
FPS = 20.0  # with a picture each 4 ticks of 12.5 ms, sim time as it is
LAST_FRAME_TIMES = 12
PANEL_PX = 480
CAPTION_PX = 40
TEXT_COLOUR = (235, 235, 235)
# The colour map's ends are too dark to be seen.
COLOURS = cv2.applyColorMap(np.linspace(25, 235, 64).astype(np.uint8)[:, None],
                            cv2.COLORMAP_TURBO)[:, 0, ::-1]


@dataclass(frozen=True)
class Frame:
    """
    What was known at one time.

    Attributes:
        stamp_ns: sim time.
        pictures: camera name to (H, W, 3) uint8 RGB, drawn from left to right.
        ee_pose: (7,) the hand's pose.
        chunk: the newest prediction then, or None.
        status: what the executor did.
    """

    stamp_ns: int
    pictures: Mapping[str, np.ndarray]
    ee_pose: np.ndarray
    chunk: Chunk | None
    status: str


def draw_chunk(picture: np.ndarray, pixels: np.ndarray) -> None:
    """
    Draw a chunk's points and the line through them, from blue (now) to red (its end), in place.

    Args:
        picture: (H, W, 3) uint8 RGB.
        pixels: (T, 2) column and row; NaN where the camera can't see the point.
    """
    colours = COLOURS[np.linspace(0, len(COLOURS) - 1, len(pixels)).round().astype(int)].tolist()
    # OpenCV wants small integers; what is that far outside the picture is not missed.
    seen = np.all(np.abs(np.nan_to_num(pixels, nan=np.inf)) < 10 * max(picture.shape), axis=1)
    points = [(round(x), round(y)) if ok else None
              for (x, y), ok in zip(pixels.tolist(), seen)]
    for start, end, colour in zip(points, points[1:], colours[1:]):
        if start and end:
            cv2.line(picture, start, end, colour, 3, cv2.LINE_AA)
    for point, colour in zip(points, colours):
        if point:
            cv2.circle(picture, point, 4, colour, cv2.FILLED, cv2.LINE_AA)


def compose(frame: Frame, geometries: Mapping[str, CameraGeometry], caption: str) -> np.ndarray:
    """
    Return the frame's pictures side by side over a line of text.

    Args:
        frame: what to draw.
        geometries: of each camera in `frame.pictures`.
        caption: the line of text.

    Returns:
        (PANEL_PX + CAPTION_PX, n PANEL_PX, 3) uint8 RGB for n pictures.
    """
    panels = []
    for camera, picture in frame.pictures.items():
        shrinks = picture.shape[0] > PANEL_PX
        panel = cv2.resize(picture, (PANEL_PX, PANEL_PX),
                           interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
        if frame.chunk is not None:
            draw_chunk(panel, geometries[camera].project(
                frame.chunk.position, frame.ee_pose, PANEL_PX, PANEL_PX))
        cv2.putText(panel, camera, (10, 22), cv2.FONT_HERSHEY_SIMPLEX, 0.55, TEXT_COLOUR, 1,
                    cv2.LINE_AA)
        panels.append(panel)
    band = np.full((CAPTION_PX, PANEL_PX * len(panels), 3), 30, np.uint8)
    cv2.putText(band, caption, (10, CAPTION_PX - 14), cv2.FONT_HERSHEY_SIMPLEX, 0.5, TEXT_COLOUR,
                1, cv2.LINE_AA)
    return np.vstack([np.hstack(panels), band])


def contact_sheet(pictures: Sequence[np.ndarray], columns: int = 2, rows: int = 2) -> np.ndarray:
    """Return pictures evenly taken from a sequence, first and last among them, in a grid."""
    chosen = np.linspace(0, len(pictures) - 1, columns * rows).round().astype(int)
    grid = [pictures[i] for i in chosen]
    return np.vstack([np.hstack(grid[row * columns:(row + 1) * columns]) for row in range(rows)])


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB."""
    if not cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)):
        raise OSError(f'{path}: the picture could not be written')


class Album:
    """
    A run's pictures: video.mp4, and contact_sheet.png of its first successful episode.

    Args:
        folder: that they are written to.
        task: whose cameras they are from.
        view_camera: MetaWorld's name of the outside view.
    """

    def __init__(self, folder: Path, task: str, view_camera: str) -> None:
        self._task, self._view_camera = task, view_camera
        self._sheet_path = folder / 'contact_sheet.png'
        self._video_path = folder / 'video.mp4'
        self._video = Video(self._video_path, FPS)
        self._sheet_of_success = False

    def add(self, title: str, success: bool, frames: Sequence[Frame],
            chunks: Sequence[Chunk]) -> None:
        """Draw an episode under its title; `chunks` are in the order of their stamps."""
        if not frames:
            return
        stamps, pictures = [chunk.stamp_ns for chunk in chunks], []
        for frame in frames:
            index = bisect_right(stamps, frame.stamp_ns) - 1
            frame = replace(frame, chunk=chunks[index] if index >= 0 else None)
            elapsed_s = (frame.stamp_ns - frames[0].stamp_ns) / NS_PER_S
            last = frame.stamp_ns == frames[-1].stamp_ns
            outcome = ('success' if success else 'failure') if last else frame.status
            pictures.append(compose(
                frame, self._geometries(frame),
                f'{title}   {elapsed_s:.2f} s   {outcome}'))
            self._video.add(pictures[-1], LAST_FRAME_TIMES if last else 1)
        if not self._sheet_path.exists() or (success and not self._sheet_of_success):
            write_png(self._sheet_path, contact_sheet(pictures))
            self._sheet_of_success = success

    def close(self) -> list[Path]:
        """Finish the files; return those that were written."""
        self._video.close()
        return [path for path in (self._video_path, self._sheet_path) if path.exists()]

    def _geometries(self, frame: Frame) -> dict[str, CameraGeometry]:
        return {name: camera_geometry(self._task, self._view_camera if name == VIEW else name)
                for name in frame.pictures}


class Video:
    """
    An MP4, H.264 where imageio-ffmpeg is installed (browsers play it), else OpenCV's MPEG-4.

    Args:
        path: of the file.
        fps: pictures a second.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self._path, self._fps = path, fps
        self._writer: Any = None

    def add(self, picture: np.ndarray, times: int = 1) -> None:
        """Append (H, W, 3) uint8 RGB `times` times; the first one sets the size."""
        if self._writer is None:
            make = _OpenCvWriter if _ffmpeg() is None else _FfmpegWriter
            self._writer = make(self._path, self._fps, picture.shape[:2])
        for _ in range(times):
            self._writer.add(picture)

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _ffmpeg() -> Any:
    try:
        import imageio_ffmpeg
    except ImportError:
        return None
    return imageio_ffmpeg


class _FfmpegWriter:

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        height, width = size
        self._frames = _ffmpeg().write_frames(
            str(path), (width, height), fps=fps, codec='libx264', quality=None,
            macro_block_size=2, output_params=['-crf', '23', '-preset', 'veryfast',
                                               '-movflags', '+faststart'])
        self._frames.send(None)

    def add(self, picture: np.ndarray) -> None:
        self._frames.send(np.ascontiguousarray(picture))

    def close(self) -> None:
        self._frames.close()


class _OpenCvWriter:

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        height, width = size
        self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), fps,
                                       (width, height))
        if not self._writer.isOpened():
            raise OSError(f'{path}: OpenCV cannot write an MP4 here: install imageio-ffmpeg')

    def add(self, picture: np.ndarray) -> None:
        self._writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        self._writer.release()
