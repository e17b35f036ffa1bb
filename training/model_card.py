#!/usr/bin/env python3
"""
Write a checkpoint's model card: `model_card.py TRAINED -e EVALUATION.json -v VARIANTS -o FOLDER`.

TRAINED is a folder of train.py. FOLDER gets the checkpoint, its training curve and README.md.
Every number in that comes from the checkpoint's provenance and evaluate.py's JSON files.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
import shutil
from statistics import median
import sys
from typing import Any

from result_files import pick, read, seed_range
from whole_output import check_writable, write_text

from diffusion_policy_ros.control.executor_config import ExecutorConfig
from diffusion_policy_ros.policy.checkpoint_config import (
    checkpoint_hash,
    CheckpointConfig,
    CONFIG_NAME,
    read_checkpoint_config,
)
from diffusion_policy_ros.policy.config import PolicyConfig
from diffusion_policy_ros.sim.tasks import COLLECTED_BY_DEFAULT, TICKS_AFTER_SUCCESS
from diffusion_policy_ros.statistics import percent
from diffusion_policy_ros.typed import differences


@dataclass(frozen=True)
class Evaluation:
    """What is used of the checkpoint's file of evaluate.py."""

    task: str
    checkpoint_sha256: str
    sampler: str
    num_inference_steps: int
    timestep_spacing: str
    blend_s: float
    seeds: tuple[int, ...]
    noise_seed: int
    n_success: int
    n_episodes: int
    wilson95: tuple[float, float]
    versions: dict[str, str]
    n_action_steps: int | None = None


@dataclass(frozen=True)
class Variant:
    """What is used of a variant's file of evaluate.py."""

    task: str
    seeds: tuple[int, ...]
    success: tuple[bool, ...]
    steps: tuple[int, ...]
    n_success: int
    n_episodes: int
    wilson95: tuple[float, float]
    limits_acted: int
    trained_steps: int
    trained: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.success):
            raise ValueError(f'found {len(self.steps)} steps, expected {len(self.success)}, one '
                             'for each success')


@dataclass(frozen=True)
class Data:
    """What is used of a provenance's data; `seed_start` is the scripted expert's alone."""

    episodes: int
    frames: int
    sha256: str
    seed_start: int | None = None
    start_offset: float = 0.0
    ticks_after_success: int = TICKS_AFTER_SUCCESS
    goal_offset: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Training:
    """What is used of a provenance's training."""

    segments: int
    segment_windows: int
    learning_rate: float
    weight_decay: float
    seed: int
    ema_max: float


@dataclass(frozen=True)
class Provenance:
    """What is used of a provenance."""

    step: int
    data: dict[str, Any]
    training: dict[str, Any]


def card(config: CheckpointConfig, result: Evaluation, variants: dict[str, Variant],
         where: str) -> str:
    """
    Return the text of README.md.

    Raises:
        ValueError: in one line that begins with `where`, when the provenance lacks something.
    """
    policy, where = config.policy, f'{where}: provenance'
    provenance = pick(Provenance, config.provenance, where)
    data = pick(Data, provenance.data, f'{where}.data')
    training = pick(Training, provenance.training, f'{where}.training')
    averaged, ema = ('averaged ', 'EMA, ') if training.ema_max else ('', '')
    cameras = ', '.join(f'`{camera.name}` ({camera.source_height}x{camera.source_width} scaled to '
                        f'{camera.height}x{camera.width}, crop {policy.vision.crop_height})'
                        for camera in policy.observation.cameras)
    lines = [
        f'# {policy.task}', '',
        'A visual diffusion policy for MetaWorld, made by the scripts of this repository.', '',
        f'**Success {result.n_success}/{result.n_episodes} ({percent(result.wilson95)})**, '
        f'n = {result.n_episodes}, Wilson 95 % interval, environment seeds '
        f'{seed_range(result.seeds)} (never used for demonstrations), noise seed '
        f'{result.noise_seed}, at most 500 ticks, the last {averaged}weights of one training '
        f'run, not the best of several.', '',
        '| | |', '|---|---|',
        f'| observes | {cameras}; {", ".join(policy.observation.state) or "no arm state"} |',
        f'| predicts | {", ".join(policy.action.parts)}, position {policy.action.target} |',
        f'| steps | To {policy.n_obs_steps}, Tp {policy.horizon}, Ta {policy.n_action_steps}, '
        f'dt {1000 * policy.dt_s:g} ms |',
        f'| network | ResNet-18 of width {policy.vision.base_width}, {policy.vision.pooling}; '
        f'{_network(policy)} |',
        f'| denoising | {policy.noise.num_train_timesteps} levels in training, '
        f'{policy.noise.prediction_type} as the target, '
        f'{policy.noise.sampler.upper()} {policy.noise.num_inference_steps} in use |',
        f'| demonstrations | {_demonstrations(data)}, sha256 `{data.sha256[:16]}` |',
        f'| training | {provenance.step} steps of {training.segments} segments of '
        f'{training.segment_windows} windows, AdamW {training.learning_rate:g}, weight '
        f'decay {training.weight_decay:g}, {ema}seed {training.seed} |',
        f'| versions | {", ".join(map(" ".join, result.versions.items()))} |',
        '', '![training curve](loss.png)', '']
    return '\n'.join([*lines, *_tried(variants, provenance.step, data)])


def _demonstrations(data: Data) -> str:
    if data.seed_start is None:
        return f'{data.episodes} episodes, {data.frames} frames'
    return ', '.join([
        f'{data.episodes} of the scripted expert', f'{data.frames} frames',
        f'seeds from {data.seed_start}',
        *([f'begun elsewhere, a standard deviation of {data.start_offset:g} m an axis']
          if data.start_offset else []),
        *([f'going on for {data.ticks_after_success} ticks after success']
          if data.ticks_after_success != TICKS_AFTER_SUCCESS else []),
        *([f'aimed {list(data.goal_offset)} m beside the goal'] if any(data.goal_offset) else [])])


def _other_data(row: Variant, data: Data, where: str) -> str:
    """Return in what a variant's demonstrations differ, where its result tells."""
    if not (row.trained or {}).get('data'):
        return ''
    found = pick(Data, row.trained['data'], where)
    others = differences(vars(found), {
        key: getattr(data, key) for key in ('seed_start', *COLLECTED_BY_DEFAULT)})
    return f' ({"; ".join(others)})' if others else ''


def _words(name: str) -> str:
    return name.replace('_', ' ')


def _tried(variants: dict[str, Variant], steps: int, data: Data) -> list[str]:
    """Return the lines of the variants beside the checkpoint's own steps and data."""
    if not variants:
        return []
    trained = ' or '.join(map(str, sorted({row.trained_steps for row in variants.values()})))
    seeds = ' or '.join(sorted({seed_range(row.seeds) for row in variants.values()}))
    lines = ['## What was tried', '',
             f'Demonstrations of the same seeds where no other is named, {trained} training steps '
             f'(above: {steps}), each evaluated once. Environment seeds {seeds}.', '',
             '| variant | success | interval | median ticks | limits acted |',
             '|---|---|---|---|---|']
    for name, row in variants.items():
        won = [ticks for ticks, success in zip(row.steps, row.success) if success]
        middle = f'{median(won):g}' if won else '-'
        label = _words(name) + _other_data(row, data, name)
        lines.append(f'| {label} | {row.n_success}/{row.n_episodes} '
                     f'| {percent(row.wilson95)} | {middle} | {row.limits_acted} |')
    lines += ['', "Limits acted: how often the executor's limits changed a command, all episodes "
              'together.']
    older = [name for name, row in variants.items() if not row.trained]
    if older:
        lines.append('Of an older recipe, with one noise for all episodes, so to be compared with '
                     f'each other only: {", ".join(map(_words, older))}.')
    return [*lines, '']


def _network(policy: PolicyConfig) -> str:
    if policy.network == 'unet':
        return f'U-Net {list(policy.unet.down_dims)}'
    size = policy.transformer
    return (f'transformer of {size.n_layers} layers, {size.n_heads} heads, {size.embed_dim} wide, '
            f'{size.conditioning}')


def read_evaluation(path: Path, checkpoint: Path, policy: PolicyConfig) -> Evaluation:
    """
    Return a checkpoint's evaluation as the nodes run it.

    Raises:
        ValueError: in one line that names the file, when it is of another checkpoint or otherwise.
    """
    result, noise = read(Evaluation, path), policy.noise
    if result.checkpoint_sha256 != checkpoint_hash(checkpoint):
        raise ValueError(f'{path}: evaluates another checkpoint than {checkpoint}')
    expected = {'task': policy.task, 'n_action_steps': policy.n_action_steps,
                'sampler': noise.sampler,
                'num_inference_steps': noise.num_inference_steps,
                'timestep_spacing': noise.timestep_spacing, 'blend_s': ExecutorConfig().blend_s}
    found = {'n_action_steps': policy.n_action_steps, **{
        key: value for key, value in vars(result).items() if value is not None}}
    if others := differences(found, expected):
        raise ValueError(f'{path}: {"; ".join(others)}, as the nodes run it')
    return result


def read_variant(path: Path, task: str) -> Variant:
    """
    Return a variant's result.

    Raises:
        ValueError: in one line that names the file, when it is of another task or otherwise.
    """
    result = read(Variant, path)
    if result.task != task:
        raise ValueError(f'{path}: task is {result.task!r}, expected {task!r}')
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the card from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.strip().split('\n\n')[0])
    parser.add_argument('trained', type=Path, help='folder of train.py')
    parser.add_argument('-e', '--evaluation', type=Path, required=True, help="evaluate.py's JSON")
    parser.add_argument('-v', '--variants', type=Path, help='folder of JSON results of variants')
    parser.add_argument('-o', '--output', type=Path, required=True, help='folder to write')
    options = parser.parse_args(arguments)
    source = options.trained / 'checkpoint'
    try:
        config = read_checkpoint_config(source)
        result = read_evaluation(options.evaluation, source, config.policy)
        paths = sorted(options.variants.glob('*.json')) if options.variants else ()
        variants = {path.stem: read_variant(path, config.policy.task) for path in paths}
        text = card(config, result, variants, str(source / CONFIG_NAME))
        check_writable(options.output / 'README.md')
        shutil.copy(options.trained / 'loss.png', options.output)
        shutil.copytree(source, options.output, dirs_exist_ok=True)
        write_text(options.output / 'README.md', text)
    except (OSError, ValueError) as error:
        sys.exit(f'model_card: {error}')
    print(f'wrote {options.output}/README.md')


if __name__ == '__main__':
    main()
