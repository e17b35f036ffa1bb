"""Export and import in turn, and what the package lerobot itself makes of an export."""

from importlib.util import find_spec
import json
import os
from pathlib import Path
import subprocess
import sys

from lerobot_data import (
    CAMERAS, export, FPS, import_back, LENGTHS, picture, turns, values, write_recorded,
    write_simulated,
)
import numpy as np
import pytest

from diffusion_policy_ros.data.replay_buffer import load_replay_buffer, LOW_DIMENSIONAL

HERE = Path(__file__).resolve().parent
ROWS = sum(LENGTHS)
PAIR = {'arm': (32, 40), 'wrist': (32, 40)}
"""LeRobot's policy wants all cameras of one size."""


def images(path):
    """Return camera to every row's picture."""
    buffer = load_replay_buffer(path, tuple(CAMERAS))
    rows = np.arange(buffer.episode_ends[-1])
    return {camera: buffer.images(camera, rows).astype(int) for camera in CAMERAS}


@pytest.mark.parametrize('kind', ['video', 'png'])
def test_what_comes_back_is_what_was_written(tmp_path, kind):
    path = write_simulated(tmp_path / 'demos.zarr')
    folder = export(path, tmp_path / 'exported', '--images', kind)
    back = import_back(folder, tmp_path / 'back.zarr', '--images', 'png')
    before, after = (load_replay_buffer(one, ()) for one in (path, back))
    assert after.episode_ends.tolist() == before.episode_ends.tolist()
    for name in LOW_DIMENSIONAL:
        np.testing.assert_array_equal(after.arrays[name], before.arrays[name], err_msg=name)
        assert (before.arrays[name] != before.arrays[name].astype(np.float32)).any()
    for camera, found in images(back).items():
        error = np.abs(found - images(path)[camera])
        if kind == 'png':
            assert error.max() == 0
        else:
            assert error.mean() < 1.5 and error.max() < 10  # a row's shade differs by 5


def test_a_recording_comes_back_on_its_grid(tmp_path):
    stamps = 10**18 + np.cumsum(np.full(24, 10_000_000))
    path = write_recorded(tmp_path / 'recorded.zarr', (stamps,))
    folder = export(path, tmp_path / 'exported', '--fps', '50', '--images', 'png')
    back = load_replay_buffer(import_back(folder, tmp_path / 'back.zarr'), ())
    for name in LOW_DIMENSIONAL:
        np.testing.assert_array_equal(back.arrays[name], values(24, 0)[name][::2])
    np.testing.assert_array_equal(back.arrays['target_quaternion'],
                                  turns(24, np.random.default_rng(100))[::2])
    assert (back.attributes['step_ns'], back.attributes['frame_id']) == (20_000_000, 'base')
    assert back.attributes['source_sizes'] == {'arm': [64, 64], 'wrist': [48, 80]}


@pytest.fixture(scope='module')
def ask(tmp_path_factory):
    """Return what asks the package lerobot, where it is installed."""
    where = os.environ.get('LEROBOT_PATH')
    if not where and (found := find_spec('lerobot')):
        where = str(Path(found.origin).parents[1])
    if not where:
        pytest.skip('lerobot is not installed; type: pip install --target DIR lerobot==0.4.4 and '
                    'set LEROBOT_PATH=DIR')

    def run(what, folder):
        result = subprocess.run(
            [sys.executable, HERE / 'lerobot_package.py', what, folder], capture_output=True,
            text=True, env={**os.environ, 'LEROBOT_PATH': where, 'HF_HUB_OFFLINE': '1',
                            'PYTHONPATH': str(HERE.parent),
                            'HF_HOME': str(tmp_path_factory.mktemp('hf'))})
        assert result.returncode == 0, result.stderr[-3000:]
        found = json.loads(result.stdout.splitlines()[-1])
        if 'missing' in found:
            pytest.skip(found['missing'])
        return found
    return run


@pytest.fixture(scope='module', params=['video', 'png'])
def loaded(request, ask, tmp_path_factory):
    """Return what LeRobot loads and learns, and the kind of pictures."""
    folder = tmp_path_factory.mktemp(request.param)
    path = write_simulated(folder / 'demos.zarr', PAIR)
    return ask('load', export(path, folder / 'exported', '--images', request.param)), request.param


@pytest.mark.slow
def test_lerobot_loads_every_row(loaded):
    found, _ = loaded
    frame = np.concatenate([np.arange(length) for length in LENGTHS])
    assert (found['length'], found['n_episodes'], found['fps']) == (ROWS, len(LENGTHS), FPS)
    assert found['tasks'] == ['open the drawer'] * ROWS
    assert found['values']['frame_index'] == frame.tolist()
    np.testing.assert_allclose(found['timestamps'], frame / FPS, atol=1e-6)
    for key, names in (('observation.state', ('ee_pose', 'gripper')),
                       ('action', ('target_position', 'target_gripper'))):
        expected = np.concatenate([
            np.concatenate([values(length, seed)[name] for name in names], axis=1)
            for seed, length in enumerate(LENGTHS)])
        np.testing.assert_array_equal(found['values'][key], expected.astype(np.float32))
        assert found['dtypes'][key] == 'torch.float32'  # whatever it is on disk


@pytest.mark.slow
def test_lerobot_shows_each_rows_own_picture(loaded):
    found, kind = loaded
    for camera, size in PAIR.items():
        pictures = np.array(found['images'][f'observation.images.{camera}'])
        assert pictures.shape == (ROWS, 3, *size)
        expected = np.stack([picture(size, 5 * i) for length in LENGTHS for i in range(length)])
        error = np.abs(pictures - expected.transpose(0, 3, 1, 2))
        assert error.max() == 0 if kind == 'png' else error.mean() < 2.5 and error.max() < 12


@pytest.mark.slow
def test_lerobot_makes_windows_of_the_rows(loaded):
    found, _ = loaded
    last, targets = found['last_window'], values(LENGTHS[-1], 2)['target_position']
    assert last['action_is_pad'] == [False, False] + [True] * 6
    np.testing.assert_allclose(np.array(last['action'])[:2, :3], targets[-2:], rtol=1e-6)
    np.testing.assert_allclose(np.array(last['action'])[2:, :3], [targets[-1]] * 6, rtol=1e-6)
    np.testing.assert_allclose(np.array(last['observation.state'])[:, :7],
                               values(LENGTHS[-1], 2)['ee_pose'][-2:], rtol=1e-6)
    assert found['window_images'] == {
        f'observation.images.{camera}': [2, 3, *size] for camera, size in PAIR.items()}


@pytest.mark.slow
def test_lerobot_learns_from_it(loaded):
    loss, moved, largest = loaded[0]['training']
    assert 0 < loss < 10 and moved > 0
    assert 0.5 < largest <= 1.0 + 1e-5  # of normalised actions
    for key, stats in loaded[0]['stats'].items():
        assert set(stats) == {'min', 'max', 'mean', 'std', 'count', 'q01', 'q10', 'q50', 'q90',
                              'q99'}
        if 'images' in key:
            assert stats['mean'] == [3, 1, 1]


@pytest.mark.slow
def test_a_data_set_that_lerobot_wrote_is_imported(ask, tmp_path):
    written = ask('write', tmp_path / 'theirs')
    path = import_back(tmp_path / 'theirs', tmp_path / 'back.zarr', '--state-quaternion', 'none',
                       '--state-gripper', 'c', '--action-gripper', 'grip', '--cameras', 'top=arm')
    buffer = load_replay_buffer(path, ('arm',))
    assert buffer.episode_ends.tolist() == [12, 21]
    assert (buffer.attributes['task'], buffer.attributes['step_ns']) == (
        'push the button', 100_000_000)
    state, action = (np.array(written[key]) for key in ('observation.state', 'action'))
    np.testing.assert_array_equal(buffer.arrays['ee_pose'][:, :3], state[:, :3])
    np.testing.assert_array_equal(buffer.arrays['gripper'], state[:, 5:])
    np.testing.assert_array_equal(buffer.arrays['target_gripper'], action[:, 3:])
    shades = buffer.images('arm', np.arange(21)).mean(axis=(1, 2, 3))
    expected = np.concatenate([20 * np.arange(12), 20 * np.arange(9)])
    assert np.abs(shades - expected).max() < 4
