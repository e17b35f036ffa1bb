"""The pictures of a run: looked at pixel by pixel, and read back from the files."""

import subprocess

import cv2
import numpy as np
import pytest

from diffusion_policy_ros.datatypes import Chunk, EE_POSE
from diffusion_policy_ros.sim.arm import MetaWorldArm
from diffusion_policy_ros.sim.cameras import camera_geometry
from diffusion_policy_ros.sim.video import (
    Album, CAPTION_PX, compose, contact_sheet, draw_chunk, Frame, LAST_FRAME_TIMES, PANEL_PX,
    Video, write_png,
)

TASK, STEP_NS = 'reach-v3', 50_000_000
GREY = 90


def chunk_at(start, stamp_ns):
    """Return a chunk of 10 cm to the right."""
    position = start + np.linspace([0.0, 0.0, 0.0], [0.1, 0.0, 0.0], 8)
    return Chunk(stamp_ns, np.arange(8) * STEP_NS, position, frame_id='world')


@pytest.fixture(scope='module')
def pose():
    arm = MetaWorldArm(TASK)
    observation, _ = arm.reset(seed=0)
    arm.close()
    return observation[EE_POSE]


def frames(pose, stamps_ns):
    picture = np.full((224, 224, 3), GREY, np.uint8)
    return [Frame(stamp, {'arm': picture, 'view': picture}, pose, None, 'Following the chunk.')
            for stamp in stamps_ns]


def is_coloured(picture):
    return (picture.max(axis=-1).astype(int) - picture.min(axis=-1)) > 60


def test_a_chunk_goes_from_blue_to_red_through_its_points():
    picture = np.full((100, 200, 3), GREY, np.uint8)
    draw_chunk(picture, np.column_stack([np.linspace(20, 180, 9), np.full(9, 50.0)]))
    first, last = picture[50, 20].astype(int), picture[50, 180].astype(int)
    assert first[2] > first[0] + 60  # RGB
    assert last[0] > last[2] + 60
    assert is_coloured(picture[50, 20:181]).all()
    assert not is_coloured(picture[:40]).any() and not is_coloured(picture[60:]).any()


@pytest.mark.parametrize('nowhere', [[np.nan, np.nan], [1e9, -1e9], [np.inf, 0.0]])
def test_what_the_camera_cannot_see_is_left_out(nowhere):
    picture = np.full((100, 100, 3), GREY, np.uint8)
    draw_chunk(picture, np.array([[20.0, 20.0], nowhere, [80.0, 80.0]]))
    assert is_coloured(picture[20, 20]) and is_coloured(picture[80, 80])
    assert not is_coloured(picture[50, 50])


def test_the_chunk_lies_where_the_geometry_says_in_both_pictures(pose):
    geometries = {'arm': camera_geometry(TASK, 'arm'), 'view': camera_geometry(TASK, 'corner4')}
    plain = frames(pose, [0])[0]
    drawn = Frame(0, plain.pictures, pose, chunk_at(pose[:3], 0), '')
    before, after = (compose(frame, geometries, 'same') for frame in (plain, drawn))
    assert before.shape == (PANEL_PX + CAPTION_PX, 2 * PANEL_PX, 3)
    changed = np.abs(after.astype(int) - before).sum(axis=-1) > 30
    for column, name in enumerate(('arm', 'view')):
        panel = changed[:PANEL_PX, column * PANEL_PX:(column + 1) * PANEL_PX]
        pixels = geometries[name].project(drawn.chunk.position, pose, PANEL_PX, PANEL_PX)
        inside = np.all((pixels > 5) & (pixels < PANEL_PX - 5), axis=1)
        assert inside.any(), name
        for x, y in pixels[inside].round().astype(int):
            assert panel[y, x], (name, x, y)
        rows, columns = np.nonzero(panel)
        assert rows.min() >= np.nanmin(pixels[:, 1]) - 8
        assert columns.min() >= np.nanmin(pixels[:, 0]) - 8


def test_the_caption_is_in_the_picture(pose):
    geometries = {name: camera_geometry(TASK, 'arm') for name in ('arm', 'view')}
    frame = frames(pose, [0])[0]
    one, other = (compose(frame, geometries, text) for text in ('seed 1', 'seed 2'))
    assert (one[PANEL_PX:] != other[PANEL_PX:]).any()
    assert (one[:PANEL_PX] == other[:PANEL_PX]).all()


def test_a_contact_sheet_has_the_first_and_the_last_picture():
    pictures = [np.full((4, 6, 3), value, np.uint8) for value in range(10)]
    sheet = contact_sheet(pictures)
    assert sheet.shape == (8, 12, 3)
    assert [sheet[0, 0, 0], sheet[0, 6, 0], sheet[4, 0, 0], sheet[4, 6, 0]] == [0, 3, 6, 9]
    assert contact_sheet(pictures[:1]).shape == (8, 12, 3)


def read_video(path):
    capture = cv2.VideoCapture(str(path))
    pictures = []
    while (read := capture.read())[0]:
        pictures.append(read[1][..., ::-1])
    return pictures


def test_an_mp4_holds_what_was_added(tmp_path):
    video = Video(tmp_path / 'video.mp4', fps=20.0)
    colours = [(200, 40, 40), (40, 200, 40), (40, 40, 200)]
    for colour in colours:
        video.add(np.full((120, 160, 3), colour, np.uint8), times=2)
    video.close()
    pictures = read_video(tmp_path / 'video.mp4')
    assert len(pictures) == 6
    for picture, colour in zip(pictures[::2], colours):
        assert picture.shape == (120, 160, 3)
        assert np.abs(picture.mean(axis=(0, 1)) - colour).max() < 12


def test_the_mp4_is_one_that_browsers_play(tmp_path):
    imageio_ffmpeg = pytest.importorskip('imageio_ffmpeg')
    video = Video(tmp_path / 'video.mp4', fps=20.0)
    video.add(np.zeros((120, 160, 3), np.uint8))
    video.close()
    said = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), '-i', str(tmp_path / 'video.mp4')],
                          capture_output=True, text=True).stderr
    assert 'Video: h264' in said and 'yuv420p' in said and '20 fps' in said


def test_without_imageio_ffmpeg_opencv_writes(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'imageio_ffmpeg', None)
    video = Video(tmp_path / 'video.mp4', fps=20.0)
    for _ in range(3):
        video.add(np.full((120, 160, 3), (200, 40, 40), np.uint8))
    video.close()
    pictures = read_video(tmp_path / 'video.mp4')
    assert len(pictures) == 3
    assert np.abs(pictures[0].mean(axis=(0, 1)) - (200, 40, 40)).max() < 12


def test_a_picture_keeps_its_colours(tmp_path):
    write_png(tmp_path / 'a.png', np.full((4, 4, 3), (200, 100, 50), np.uint8))
    assert cv2.imread(str(tmp_path / 'a.png'))[0, 0].tolist() == [50, 100, 200]


def test_an_album_draws_each_frame_with_the_chunk_of_its_time(pose, tmp_path):
    album = Album(tmp_path, TASK, 'corner4')
    stamps = [1_000_000_000 + i * STEP_NS for i in range(6)]
    chunks = [chunk_at(pose[:3], stamps[2]), chunk_at(pose[:3] + 0.05, stamps[4])]
    album.add('episode 1/1', True, frames(pose, stamps), chunks)
    assert album.close() == [tmp_path / 'video.mp4', tmp_path / 'contact_sheet.png']
    pictures = read_video(tmp_path / 'video.mp4')
    assert len(pictures) == 5 + LAST_FRAME_TIMES
    drawn = [int(is_coloured(picture[:PANEL_PX]).sum()) for picture in pictures]
    assert max(drawn[:2]) == 0 and min(drawn[2:6]) > 50
    # Frame 3 still shows the chunk of frame 2; frame 4 another one.
    same, other = (np.abs(pictures[i][:PANEL_PX].astype(int) - pictures[3][:PANEL_PX]).max()
                   for i in (2, 4))
    assert other > 100 > same


def test_the_contact_sheet_is_of_the_first_success(pose, tmp_path):
    album = Album(tmp_path, TASK, 'corner4')
    sheets = []
    for number, success in enumerate((False, True, True)):
        album.add(f'episode {number}', success,
                  frames(pose, [number + 1]), [])
        sheets.append((tmp_path / 'contact_sheet.png').read_bytes())
    album.close()
    assert sheets[0] != sheets[1] == sheets[2]


def test_an_album_without_frames_writes_nothing(tmp_path):
    album = Album(tmp_path, TASK, 'corner4')
    album.add('episode 1/1', False, [], [])
    assert album.close() == []
    assert list(tmp_path.iterdir()) == []
