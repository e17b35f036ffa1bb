#!/usr/bin/env python3
"""
Train and evaluate every variant on every task of a table: `compare.py TABLE -r results/NAME`.

Demonstrations that are missing are collected first. Each result is `<task>/<variant>.json` in the
folder of `--results`; those that are there already are not run again, so the command can be
stopped and goes on where it was; one that the table would not give is refused. `report.py` draws
them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
import shutil
import signal
import subprocess
import sys

from arguments import at_least, Parser
from settings import read_config
from table import read_result, Table, Variant

from diffusion_policy_ros.sim.tasks import data_set_name
from diffusion_policy_ros.typed import from_mapping, load_yaml

HERE = Path(__file__).resolve().parent


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
    step('collect_demos.py', *table.collecting(task), '-o', data)
    overrides = [word for value in training.overrides for word in ('--set', value)]
    threads = ('--threads', options.threads)
    step('train.py', training.base, '-d', data, '-o', training.folder, *overrides, *threads)
    results.mkdir(parents=True, exist_ok=True)
    if variant.of is None:
        shutil.copy(training.folder / 'metrics.jsonl', results / f'{name}.metrics.jsonl')
    step('evaluate.py', training.folder / 'checkpoint', *table.evaluating(name),
         '-o', results / f'{name}.json', *threads)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all that is not done, or what is named."""
    parser = Parser(description=__doc__.strip().split('\n\n')[0],
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
    parser.add_argument('--threads', type=at_least(1), default=2, help='PyTorch threads')
    try:
        options = parser.parse_args(arguments)
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
                config = read_config(training.base, training.overrides)
                found = read_result(result, table, task, name, config)
                print(f'{task}, {name}: {found.n_success}/{found.n_episodes}', flush=True)
    except (ValueError, OSError) as error:
        sys.exit(f'compare: {error}')
    except KeyboardInterrupt:
        sys.exit('compare: stopped; the same command goes on')
    except subprocess.CalledProcessError as error:
        sys.exit(f'compare: {Path(error.cmd[1]).name} ended with exit code {error.returncode}')


if __name__ == '__main__':
    main()
