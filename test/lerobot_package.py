"""
What the package lerobot makes of a data set, in a process of its own, as JSON.

`lerobot_package.py load|write FOLDER`. LEROBOT_PATH is where lerobot is installed, where that is
not this environment: it comes last, so that PyTorch and NumPy are this environment's.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
import sys
from typing import Any

import numpy as np
import torch

from diffusion_policy_ros.policy import vision  # noqa: F401, without it torchvision may not load

sys.path += filter(None, os.environ.get('LEROBOT_PATH', '').split(os.pathsep))

from lerobot.configs.types import FeatureType, PolicyFeature  # noqa: E402, I100
from lerobot.datasets.lerobot_dataset import LeRobotDataset  # noqa: E402
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig  # noqa: E402
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy  # noqa: E402
from lerobot.policies.diffusion.processor_diffusion import (  # noqa: E402
    make_diffusion_pre_post_processors,
)

N_OBS_STEPS, HORIZON = 2, 8


def video_backend() -> str | None:
    """Return what LeRobot can decode videos with beside this PyTorch, if anything."""
    try:
        import torchcodec.decoders  # noqa: F401
        return 'torchcodec'
    except (ImportError, OSError, RuntimeError):
        import torchvision
        return 'pyav' if hasattr(torchvision.io, 'VideoReader') else None


def items(data: LeRobotDataset) -> dict[str, Any]:
    """Return what every row is, as LeRobot gives it."""
    rows = [data[i] for i in range(len(data))]
    images = data.meta.camera_keys
    return {
        'length': len(data), 'fps': data.fps, 'n_episodes': data.num_episodes,
        'tasks': [row['task'] for row in rows],
        'timestamps': [row['timestamp'].item() for row in rows],
        'dtypes': {key: str(rows[0][key].dtype) for key in ('action', 'observation.state')},
        'values': {key: torch.stack([row[key] for row in rows]).tolist()
                   for key in ('action', 'observation.state', 'episode_index', 'frame_index')},
        'images': {key: (torch.stack([row[key] for row in rows]) * 255).round().int().tolist()
                   for key in images},
        'stats': {key: {name: np.asarray(value).shape for name, value in found.items()}
                  for key, found in data.meta.stats.items()}}


def windows(folder: str, cameras: list[str], fps: int) -> LeRobotDataset:
    """Return the data set whose rows are a diffusion policy's windows."""
    observed = [i / fps for i in range(1 - N_OBS_STEPS, 1)]
    return LeRobotDataset('local/x', root=folder, video_backend=video_backend(), delta_timestamps={
        **dict.fromkeys(('observation.state', *cameras), observed),
        'action': [i / fps for i in range(1 - N_OBS_STEPS, HORIZON - N_OBS_STEPS + 1)]})


def train_a_step(data: LeRobotDataset) -> list[float]:
    """Return the loss of one optimiser step, and how far the step went."""
    kinds = {'observation.state': FeatureType.STATE, 'action': FeatureType.ACTION}
    features = {key: PolicyFeature(kind, tuple(data.meta.features[key]['shape']))
                for key, kind in kinds.items()}
    for key in data.meta.camera_keys:
        height, width, channels = data.meta.features[key]['shape']
        features[key] = PolicyFeature(FeatureType.VISUAL, (channels, height, width))
    config = DiffusionConfig(
        device='cpu', n_obs_steps=N_OBS_STEPS, horizon=HORIZON, n_action_steps=4,
        input_features={key: value for key, value in features.items() if key != 'action'},
        output_features={'action': features['action']}, crop_shape=None, use_group_norm=True,
        pretrained_backbone_weights=None, spatial_softmax_num_keypoints=4, down_dims=(16, 32),
        kernel_size=3, n_groups=4, diffusion_step_embed_dim=16, num_train_timesteps=10)
    torch.manual_seed(0)
    policy = DiffusionPolicy(config)
    prepare, _ = make_diffusion_pre_post_processors(config, data.meta.stats)
    batch = prepare(next(iter(torch.utils.data.DataLoader(data, batch_size=4, shuffle=True))))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4)
    before = torch.nn.utils.parameters_to_vector(policy.parameters()).detach().clone()
    loss, _ = policy(batch)
    loss.backward()
    optimizer.step()
    moved = torch.nn.utils.parameters_to_vector(policy.parameters()).detach() - before
    return [loss.item(), moved.abs().max().item(), batch['action'].abs().max().item()]


def load(folder: str) -> dict[str, Any]:
    """Return what LeRobot reads in a data set, and what it learns from it."""
    plain = LeRobotDataset('local/x', root=folder, video_backend=video_backend())
    if plain.meta.video_keys and not video_backend():
        return {'missing': 'no decoder: install the torchcodec that fits this PyTorch, and FFmpeg'}
    found = items(plain)
    data = windows(folder, list(found['images']), found['fps'])
    last = data[len(data) - 1]
    return {**found, 'last_window': {key: last[key].tolist() for key in (
        'action', 'action_is_pad', 'observation.state')},
        'window_images': {key: tuple(last[key].shape) for key in found['images']},
        'training': train_a_step(data)}


def write(folder: str) -> dict[str, Any]:
    """Write a data set of two episodes with LeRobot itself; return its values."""
    features = {'observation.state': {'dtype': 'float32', 'shape': (6,), 'names': list('xyzabc')},
                'action': {'dtype': 'float32', 'shape': (4,), 'names': ['x', 'y', 'z', 'grip']},
                'observation.images.top': {'dtype': 'video', 'shape': (64, 96, 3),
                                           'names': ['height', 'width', 'channels']}}
    data = LeRobotDataset.create('local/x', fps=10, features=features, root=Path(folder))
    random, values = np.random.default_rng(0), {'observation.state': [], 'action': []}
    for length in (12, 9):
        for i in range(length):
            row = {key: random.normal(size=features[key]['shape']).astype(np.float32)
                   for key in values}
            shade = np.full((64, 96, 3), 20 * i, np.uint8)
            data.add_frame({**row, 'observation.images.top': shade, 'task': 'push the button'})
            for key, value in row.items():
                values[key].append(value.tolist())
        data.save_episode()
    data.finalize()
    return values


if __name__ == '__main__':
    result = {'load': load, 'write': write}[sys.argv[1]](sys.argv[2])
    print(json.dumps(result))
