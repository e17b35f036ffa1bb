#!/usr/bin/env python3
"""
Measure how fast a policy is trained: `benchmark_training.py CONFIG -d DATASET -o FILE.json`.

Windows a second of the loader alone, of the step alone, and of both as train.py runs them.
`--lerobot` then compares the step with that of the package lerobot, where it is installed: the
same network and batch in fp32, in turn, and on a CPU in bfloat16 too. Use a quiet machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from itertools import count
import os
from pathlib import Path
import platform
import sys
import time
from typing import Any

from accelerate import Accelerator
from arguments import at_least, Parser
import numpy as np
from settings import Config, read_config
import torch
from train import read_data, Trainer
from whole_output import check_writable, write_json

from diffusion_policy_ros.data.step_batches import Batch
from diffusion_policy_ros.data.window_data import WindowData
from diffusion_policy_ros.policy.config import NoiseConfig, UnetConfig, VisionConfig
from diffusion_policy_ros.typed import to_mapping

WARM_UP = 3  # steps left out
ONCE = {'segments': 16, 'segment_windows': 8}  # each frame is encoded once
LEROBOT = 'lerobot.policies.diffusion.modeling_diffusion'  # no requirement of this package


class StepAlone(Trainer):
    """A trainer that learns the batches of step 0 again and again; it loads when not `alone`."""

    def __init__(self, config: Config, data: WindowData, accelerator: Accelerator) -> None:
        super().__init__(config, data, accelerator)
        self.alone, self.prepared = True, self.load(0)
        self.windows = sum(len(batch.action) for _, batch in self.prepared)

    def load(self, step: int) -> list[tuple[dict[str, np.ndarray], Batch]]:
        """Return a step's batches as the loader's thread makes them."""
        return self._batches_of(step)

    def _load(self) -> list[tuple[dict[str, np.ndarray], Batch]]:
        return self.prepared if self.alone else super()._load()


class LeRobotStep:
    """
    LeRobot's training step, with the batch of one of ours.

    Its pictures are floats on the device already and its weights are not averaged; our step cuts
    uint8 pictures, brings them to the device and to floats, and averages the weights. With bf16
    its forward pass is autocast, as by its `use_amp`.
    """

    def __init__(self, ours: StepAlone, bf16: bool = False) -> None:
        model, training = import_module(LEROBOT), ours.config.training
        device, self._bf16 = ours.accelerator.device, bf16
        config = model.DiffusionConfig(device=device.type, **lerobot_values(ours.config))
        self.policy, self._batch = model.DiffusionPolicy(config).to(device), lerobot_batch(ours)
        self._optimizer = torch.optim.AdamW(
            self.policy.get_optim_params(), lr=training.learning_rate, betas=training.betas,
            weight_decay=training.weight_decay, fused=True)

    def advance(self) -> None:
        """Take one optimiser step."""
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast('cpu', torch.bfloat16, enabled=self._bf16):
            loss, _ = self.policy(self._batch)
        loss.backward()
        self._optimizer.step()


def lerobot_values(config: Config) -> dict[str, Any]:
    """Return every value of LeRobot's configuration: the defaults change between its versions."""
    policy, training = config.policy, config.training
    types, model = import_module('lerobot.configs.types'), import_module(LEROBOT)
    feature, kinds = types.PolicyFeature, types.FeatureType
    state = feature(kinds.STATE, (policy.observation.state_dim,))
    values = {
        'input_features': {'observation.state': state, **{
            f'observation.images.{camera.name}': feature(
                kinds.VISUAL, (3, camera.height, camera.width))
            for camera in policy.observation.cameras}},
        'output_features': {'action': feature(kinds.ACTION, (policy.action.dim,))},
        'normalization_mapping': {}, 'n_obs_steps': policy.n_obs_steps, 'horizon': policy.horizon,
        'n_action_steps': policy.n_action_steps, 'drop_n_last_frames': 0,
        'vision_backbone': 'resnet18', 'pretrained_backbone_weights': None, 'resize_shape': None,
        'crop_ratio': 1.0, 'crop_shape': (policy.vision.crop_height, policy.vision.crop_width),
        'crop_is_random': True, 'use_group_norm': True,
        'spatial_softmax_num_keypoints': policy.vision.n_keypoints,
        'use_separate_rgb_encoder_per_camera': True, 'use_film_scale_modulation': True,
        'gradient_checkpointing': False, **vars(policy.unet), **vars(policy.noise),
        'noise_scheduler_type': 'DDPM', 'beta_start': 1e-4, 'beta_end': 0.02,
        'clip_sample_range': 1.0, 'compile_model': False, 'compile_mode': 'default',
        'do_mask_loss_for_padding': False, 'optimizer_lr': training.learning_rate,
        'optimizer_betas': training.betas, 'optimizer_eps': 1e-8,
        'optimizer_weight_decay': training.weight_decay, 'scheduler_name': 'cosine',
        'scheduler_warmup_steps': training.warmup_steps}
    return {name: value for name, value in values.items()  # gradient_checkpointing came with 0.6
            if name in model.DiffusionConfig.__dataclass_fields__}


def lerobot_batch(ours: StepAlone) -> dict[str, torch.Tensor]:
    """Return the windows of our step as LeRobot takes them."""
    (_, batch), = ours.prepared
    device, normalizer = ours.accelerator.device, ours.policy.normalizer
    images = {f'observation.images.{name}':
              torch.from_numpy(frames).movedim(-1, -3).contiguous()[batch.frames].to(device) / 255
              for name, frames in ours.data.images(batch.shown.numpy()).items()}
    action = normalizer.normalize('action', batch.action.to(device))
    return {**images, 'action': action,
            'observation.state': normalizer.normalize('state', batch.state.to(device)),
            'action_is_pad': torch.zeros(action.shape[:2], dtype=torch.bool, device=device)}


def timed(call: Callable[[], object], times: int, device: torch.device) -> float:
    """Return the seconds of some calls, with what they leave to the device."""
    finish = torch.cuda.synchronize if device.type == 'cuda' else lambda: None
    finish()
    start = time.perf_counter()
    for _ in range(times):
        call()
    finish()
    return time.perf_counter() - start


def measure(config: Config, data: WindowData, accelerator: Accelerator,
            steps: int) -> dict[str, Any]:
    """
    Measure loader, step and both; return the windows of each and their seconds.

    `waiting` is the share in which the host waits for data; a GPU may still work then.
    """
    trainer, numbers, result = StepAlone(config, data, accelerator), count(), {}
    first = WARM_UP + steps  # of `both`, whose pictures no cache of the disk holds yet
    seen = [sum(len(batch.action) for batch in trainer.batches.of_step(step))
            for step in range(2 * first)]
    for name, call, samples in (
            ('loader', lambda: trainer.load(next(numbers)), sum(seen[WARM_UP:first])),
            ('step', trainer.advance, steps * trainer.windows),
            ('both', trainer.advance, sum(seen[first + WARM_UP:]))):
        trainer.alone, trainer.step = name != 'both', first
        timed(call, WARM_UP, accelerator.device)
        trainer.waited_s = 0.0
        seconds = timed(call, steps, accelerator.device)
        result[name] = {'samples': samples, 'seconds': seconds, 'samples_per_s': samples / seconds}
    result['both']['waiting'] = trainer.waited_s / seconds
    return result


def same_network(config: Config) -> Config:
    """Return full width on the first camera, a small U-Net, and 64 independent windows."""
    observed = config.policy.observation
    policy = replace(
        config.policy, network='unet', n_obs_steps=2, horizon=8, n_action_steps=4,
        observation=replace(observed, cameras=observed.cameras[:1],
                            state=('ee_position', 'gripper')),
        vision=VisionConfig(64, 84, 84, 'spatial_softmax', 32),
        unet=UnetConfig((64, 128, 256), 5, 8, 128),
        noise=NoiseConfig(100, 'squaredcos_cap_v2', 'epsilon', True, 'ddpm', 100))
    return Config(policy, replace(config.training, segments=64, segment_windows=1, noise_draws=1,
                                  accumulation=1, clip_norm=0.0, bf16=False))


def compare(config: Config, data: WindowData, accelerator: Accelerator,
            rounds: int) -> dict[str, Any]:
    """Take our step, LeRobot's, and ours that encodes a frame once, in turn; return medians."""
    ours, *others = (
        StepAlone(replace(config, training=replace(config.training, **values)), data, accelerator)
        for values in ({}, ONCE, {'bf16': True}, {'bf16': True, **ONCE}))
    steps = {'lerobot': LeRobotStep(ours), 'ours': ours, 'segments': others[0]}
    if accelerator.device.type == 'cpu':  # a GPU's autocast is the accelerator's, for all at once
        steps |= {'lerobot_bf16': LeRobotStep(ours, bf16=True), 'ours_bf16': others[1],
                  'segments_bf16': others[2]}
    sizes = [sum(map(torch.numel, step.policy.parameters())) for step in steps.values()]
    if not 0.95 < sizes[0] / sizes[1] < 1.05:
        raise ValueError(f"lerobot's network has {sizes[0]} parameters, expected our {sizes[1]}")
    windows = np.array([getattr(step, 'windows', ours.windows) for step in steps.values()])
    for step in steps.values():
        timed(step.advance, WARM_UP, accelerator.device)
    seconds = np.array([[timed(step.advance, 1, accelerator.device) for step in steps.values()]
                        for _ in range(rounds)])
    rates = windows / seconds
    figures = {'parameters': sizes, 'windows': windows, 'seconds': seconds.T,
               'samples_per_s': np.median(rates, axis=0),
               'ratio': np.median(rates / rates[:, :1], axis=0)}
    return {name: {key: np.asarray(values)[i].tolist() for key, values in figures.items()}
            for i, name in enumerate(steps)}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure and print what the command line asks for."""
    config = read_config(options.config, options.overrides)
    cpu = options.cpu or not torch.cuda.is_available()
    precision = 'bf16' if config.training.bf16 and not cpu else 'no'
    if options.lerobot:
        import_module(LEROBOT)  # before the long part
        if precision != 'no':
            raise ValueError('--lerobot compares in fp32, expected training.bf16=false')
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision('high')  # as train.py
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision)
    data, _, provenance = read_data(options.dataset, config)
    result = {'config': to_mapping(config), **provenance, 'platform': platform.platform(),
              'device': 'cpu' if cpu else torch.cuda.get_device_name(), 'cores': os.cpu_count(),
              'threads': torch.get_num_threads(), 'torch': torch.__version__,
              **measure(config, data, accelerator, options.steps)}
    print('{device}, {threads} threads, {cores} cores, torch {torch}'.format(**result))
    print(*(f'{name}: {result[name]["samples_per_s"]:.1f} samples/s'
            for name in ('loader', 'step', 'both')), f'waiting: {result["both"]["waiting"]:.1%}',
          sep='\n')
    if options.lerobot:
        same = same_network(config)
        found = compare(same, read_data(options.dataset, same)[0], accelerator, options.steps)
        result['lerobot'] = {'version': version('lerobot'), 'rounds': options.steps, **found}
        for name, figures in found.items():
            print('{}: {samples_per_s:.1f} samples/s, ratio {ratio:.2f}'.format(name, **figures))
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = Parser(description=__doc__.strip().split('\n\n')[0])
    parser.add_argument('config', type=Path, help='file of config/training/')
    parser.add_argument('-d', '--dataset', type=Path, required=True, help='zarr replay buffer')
    parser.add_argument('-o', '--output', type=Path, help='JSON file to write')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                        dest='overrides', help='override a value, as for train.py')
    parser.add_argument('--steps', type=at_least(1), default=20,
                        help='measured steps of each part')
    parser.add_argument('--lerobot', action='store_true', help="compare with LeRobot's step")
    parser.add_argument('--threads', type=at_least(1), default=os.cpu_count(),
                        help='PyTorch threads')
    parser.add_argument('--cpu', action='store_true', help='leave GPUs alone')
    try:
        options = parser.parse_args(arguments)
        if options.output:
            check_writable(options.output)
        result = run(options)
        if options.output:
            write_json(options.output, result)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f'benchmark_training: {error}')


if __name__ == '__main__':
    main()
