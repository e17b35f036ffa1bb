"""Tables of tasks and variants: what their files hold, and whether a result is of one."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arguments import Parser
from collection_options import add_arguments, configs_of
from evaluation_options import as_asked, options_of, settings_of
from result_files import read, seed_range
from settings import Config, unlike

from diffusion_policy_ros.sim.tasks import check_task, COLLECTED_BY_DEFAULT
from diffusion_policy_ros.typed import differences, from_mapping, to_mapping


@dataclass(frozen=True)
class Variant:
    """
    One way to train.

    Attributes:
        base: configuration beside the table's file; None for the table's.
        set: overrides of the configuration, `key=value`.
        of: variant whose checkpoint is evaluated, where only the evaluation differs; one of
            another table too, once that has trained it with the same base and overrides.
        evaluate: options of evaluate.py.
    """

    base: str | None = None
    set: tuple[str, ...] = ()
    of: str | None = None
    evaluate: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """
    What one task needs beside the others.

    Attributes:
        cameras: cameras to collect; None for the table's.
        set: overrides for all its variants.
    """

    cameras: tuple[str, ...] | None = None
    set: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """
    Tasks and variants.

    Attributes:
        base: configuration of variants that name none.
        tasks: by name.
        variants: by name.
        collect: options of collect_demos.py.
        cameras: cameras to collect.
        episodes: demonstrations to collect of a task.
        evaluation_episodes: episodes of each evaluation.
    """

    base: str
    tasks: dict[str, Task]
    variants: dict[str, Variant]
    collect: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ('arm', 'wrist')
    episodes: int = 260
    evaluation_episodes: int = 50

    def __post_init__(self) -> None:
        for task in self.tasks:
            check_task(task)
            self.collection(task)
        for name, variant in self.variants.items():
            self._check_of(name, variant)
            self.evaluation(name)

    def _check_of(self, name: str, variant: Variant) -> None:
        if variant.of is None:
            return
        if variant.base or variant.set:
            raise ValueError(f'variant {name}: found base {variant.base!r} and set '
                             f'{list(variant.set)} beside of {variant.of}, which says how it is '
                             'trained; expected neither')
        further = self.variants.get(variant.of, Variant()).of
        if further is not None:
            raise ValueError(f'variant {name}: of is {variant.of}, which is itself of {further}, '
                             'expected a variant that is trained')

    def collecting(self, task: str) -> list[str]:
        """Return the words that collect_demos.py is run with, but for the output."""
        cameras = self.tasks[task].cameras
        return ['--task', task, '--episodes', str(self.episodes), '--cameras',
                *(self.cameras if cameras is None else cameras), *self.collect]

    def collection(self, task: str) -> argparse.Namespace:
        """
        Return what is asked of collect_demos.py.

        Raises:
            ValueError: in one line.
        """
        parser = Parser()
        add_arguments(parser)
        try:
            asked = parser.parse_args([*self.collecting(task), '-o', 'demonstrations.zarr'])
            configs_of(asked)
        except ValueError as error:
            raise ValueError(f'collecting {task}: {error}') from None
        return asked

    def evaluating(self, name: str) -> list[str]:
        """Return the words that evaluate.py is run with, but for checkpoint and output."""
        return ['--episodes', str(self.evaluation_episodes), *self.variants[name].evaluate]

    def evaluation(self, name: str) -> argparse.Namespace:
        """
        Return what is asked of evaluate.py.

        Raises:
            ValueError: in one line; also where it would not make one result of the table's task.
        """
        try:
            asked = options_of(['checkpoint', *self.evaluating(name), '-o', 'result.json'])
        except ValueError as error:
            raise ValueError(f'variant {name}: evaluate: {error}') from None
        if asked.task or len(asked.noise_seed) != 1:
            raise ValueError(f'variant {name}: evaluate: found tasks {asked.task} and noise seeds '
                             f"{asked.noise_seed}, expected the table's task and one seed")
        return asked


@dataclass(frozen=True)
class Result:
    """What is used of a file of evaluate.py; None where an older one does not say."""

    n_success: int
    n_episodes: int
    trained: dict[str, dict[str, Any] | None] | None = None
    task: str | None = None
    seeds: tuple[int, ...] | None = None
    noise_seed: int | None = None
    blend_s: float | None = None
    sampler: str | None = None
    num_inference_steps: int | None = None
    timestep_spacing: str | None = None
    n_action_steps: int | None = None
    workers: int | None = None
    device: str | None = None


def read_result(path: Path, table: Table, task: str, name: str, expected: Config) -> Result:
    """
    Return a variant's result on a task.

    Raises:
        ValueError: in one line that names the file, where the table would give another; what an
            older result does not say is not compared.
    """
    result = read(Result, path)
    trained = result.trained or {}
    if not (trained.get('policy') and trained.get('training')):
        raise ValueError(f'{path}: does not say what was trained; move it away to have it anew')
    config = from_mapping(Config, {key: trained[key] for key in ('policy', 'training')}, str(path))
    others = [*unlike(config, expected),
              *_unlike_data(trained.get('data') or {}, config, table.collection(task)),
              *_unlike_evaluation(result, config, table.evaluation(name))]
    if others:
        raise ValueError(f'{path}: {"; ".join(others)}; move it away to have it anew')
    return result


def _unlike_data(data: dict[str, Any], config: Config, asked: argparse.Namespace) -> list[str]:
    """Return in what the demonstrations that were used differ from those that are asked for."""
    settings = to_mapping(configs_of(asked)[0])
    cameras = settings.pop('cameras')
    found = {**COLLECTED_BY_DEFAULT, **data}
    lines = differences(found, {key: value for key, value in settings.items() if key in found},
                        'trained.data.')
    used = [camera.name for camera in config.policy.observation.cameras]
    if not {*used} <= {*cameras}:
        lines.append(f'the cameras {used} were used, expected some of {cameras}')
    episodes = config.training.episodes + config.training.validation_episodes
    if episodes > asked.episodes:
        lines.append(f'{episodes} demonstrations were used, expected at most {asked.episodes}')
    return lines


def _unlike_evaluation(result: Result, config: Config, asked: argparse.Namespace) -> list[str]:
    """Return in what an evaluation differs from the one that is asked for."""
    policy, seeds = as_asked(config.policy, asked), range(asked.seed, asked.seed + asked.episodes)
    expected = {'n_episodes': asked.episodes, 'device': asked.device, **settings_of(
        policy, policy.task, seeds, *asked.noise_seed, asked.blend, asked.workers)}
    found = {key: value for key, value in vars(result).items() if value is not None}
    for values in (expected, found):
        values['seeds'] = seed_range(values.get('seeds', seeds))
    return differences(found, {key: expected[key] for key in expected if key in found})
