#!/usr/bin/env python3
"""
Write a checkpoint's model card: `model_card.py TRAINED -e EVALUATION.json -v VARIANTS -o FOLDER`.

TRAINED is a folder of train.py. FOLDER gets the checkpoint, its training curve and README.md.
Every number in that comes from the checkpoint's provenance and evaluate.py's JSON files.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import json
from pathlib import Path
import shutil
import sys
from typing import Any

from diffusion_policy_ros.policy.checkpoint_config import (
    checkpoint_hash,
    CheckpointConfig,
    read_checkpoint_config,
)
from diffusion_policy_ros.policy.config import PolicyConfig
from diffusion_policy_ros.typed import differences


def interval(result: dict[str, Any]) -> str:
    """Return `98/100 (93.0-99.4 %)`."""
    low, high = (100 * bound for bound in result['wilson95'])
    return f"{result['n_success']}/{result['n_episodes']} ({low:.1f}-{high:.1f} %)"


def seeds(result: dict[str, Any]) -> str:
    """Return the environment seeds of a result as a range."""
    return f"{min(result['seeds'])}-{max(result['seeds'])}"


def card(config: CheckpointConfig, result: dict[str, Any],
         variants: dict[str, dict[str, Any]]) -> str:
    """Return the text of README.md."""
    policy, provenance = config.policy, config.provenance
    data, training = provenance['data'], provenance['training']
    cameras = ', '.join(f'`{camera.name}` ({camera.source_height}x{camera.source_width} scaled to '
                        f'{camera.height}x{camera.width}, crop {policy.vision.crop_height})'
                        for camera in policy.observation.cameras)
    lines = [
        f'# {policy.task}', '',
        'A visual diffusion policy for MetaWorld, made by the scripts of this repository.', '',
        f'**Success {interval(result)}**, n = {result["n_episodes"]}, Wilson 95 % interval, '
        f'environment seeds {seeds(result)} (never used for demonstrations), noise seed '
        f'{result["noise_seed"]}, at most 500 ticks, the last averaged weights of one training '
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
        f'| demonstrations | {data["episodes"]} of the scripted expert, {data["frames"]} frames, '
        f'seeds from {data["seed_start"]}, sha256 `{data["sha256"][:16]}` |',
        f'| training | {provenance["step"]} steps of {training["segments"]} segments of '
        f'{training["segment_windows"]} windows, AdamW {training["learning_rate"]:g}, weight '
        f'decay {training["weight_decay"]:g}, EMA, seed {training["seed"]} |',
        f'| versions | {", ".join(map(" ".join, result["versions"].items()))} |',
        '', '![training curve](loss.png)', '']
    if variants:
        lines += ['## What was tried', '',
                  f'Demonstrations of the same seeds, {_trained(variants)} training steps (above: '
                  f'{provenance["step"]}), each evaluated once. {_note(variants)}',
                  '', '| variant | success | interval | median ticks | limits acted |',
                  '|---|---|---|---|---|']
        for name, row in variants.items():
            won = sorted(steps for steps, success
                         in zip(row['steps'], row['success'], strict=True) if success)
            low, high = (100 * bound for bound in row['wilson95'])
            lines.append(f"| {name.replace('_', ' ')} | {row['n_success']}/{row['n_episodes']} "
                         f'| {low:.1f}-{high:.1f} % | {won[len(won) // 2] if won else "-"} '
                         f"| {row['limits_acted']} |")
        lines.append('')
    return '\n'.join(lines)


def _network(policy: PolicyConfig) -> str:
    if policy.network == 'unet':
        return f'U-Net {list(policy.unet.down_dims)}'
    size = policy.transformer
    return (f'transformer of {size.n_layers} layers, {size.n_heads} heads, {size.embed_dim} wide, '
            f'{size.conditioning}')


def _trained(variants: dict[str, dict[str, Any]]) -> str:
    return ' or '.join(map(str, sorted({row['trained_steps'] for row in variants.values()})))


def _note(variants: dict[str, dict[str, Any]]) -> str:
    ranges = sorted({seeds(row) for row in variants.values()})
    return f'Environment seeds {" or ".join(ranges)}.'


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
        result = json.loads(options.evaluation.read_text())
        if result['checkpoint_sha256'] != checkpoint_hash(source):
            raise ValueError(f'{options.evaluation}: evaluates another checkpoint than {source}')
        noise = config.policy.noise
        expected = {'task': config.policy.task, 'sampler': noise.sampler,
                    'num_inference_steps': noise.num_inference_steps}
        if others := differences(result, expected):
            raise ValueError(f'{options.evaluation}: {"; ".join(others)}, as the checkpoint says')
        variants = {}
        if options.variants:
            variants = {path.stem: json.loads(path.read_text())
                        for path in sorted(options.variants.glob('*.json'))}
    except (OSError, ValueError) as error:
        sys.exit(f'model_card: {error}')
    shutil.copytree(source, options.output, dirs_exist_ok=True)
    shutil.copy(options.trained / 'loss.png', options.output)
    (options.output / 'README.md').write_text(card(config, result, variants))
    print(f'wrote {options.output}/README.md')


if __name__ == '__main__':
    main()
