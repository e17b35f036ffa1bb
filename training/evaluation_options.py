"""What evaluate.py is asked for: its command line, and what an outcome depends on."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from arguments import at_least, Parser, within

from diffusion_policy_ros.control.executor_config import ExecutorConfig
from diffusion_policy_ros.policy.config import PolicyConfig
from diffusion_policy_ros.policy.diffusion_policy import SAMPLERS
from diffusion_policy_ros.policy.levels import LEVELS
from diffusion_policy_ros.sim.tasks import TASK_SETS

BLEND = {field.name: field for field in fields(ExecutorConfig)}['blend_s']
DEFAULT_BLEND_S = BLEND.default


def options_of(arguments: Sequence[str] | None, description: str = '') -> argparse.Namespace:
    """
    Read the command line.

    Raises:
        ValueError: in one line that names the argument.
    """
    parser = Parser(description=description,
                    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('checkpoint', type=Path, help='folder with model.safetensors, config.yaml')
    parser.add_argument('-o', '--output', type=Path, help='JSON file to write, and a CSV beside')
    parser.add_argument('--task', nargs='*', default=[],
                        help=f'MetaWorld tasks, or {", ".join(TASK_SETS)}; the checkpoint\'s own '
                        'where none is given')
    parser.add_argument('--episodes', type=at_least(1), default=100, help='episodes, one a seed')
    parser.add_argument('--seed', type=int, default=0, help='first environment seed')
    parser.add_argument('--noise-seed', type=at_least(0), nargs='+', default=[0],
                        help="added to an episode's seed, the seed of its denoising noise; every "
                        'episode is run with each')
    parser.add_argument('--inference-steps', type=int, default=None, metavar='N',
                        help="denoising steps; the checkpoint's own where left out")
    parser.add_argument('--sampler', choices=sorted(SAMPLERS),
                        help="the checkpoint's own where left out")
    parser.add_argument('--timestep-spacing', choices=sorted(LEVELS),
                        help="the checkpoint's own where left out")
    parser.add_argument('--action-steps', type=int, default=None, metavar='N',
                        help="executed steps of each chunk; the checkpoint's own where left out")
    parser.add_argument('--workers', type=at_least(1), default=2, help='parallel environments')
    parser.add_argument('--threads', type=at_least(1), default=1, help='PyTorch threads')
    parser.add_argument('--device', default='cpu', help="PyTorch's device of the policy")
    parser.add_argument('--blend', type=within(BLEND.metadata['min'], BLEND.metadata['max']),
                        metavar='SECONDS', default=DEFAULT_BLEND_S,
                        help='time over which a chunk replaces the one before it')
    parser.add_argument('--video', type=at_least(0), default=0, metavar='N',
                        help='film the first N successes and the first N failures')
    options = parser.parse_args(arguments)
    if options.output and (options.output.suffix != '.json' or options.output.is_dir()):
        raise ValueError(f'--output {options.output}: expected a file whose name ends in .json')
    if options.video and not options.output:
        raise ValueError('--video needs --output, expected a place for the videos')
    return options


def as_asked(config: PolicyConfig, options: argparse.Namespace) -> PolicyConfig:
    """Return a checkpoint's configuration with what the command line asks for in its place."""
    sampling = {'sampler': options.sampler, 'num_inference_steps': options.inference_steps,
                'timestep_spacing': options.timestep_spacing}
    noise = replace(config.noise, **_given(sampling))
    return replace(config, noise=noise, **_given({'n_action_steps': options.action_steps}))


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def settings_of(config: PolicyConfig, task: str, seeds: Sequence[int], noise_seed: int,
                blend_s: float, workers: int) -> dict[str, Any]:
    """
    Return what an outcome depends on beside checkpoint, device and versions.

    The number of workers is the batch of a prediction, whose rounding depends on it.
    """
    noise = config.noise
    return {'task': task, 'seeds': list(seeds), 'noise_seed': noise_seed,
            'noise_seeds': [noise_seed + seed for seed in seeds], 'blend_s': blend_s,
            'sampler': noise.sampler, 'num_inference_steps': noise.num_inference_steps,
            'timestep_spacing': noise.timestep_spacing,
            'n_action_steps': config.n_action_steps, 'workers': min(workers, len(seeds))}
