#!/usr/bin/env python3
"""
Train and evaluate variants of one configuration: `compare.py VARIANTS -d DATASET -o FOLDER`.

Each variant's result is a JSON file in `--results`; those that are there already are not run
again, so the command can be stopped and goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
import json
from pathlib import Path
import subprocess
import sys

from diffusion_policy_ros.typed import from_mapping, load_yaml

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Variant:
    """
    One row of the table.

    Attributes:
        set: overrides of the configuration, `key=value`.
        of: variant whose checkpoint is evaluated, where only the evaluation differs.
        blend_s: overlap of two chunks in the evaluation, seconds; None for the node's default.
    """

    set: tuple[str, ...] = ()
    of: str | None = None
    blend_s: float | None = None


@dataclass(frozen=True)
class Variants:
    """A variants file: the configuration beside it that they change, and each by name."""

    base: str
    variants: dict[str, Variant]


def run_variant(name: str, variant: Variant, config: Path, options: argparse.Namespace) -> None:
    """Train a variant, unless it shares another's checkpoint, and evaluate it."""
    folder = options.output / (variant.of or name)
    threads = ['--threads', str(options.threads)]
    if variant.of is None:
        overrides = [word for value in (*variant.set, *options.overrides)
                     for word in ('--set', value)]
        subprocess.run([sys.executable, HERE / 'train.py', config, '-d', options.dataset,
                        '-o', folder, *overrides, *threads], check=True)
    blend = [] if variant.blend_s is None else ['--blend', str(variant.blend_s)]
    subprocess.run([sys.executable, HERE / 'evaluate.py', folder / 'checkpoint',
                    '--episodes', str(options.episodes), '-o', options.results / f'{name}.json',
                    *blend, *threads], check=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all variants, or those named."""
    parser = argparse.ArgumentParser(description=__doc__.strip().split('\n\n')[0])
    parser.add_argument('variants', type=Path, help='YAML file of variants')
    parser.add_argument('-d', '--dataset', type=Path, required=True, help='zarr replay buffer')
    parser.add_argument('-o', '--output', type=Path, required=True, help='folder of the trainings')
    parser.add_argument('-r', '--results', type=Path, required=True, help='folder of JSON results')
    parser.add_argument('--only', nargs='*', metavar='NAME', help='variants to run')
    parser.add_argument('--episodes', type=int, default=100, help='evaluation episodes')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                        dest='overrides', help='override a value in every variant')
    parser.add_argument('--threads', type=int, default=2, help='PyTorch threads')
    options = parser.parse_args(arguments)
    try:
        table = from_mapping(Variants, load_yaml(options.variants), str(options.variants))
        unknown = set(options.only or ()) - set(table.variants)
        if unknown:
            raise ValueError(f'--only {min(unknown)}: expected one of {", ".join(table.variants)}')
        for name in options.only or table.variants:
            done = options.results / f'{name}.json'
            if done.exists():
                result = json.loads(done.read_text())
                print(f"{name}: {result['n_success']}/{result['n_episodes']} in {done}")
            else:
                print(f'{name}:', flush=True)
                run_variant(name, table.variants[name], options.variants.parent / table.base,
                            options)
    except ValueError as error:
        sys.exit(f'compare: {error}')
    except subprocess.CalledProcessError as error:
        sys.exit(f'compare: {Path(error.cmd[1]).name} ended with exit code {error.returncode}')


if __name__ == '__main__':
    main()
