"""A policy of random weights that is small enough to predict in a test."""

from __future__ import annotations

import numpy as np
import torch

from diffusion_policy_ros.datatypes import NS_PER_S
from diffusion_policy_ros.policy.config import (
    CameraSpec, NoiseConfig, ObservationSpec, PolicyConfig, UnetConfig, VisionConfig,
)
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.normalizer import Normalizer

DT_NS = 50_000_000
SOURCE, SIZE = 40, 32


def make_policy(n_action_steps=4):
    torch.manual_seed(0)
    config = PolicyConfig(
        observation=ObservationSpec((CameraSpec('wrist', SOURCE, SOURCE, SIZE, SIZE),)),
        n_obs_steps=2, horizon=8, n_action_steps=n_action_steps, dt_s=DT_NS / NS_PER_S,
        vision=VisionConfig(16, crop_height=24, crop_width=24, pooling='average'),
        unet=UnetConfig(down_dims=(16, 16)), noise=NoiseConfig(num_inference_steps=5))
    policy = DiffusionPolicy(config, Normalizer.fit({
        'state': np.array([[-1.0] * 4, [1.0] * 4]), 'action': np.array([[-0.1] * 4, [0.1] * 4])}))
    return policy.eval().requires_grad_(False)
