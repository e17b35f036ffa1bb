"""What a file of config/training/ holds, and how the command line changes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import math
from pathlib import Path
import textwrap

import yaml

from diffusion_policy_ros.policy.config import one_of, PolicyConfig, positive
from diffusion_policy_ros.typed import (
    describe, differences, from_mapping, load_yaml, to_mapping,
)


@dataclass(frozen=True)
class TrainingConfig:
    """
    How a policy is trained.

    Attributes:
        episodes: demonstrations taken from the data set, the first ones.
        steps: optimiser steps; 0 where `epochs` says how long.
        epochs: times that each window is seen; 0 where `steps` says how long.
        validation_episodes: demonstrations after those, for validation alone.
        segments: stretches of neighbouring windows in a process's batch; frames are encoded once.
        segment_windows: windows of a segment, one policy step apart; 1 for independent windows.
        noise_draws: noise levels drawn for each window.
        accumulation: batches whose gradients make one optimiser step.
        learning_rate: of AdamW, after the warm-up; a cosine brings it to 0.
        betas: of AdamW.
        weight_decay: of AdamW; of a transformer's matrices alone.
        encoder_weight_decay: of the image encoders.
        clip_norm: greatest norm of a step's gradient; 0 for any.
        warmup_steps: optimiser steps of linear warm-up.
        ema_power: the averaged weights' decay is min(ema_max, 1 - (1 + step)^-ema_power).
        ema_max: its upper bound; 0 for no average, the weights themselves are kept.
        bf16: autocast to bfloat16, on a CPU the image encoder alone; a gain with AMX or on a GPU.
        images: `memory` keeps the pictures in memory, `device` on the accelerator, `mapped` on
            disk, decoded once, for what memory does not hold.
        save_every: optimiser steps from one saved state to the next.
        evaluate_every: epochs from one evaluation in the simulator to the next; 0 for none.
        evaluation_episodes: episodes of each.
        seed: of weights, batches and noise.
    """

    episodes: int
    steps: int = 0
    epochs: float = 0.0
    validation_episodes: int = 10
    segments: int = 16
    segment_windows: int = 8
    noise_draws: int = 1
    accumulation: int = 1
    learning_rate: float = 1e-4
    betas: tuple[float, ...] = (0.95, 0.999)
    weight_decay: float = 1e-6
    encoder_weight_decay: float = 1e-6
    clip_norm: float = 0.0
    warmup_steps: int = 500
    ema_power: float = 0.75
    ema_max: float = 0.9999
    bf16: bool = False
    images: str = 'memory'
    save_every: int = 250
    evaluate_every: float = 0.0
    evaluation_episodes: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps > 0) == (self.epochs > 0):
            raise ValueError(f'training: steps is {self.steps} and epochs {self.epochs}, expected '
                             'one of them to be more than 0')
        positive(**{f'training.{name}': getattr(self, name) for name in (
            'episodes', 'validation_episodes', 'segments', 'segment_windows', 'noise_draws',
            'accumulation', 'learning_rate', 'save_every', 'evaluation_episodes')})
        for name in ('clip_norm', 'warmup_steps', 'weight_decay', 'encoder_weight_decay', 'seed',
                     'evaluate_every', 'steps', 'epochs'):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f'training.{name} is {getattr(self, name)}, expected a number '
                                 'of at least 0')
        if not (self.ema_power > 0 and 0 <= self.ema_max < 1 and self.learning_rate < math.inf):
            raise ValueError(f'training: ema_power is {self.ema_power}, ema_max {self.ema_max} '
                             f'and learning_rate {self.learning_rate}, expected ema_power and '
                             'learning_rate above 0, ema_max from 0 to less than 1')
        one_of('training.images', self.images, ('memory', 'device', 'mapped'))
        if len(self.betas) != 2:
            raise ValueError(f'training.betas is {list(self.betas)}, expected two numbers')

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Return a step's rate: a linear warm-up, then a cosine to 0 after the last of `steps`."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))

    def ema_decay(self, step: int) -> float:
        """Return the share of the averaged weights that a step leaves."""
        return min(self.ema_max, 1.0 - (1.0 + step) ** -self.ema_power)


@dataclass(frozen=True)
class Config:
    """A file of config/training/."""

    policy: PolicyConfig
    training: TrainingConfig

    def __post_init__(self) -> None:
        if self.training.evaluate_every:  # refused now, not after epochs
            from diffusion_policy_ros.sim.rollout import check_policy
            check_policy(self.policy)


def unlike(found: Config, expected: Config) -> list[str]:
    """Return `key is 1, expected 2` of all values by which two trainings learn differently."""
    values = [to_mapping(config) for config in (found, expected)]
    for value in values:
        for key in ('images', 'save_every', 'evaluate_every', 'evaluation_episodes'):
            del value['training'][key]
    return differences(*values)


def read_config(path: Path, overrides: Sequence[str]) -> Config:
    """
    Read a file and put `key.of.value=value` overrides over it.

    Raises:
        ValueError: in one line that names the file or override and the key.
    """
    values = load_yaml(path)
    if not isinstance(values, dict):
        raise ValueError(f'{path}: found {type(values).__name__}, expected keys and values')
    for override in overrides:
        key, sign, text = override.partition('=')
        if not sign:
            raise ValueError(f'--set {override}: expected key=value')
        *parents, name = key.split('.')
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ValueError(f'--set {override}: {parent} has no {name}')
        try:
            place[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f'--set {override}: {" ".join(str(error).split())}') from None
    return from_mapping(Config, values, str(path))


def say_crops(config: PolicyConfig) -> None:
    """Print a line for each camera of whose pictures the network sees no more than a part."""
    height, width = config.vision.crop_height, config.vision.crop_width
    for camera in config.observation.cameras:
        if (camera.height, camera.width) != (height, width):
            print(f'{camera.name}: crops of {height}x{width} of {camera.height}x{camera.width} '
                  'pixels, at random in training, the middle in use')


def describe_values() -> str:
    """Return the table of a configuration's values."""
    lines = ['values of CONFIG, each of which --set can override (cameras[] as one list):']
    for name, kind, default, note in describe(Config):
        lines += [f'  {name}  ({kind}{", default " + default if default else ""})',
                  *textwrap.wrap(note, 94, initial_indent=' ' * 6, subsequent_indent=' ' * 6)]
    return '\n'.join(lines)
