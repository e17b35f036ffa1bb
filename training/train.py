#!/usr/bin/env python3
"""
Train a diffusion policy on a replay buffer: `train.py CONFIG -d DATASET -o FOLDER`.

Stop it at any time; the same command goes on where it stopped. FOLDER then holds `checkpoint/`
(the averaged weights), `metrics.jsonl`, `loss.png` and `state.pt` to resume from.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
import json
import math
import os
from pathlib import Path
import platform
import sys
import time
from typing import Any

from matplotlib.figure import Figure
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
import torch
import yaml

from diffusion_policy_ros.data.replay_buffer import load_replay_buffer
from diffusion_policy_ros.data.window_data import WindowBatch, WindowData
from diffusion_policy_ros.policy.checkpoint import save_checkpoint
from diffusion_policy_ros.policy.config import PolicyConfig
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.normalizer import Normalizer
from diffusion_policy_ros.typed import from_mapping, load_yaml, to_mapping

VALIDATION_WINDOWS = 64
LOG_EVERY = 25


@dataclass(frozen=True)
class TrainingConfig:
    """
    How a policy is trained.

    Attributes:
        episodes: demonstrations taken from the data set, the first ones.
        steps: optimiser steps.
        validation_episodes: demonstrations after those, for the validation loss alone.
        segments: stretches of neighbouring windows in a batch; their frames are encoded once.
        segment_windows: windows of a segment, one policy step apart.
        noise_draws: noise levels drawn for each window.
        learning_rate: of AdamW, after the warm-up; a cosine brings it to 0.
        betas: of AdamW.
        weight_decay: of AdamW; of a transformer's matrices alone.
        encoder_weight_decay: of the image encoders.
        clip_norm: greatest norm of a step's gradient; 0 for any.
        warmup_steps: steps of linear warm-up.
        ema_power: the averaged weights' decay is min(ema_max, 1 - (1 + step)^-ema_power).
        ema_max: its upper bound.
        bf16: autocast the image encoder to bfloat16; slower without AMX or AVX512_BF16.
        save_every: steps from one saved state to the next.
        seed: of weights, batches and noise.
    """

    episodes: int
    steps: int
    validation_episodes: int = 10
    segments: int = 16
    segment_windows: int = 8
    noise_draws: int = 2
    learning_rate: float = 1e-4
    betas: tuple[float, ...] = (0.95, 0.999)
    weight_decay: float = 1e-6
    encoder_weight_decay: float = 1e-6
    clip_norm: float = 0.0
    warmup_steps: int = 500
    ema_power: float = 0.75
    ema_max: float = 0.9999
    bf16: bool = False
    save_every: int = 250
    seed: int = 0


@dataclass(frozen=True)
class Config:
    """A file of config/training/."""

    policy: PolicyConfig
    training: TrainingConfig


def read_config(path: Path, overrides: Sequence[str]) -> Config:
    """
    Read a file and put `key.of.value=value` overrides over it.

    Raises:
        ValueError: in one line that names the file or override and the key.
    """
    values = load_yaml(path)
    for override in overrides:
        key, sign, text = override.partition('=')
        if not sign:
            raise ValueError(f'--set {override}: expected key=value')
        *parents, name = key.split('.')
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = yaml.safe_load(text)
    return from_mapping(Config, values, str(path))


def parameter_groups(policy: DiffusionPolicy, training: TrainingConfig) -> list[dict[str, Any]]:
    """Return AdamW's groups; a transformer's biases, norms and positions are not decayed."""
    matrices, others = [], []
    for name, parameter in policy.network.named_parameters():
        plain = policy.config.network == 'unet'
        decayed = plain or parameter.ndim > 1 and not name.endswith('position')
        (matrices if decayed else others).append(parameter)
    return [{'params': matrices, 'weight_decay': training.weight_decay},
            {'params': others, 'weight_decay': 0.0},
            {'params': list(policy.encoders.parameters()),
             'weight_decay': training.encoder_weight_decay}]


class Trainer:
    """Weights, their average and the optimiser; all else follows from the step and the seed."""

    def __init__(self, config: Config, data: WindowData, validation: WindowData) -> None:
        self.config, self.data, self.validation = config, data, validation
        training = config.training
        torch.manual_seed(training.seed)
        normalizer = Normalizer.fit(data.arrays_to_normalize())
        self.policy = DiffusionPolicy(config.policy, normalizer)
        self.average = DiffusionPolicy(config.policy, normalizer).requires_grad_(False)
        self.average.load_state_dict(self.policy.state_dict())
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.policy, training), lr=training.learning_rate,
            betas=training.betas)
        self.starts = data.segment_starts(training.segment_windows)
        self.step = 0

    @property
    def learning_rate(self) -> float:
        """Of the step to come."""
        training = self.config.training
        if self.step < training.warmup_steps:
            return training.learning_rate * (self.step + 1) / training.warmup_steps
        done = (self.step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
        return training.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))

    def advance(self) -> float:
        """Take one optimiser step; return its loss."""
        training = self.config.training
        # Drawn from the seed and the step alone, so that a resumed run draws the same.
        rng = np.random.default_rng([training.seed, self.step])
        starts = rng.choice(self.starts, training.segments, replace=False)
        batch = self.data.segments(starts, training.segment_windows)
        noise_seed, dropout_seed = rng.integers(2 ** 62, size=2).tolist()
        torch.manual_seed(dropout_seed)
        loss = self._loss(self.policy, batch, noise_seed)
        for group in self.optimizer.param_groups:
            group['lr'] = self.learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if training.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), training.clip_norm)
        self.optimizer.step()
        decay = min(training.ema_max, 1.0 - (1.0 + self.step) ** -training.ema_power)
        torch._foreach_lerp_(list(self.average.parameters()),
                             [weight.detach() for weight in self.policy.parameters()], 1.0 - decay)
        self.step += 1
        return loss.item()

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Return the averaged weights' loss on held-out windows, the same noise every time."""
        rng = np.random.default_rng(self.config.training.seed)
        rows = np.flatnonzero(self.validation.windows.trained)
        rows = rng.choice(rows, min(VALIDATION_WINDOWS, len(rows)), replace=False)
        return self._loss(self.average, self.validation.batch(rows), seed=0, cropped=False).item()

    def save(self, folder: Path, provenance: dict[str, Any]) -> None:
        """Write the state to resume from and the averaged weights as a checkpoint."""
        state = {'policy': self.policy.state_dict(), 'average': self.average.state_dict(),
                 'optimizer': self.optimizer.state_dict(), 'step': self.step,
                 'config': json.dumps(to_mapping(self.config))}
        torch.save(state, folder / '.state.pt.new')
        os.replace(folder / '.state.pt.new', folder / 'state.pt')
        save_checkpoint(folder / 'checkpoint', self.average, {**provenance, 'step': self.step})

    def resume(self, path: Path) -> None:
        """
        Go on from a saved state.

        Raises:
            ValueError: it was saved by a run with another configuration.
        """
        state = torch.load(path, weights_only=True)
        if json.loads(state['config']) != to_mapping(self.config):
            raise ValueError(f'{path}: was saved with another configuration, expected the same '
                             'or another folder')
        self.policy.load_state_dict(state['policy'])
        self.average.load_state_dict(state['average'])
        self.optimizer.load_state_dict(state['optimizer'])
        self.step = state['step']

    def _loss(self, policy: DiffusionPolicy, batch: WindowBatch, seed: int,
              cropped: bool = True) -> torch.Tensor:
        draws = self.config.training.noise_draws
        images = {name: torch.from_numpy(frames).permute(0, 3, 1, 2)
                  for name, frames in batch.images.items()}
        drawn = policy.draw({'images': images, 'action': torch.from_numpy(batch.action)},
                            torch.Generator().manual_seed(seed), draws)
        with torch.autocast('cpu', torch.bfloat16, enabled=self.config.training.bf16):
            features = policy.encode(images, drawn['crop'] if cropped else None)
        if features is not None:
            features = features.float()[torch.from_numpy(batch.frames)]
        state = None if batch.state is None else torch.from_numpy(batch.state)
        return policy.loss_from_features(features, state, drawn['action'], drawn['noise'],
                                         drawn['timestep'])


def read_data(path: Path, config: Config) -> tuple[WindowData, WindowData, dict[str, Any]]:
    """Return what is trained on, what is held out, and the data's provenance."""
    training = config.training
    cameras = tuple(camera.name for camera in config.policy.observation.cameras)
    buffer = load_replay_buffer(path, cameras)
    used = buffer.head(training.episodes + training.validation_episodes)
    train, held_out = used.split(training.episodes)
    provenance = {'data': {'name': path.name, 'sha256': used.digest(),
                           'task': buffer.attributes['task'],
                           'seed_start': buffer.attributes['seed_start'],
                           'episodes': training.episodes,
                           'validation_episodes': training.validation_episodes,
                           'frames': int(train.episode_ends[-1]),
                           'versions': buffer.attributes['versions']}}
    return WindowData(train, config.policy), WindowData(held_out, config.policy), provenance


def train(config: Config, dataset: Path, folder: Path) -> None:
    """
    Train until the last step, going on from what `folder` holds.

    Raises:
        ValueError: in one line: data or folder do not fit the configuration.
    """
    data, validation, provenance = read_data(dataset, config)
    trainer = Trainer(config, data, validation)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / 'state.pt').exists():
        trainer.resume(folder / 'state.pt')
    else:
        (folder / 'metrics.jsonl').unlink(missing_ok=True)
    provenance |= {'training': to_mapping(config.training), 'machine': platform.machine(),
                   'threads': torch.get_num_threads(),
                   'versions': {'python': platform.python_version(),
                                **{name: version(name) for name in ('torch', 'torchvision')}}}
    steps = config.training.steps
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(),
               TextColumn('{task.fields[rate]:.2f} steps/s'), TimeRemainingColumn())
    with Progress(*columns, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task('training', total=steps, completed=trainer.step, rate=0.0)
        losses, started, first = [], time.perf_counter(), trainer.step
        while trainer.step < steps:
            losses.append(trainer.advance())
            rate = (trainer.step - first) / (time.perf_counter() - started)
            progress.update(bar, completed=trainer.step, rate=rate,
                            description=f'loss {np.mean(losses[-LOG_EVERY:]):.4f}')
            saving = trainer.step % config.training.save_every == 0 or trainer.step == steps
            if trainer.step % LOG_EVERY == 0 or saving:
                _log(folder, trainer, losses, rate, saving)
                losses = []
            if saving:
                trainer.save(folder, provenance)
    draw_losses(folder)
    print(f'wrote {folder}/checkpoint after {trainer.step} steps')


def _log(folder: Path, trainer: Trainer, losses: list[float], rate: float, validate: bool) -> None:
    row = {'step': trainer.step, 'loss': float(np.mean(losses)),
           'learning_rate': trainer.learning_rate, 'steps_per_s': round(rate, 3)}
    if validate:
        row['validation_loss'] = trainer.validation_loss()
    with (folder / 'metrics.jsonl').open('a') as file:
        file.write(json.dumps(row) + '\n')


def draw_losses(folder: Path) -> None:
    """Draw loss.png from metrics.jsonl; where a run was resumed the later rows count."""
    rows = {row['step']: row for row in
            map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())}
    figure = Figure(figsize=(6, 3.5), layout='constrained')
    axes = figure.subplots()
    for key, style in (('loss', '-'), ('validation_loss', 'o-')):
        points = [(step, row[key]) for step, row in sorted(rows.items()) if key in row]
        axes.plot(*zip(*points, strict=True), style, markersize=3, label=key.replace('_', ' '))
    axes.set(xlabel='optimiser step', ylabel='mean squared error of the noise', yscale='log')
    axes.legend()
    figure.savefig(folder / 'loss.png', dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.strip().split('\n\n')[0])
    parser.add_argument('config', type=Path, help='file of config/training/')
    parser.add_argument('-d', '--dataset', type=Path, required=True, help='zarr replay buffer')
    parser.add_argument('-o', '--output', type=Path, required=True, help='folder to write')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                        dest='overrides', help='override a value, for example training.steps=3000')
    parser.add_argument('--threads', type=int, default=os.cpu_count(), help='PyTorch threads')
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        train(read_config(options.config, options.overrides), options.dataset, options.output)
    except ValueError as error:
        sys.exit(f'train: {error}')
    except KeyboardInterrupt:
        sys.exit('train: stopped; the same command goes on from the last saved step')


if __name__ == '__main__':
    main()
