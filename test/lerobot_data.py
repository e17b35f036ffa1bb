"""Replay buffers for the tests of export and import: two cameras, pictures that tell their row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import export_lerobot
import import_lerobot
import numpy as np

from diffusion_policy_ros.data.pictures import encode
from diffusion_policy_ros.data.replay_buffer import LOW_DIMENSIONAL
from diffusion_policy_ros.data.replay_writer import ReplayWriter

CAMERAS = {'arm': (32, 32), 'wrist': (24, 40)}
LENGTHS = (12, 9, 15)
FPS = 80
STEP_NS = 12_500_000


def values(length: int, seed: int) -> dict[str, np.ndarray]:
    """Return an episode's arrays, with bits that float32 does not have."""
    random = np.random.default_rng(seed)
    found = {name: random.normal(size=(length, dim)) for name, dim in LOW_DIMENSIONAL.items()}
    found['ee_pose'][:, 3:] = turns(length, random)
    for name, (least, most) in (('gripper', (0.0, 1.0)), ('target_gripper', (-1.0, 1.0))):
        found[name] = random.uniform(least, most, (length, 1))
    return found


def turns(length: int, random: np.random.Generator) -> np.ndarray:
    """Return unit quaternions (length, 4)."""
    found = random.normal(size=(length, 4))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def picture(size: tuple[int, int], shade: int) -> np.ndarray:
    """Return (H, W, 3) uint8: a slope in each colour, brighter by `shade`."""
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    slopes = np.stack([rows, columns, rows + columns], axis=-1)
    return (40 + shade + slopes // 2).astype(np.uint8)


def write_simulated(path: Path, cameras: Mapping[str, tuple[int, int]] = CAMERAS) -> Path:
    """Write what collect_demos.py writes, its pictures as PNG; a row's shade is 5 of it."""
    writer = ReplayWriter(
        path, tuple(cameras), {'task': 'open the drawer', 'cameras': list(cameras),
                               'source_size': 64, 'renderer': 'plain', 'seed_start': 7,
                               'step_ns': STEP_NS},
        {'versions': {'mujoco': '3.3.0'}}, 'png')
    for seed, length in enumerate(LENGTHS):
        writer.append(values(length, seed), {
            camera: encode([picture(size, 5 * i) for i in range(length)], 'png')
            for camera, size in cameras.items()}, seed)
    return path


def write_recorded(path: Path, stamps: tuple[np.ndarray, ...]) -> Path:
    """Write what convert_bags.py writes, with rows at `stamps`; a new picture each second row."""
    writer = ReplayWriter(
        path, tuple(CAMERAS), {'cameras': [{'name': name} for name in CAMERAS]},
        {'task': 'pour', 'renderer': '', 'versions': {}, 'frame_id': 'base',
         'source_sizes': {name: [2 * side for side in size] for name, size in CAMERAS.items()}},
        'png', stamped=True, rotation=True)
    for seed, times in enumerate(stamps):
        pictures = {}
        for camera, size in CAMERAS.items():
            frames = [picture(size, 3 * i) for i in range(len(times) // 2 + 1)]
            pictures[camera] = encode([frames[i // 2] for i in range(len(times))], 'png')
        turned = turns(len(times), np.random.default_rng(100 + seed))
        writer.append({**values(len(times), seed), 'target_quaternion': turned,
                       'stamp_ns': times,
                       'is_observation': np.ones(len(times), bool),
                       'is_teleop': np.zeros(len(times), bool)}, pictures, seed)
    return path


def export(dataset: Path, folder: Path, *options: str) -> Path:
    """Run export_lerobot.py."""
    export_lerobot.main([str(dataset), '-o', str(folder), *options])
    return folder


def import_back(folder: Path, dataset: Path, *options: str) -> Path:
    """Run import_lerobot.py."""
    import_lerobot.main([str(folder), '-o', str(dataset), *options])
    return dataset


def refusal(capfd: Any, call: Any, *arguments: Any) -> str:
    """Return the one line that a script ends with, with exit code 2 and nothing left behind."""
    output = Path(arguments[1])
    before = output.exists()
    try:
        call(*arguments)
    except SystemExit as end:
        assert end.code == 2
    else:
        raise AssertionError('it was not refused')
    said = capfd.readouterr().err
    assert said.count('\n') == 1, said
    assert output.exists() == before
    assert not list(output.parent.glob(f'.{output.name}.*'))
    return said
