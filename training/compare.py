#!/usr/bin/env python3
"""
Train and evaluate every variant on every task of a table: `compare.py TABLE -r results/NAME`.

Demonstrations that are missing are collected first. Each result is `<task>/<variant>.json` in the
folder of `--results`; those that are there already are not run again, so the command can be
stopped and goes on where it was; one of another configuration is refused. `report.py` draws them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
import json
from pathlib import Path
import shutil
import signal
import subprocess
import sys
from typing import Any

from settings import Config, read_config, unlike

from diffusion_policy_ros.sim.tasks import check_task, data_set_name
from diffusion_policy_ros.typed import from_mapping, load_yaml

HERE = Path(__file__).resolve().parent


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


def step(script: str, *arguments: object) -> None:
    """
    Run one script of this folder.

    A signal to stop is passed on once, and the script's end awaited, so that it can save.

    Raises:
        KeyboardInterrupt: there was one.
        subprocess.CalledProcessError: the script failed.
    """
    children, stopped = [], []

    def pass_on(number: int, _: object) -> None:
        stopped.append(number)
        for child in children:
            child.send_signal(number)

    handlers = {number: signal.signal(number, pass_on)
                for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        children.append(subprocess.Popen([sys.executable, HERE / script, *map(str, arguments)],
                                         start_new_session=True))  # a terminal interrupts only us
        code = children[0].wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if stopped:
        raise KeyboardInterrupt
    if code:
        raise subprocess.CalledProcessError(code, children[0].args)


@dataclass(frozen=True)
class Training:
    """
    What a variant's checkpoint comes from on one task.

    Attributes:
        base: configuration file.
        overrides: of it.
        folder: of the run.
    """

    base: Path
    overrides: tuple[str, ...]
    folder: Path

    @classmethod
    def of(cls, table: Table, task: str, name: str, options: argparse.Namespace) -> Training:
        """Return a variant's."""
        variant = table.variants[name]
        source = table.variants.get(variant.of, Variant()) if variant.of else variant
        base = options.table.parent / (source.base or table.base)
        folder = options.output / data_set_name(task) / base.stem / (variant.of or name)
        return cls(base, (f'policy.task={task}', *table.tasks[task].set, *source.set,
                          *options.overrides), folder)


def run(table: Table, task: str, name: str, training: Training,
        options: argparse.Namespace) -> None:
    """
    Collect, train and evaluate one variant on one task, as far as that is not done.

    Raises:
        ValueError: it is of a variant that neither this table nor another has trained.
    """
    variant, short = table.variants[name], data_set_name(task)
    trained = training.folder / 'checkpoint'
    if variant.of not in (None, *table.variants) and not trained.exists():
        raise ValueError(f'{options.table}: variant {name} is of {variant.of}, expected one of '
                         f'{", ".join(table.variants)}, or {trained}')
    data, results = options.datasets / f'{short}.zarr', options.results / short
    cameras = table.tasks[task].cameras or table.cameras
    step('collect_demos.py', '--task', task, '--episodes', table.episodes, '--cameras', *cameras,
         *table.collect, '-o', data)
    overrides = [word for value in training.overrides for word in ('--set', value)]
    threads = ('--threads', options.threads)
    step('train.py', training.base, '-d', data, '-o', training.folder, *overrides, *threads)
    results.mkdir(parents=True, exist_ok=True)
    if variant.of is None:
        shutil.copy(training.folder / 'metrics.jsonl', results / f'{name}.metrics.jsonl')
    step('evaluate.py', training.folder / 'checkpoint', '--episodes', table.evaluation_episodes,
         '-o', results / f'{name}.json', *variant.evaluate, *threads)


def read_result(path: Path, training: Training, episodes: int) -> dict[str, Any]:
    """
    Return a result.

    Raises:
        ValueError: it is of another configuration, or of another number of episodes.
    """
    found = json.loads(path.read_text())
    trained = found.get('trained') or {}
    if not (trained.get('policy') and trained.get('training')):
        raise ValueError(f'{path}: does not say what was trained; move it away to have it anew')
    config = from_mapping(Config, {key: trained[key] for key in ('policy', 'training')}, str(path))
    others = unlike(config, read_config(training.base, training.overrides))
    if found['n_episodes'] != episodes:
        others.append(f"n_episodes is {found['n_episodes']}, expected {episodes}")
    if others:
        raise ValueError(f'{path}: {"; ".join(others)}; move it away to have it anew')
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all that is not done, or what is named."""
    parser = argparse.ArgumentParser(description=__doc__.strip().split('\n\n')[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('table', type=Path, help='YAML file of tasks and variants')
    parser.add_argument('-d', '--datasets', type=Path, default=Path('data_sets'),
                        help='folder of the demonstrations')
    parser.add_argument('-o', '--output', type=Path, default=Path('out/training'),
                        help='folder of the trainings')
    parser.add_argument('-r', '--results', type=Path, required=True, help='folder of JSON results')
    parser.add_argument('--tasks', nargs='*', metavar='TASK', help='tasks to run; all by default')
    parser.add_argument('--variants', nargs='*', metavar='NAME',
                        help='variants to run; all by default')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                        dest='overrides', help='override a value in every variant')
    parser.add_argument('--threads', type=int, default=2, help='PyTorch threads')
    options = parser.parse_args(arguments)
    try:
        table = from_mapping(Table, load_yaml(options.table), str(options.table))
        for asked, known in ((options.tasks, table.tasks), (options.variants, table.variants)):
            unknown = sorted(set(asked or ()) - set(known))
            if unknown:
                raise ValueError(f'{unknown[0]}: expected one of {", ".join(known)}')
        for name in options.variants or table.variants:
            for task in options.tasks or table.tasks:
                result = options.results / data_set_name(task) / f'{name}.json'
                training = Training.of(table, task, name, options)
                if not result.exists():
                    print(f'{task}, {name}:', flush=True)
                    run(table, task, name, training, options)
                found = read_result(result, training, table.evaluation_episodes)
                print(f"{task}, {name}: {found['n_success']}/{found['n_episodes']}", flush=True)
    except (ValueError, OSError) as error:
        sys.exit(f'compare: {error}')
    except KeyboardInterrupt:
        sys.exit('compare: stopped; the same command goes on')
    except subprocess.CalledProcessError as error:
        sys.exit(f'compare: {Path(error.cmd[1]).name} ended with exit code {error.returncode}')


if __name__ == '__main__':
    main()
