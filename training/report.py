#!/usr/bin/env python3
"""
Put tables and plots of measured success into Markdown: `report.py docs/results.md -r results`.

`<!-- report: NAME -->` to `<!-- end report -->` is filled from the folder NAME of results, which
holds `<task>/<variant>.json` or, for one task, `<variant>.json`, as evaluate.py writes them.
Variants `steps_4` or `demos_50` are a sweep, drawn over that number. A training's metrics.jsonl,
copied to `<variant>.metrics.jsonl`, becomes learning curves. Text outside the blocks stays.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
import os
from pathlib import Path
import re
from statistics import fmean
import sys

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
import numpy as np
from result_files import parse, read

from diffusion_policy_ros.sim.tasks import check_task, data_set_name
from diffusion_policy_ros.statistics import percent, wilson_interval

START = re.compile(r'^<!-- report: ([\w.-]+) -->\s*?\n', re.MULTILINE)
END = re.compile(r'^<!-- end report -->', re.MULTILINE)
BLOCK = re.compile(rf'({START.pattern})(?:(?!<!-- report:).*\n)*?(?={END.pattern})', re.MULTILINE)
SWEEP = re.compile(r'(steps|demos)_([1-9]\d*)')
SWEPT = {'steps': ('denoising steps', 'num_inference_steps'),
         'demos': ('demonstrations', 'trained_episodes')}
METRICS = '.metrics.jsonl'
WIDEST = 4  # variants, where there are fewer tasks
MARKERS = 'osD^vPX'  # 7, so that with 10 colours 70 lines differ
LINES = ('-', '--', '-.', ':')
COLOURS = matplotlib.colormaps['tab20'].colors
COLOURS = COLOURS[::2] + COLOURS[1::2]  # the strong ones first
STYLE = {'markersize': 4, 'linewidth': 1}


@dataclass(frozen=True)
class Result:
    """What is used of a file of evaluate.py."""

    task: str
    success: tuple[bool, ...]
    n_success: int
    n_episodes: int
    wilson95: tuple[float, float]
    checkpoint_sha256: str | None = None
    num_inference_steps: int | None = None
    trained_episodes: int | None = None

    def __post_init__(self) -> None:
        check_task(self.task)
        found = f'{sum(self.success)}/{len(self.success)}'
        if found != f'{self.n_success}/{self.n_episodes}':
            raise ValueError(f'success holds {found}, not {self.n_success}/{self.n_episodes}')
        interval = wilson_interval(self.n_success, self.n_episodes)
        if not np.allclose(self.wilson95, interval, rtol=0, atol=1e-6):
            raise ValueError(f'wilson95 is {self.wilson95}, expected {interval}')


@dataclass(frozen=True)
class Row:
    """What is used of a line of metrics.jsonl."""

    step: int
    action_error_mm: float | None = None


Results = dict[str, dict[str, Result]]  # by task and variant
Curves = dict[str, list[Row]]  # in the order of steps, by the line's name


def check_sweep(path: Path, result: Result, checkpoints: dict[str, str]) -> None:
    """Refuse a sweep's result whose number is not its name's, or of a second checkpoint."""
    kind, number = match.groups() if (match := SWEEP.fullmatch(path.stem)) else ('', '0')
    if kind and (found := getattr(result, SWEPT[kind][1])) not in (None, int(number)):
        raise ValueError(f'{path}: {SWEPT[kind][1]} is {found}, expected {number}')
    sha256 = result.checkpoint_sha256
    if kind == 'steps' and sha256 and checkpoints.setdefault(result.task, sha256) != sha256:
        raise ValueError(f"{path}: evaluates another checkpoint than the task's other steps")


def read_results(folder: Path) -> Results:
    """
    Return the results in a folder and those in it, in the order of paths.

    Raises:
        ValueError: in one line that names the file whose content is wrong or is not its name's.
    """
    results, checkpoints = {}, {}
    for path in sorted([*folder.glob('*.json'), *folder.glob('*/*.json')]):
        result = read(Result, path)
        short, row = data_set_name(result.task), results.setdefault(result.task, {})
        if path.parent not in (folder, folder / short):
            raise ValueError(f'{path}: holds {result.task}, expected in a folder {short}')
        if path.stem in row:
            raise ValueError(f'{path}: the second {path.stem} of {result.task}')
        check_sweep(path, result, checkpoints)
        row[path.stem] = result
    return results


def read_curves(folder: Path) -> Curves:
    """Return the metrics in a folder and those in it."""
    curves = {}
    paths = [*folder.glob(f'*{METRICS}'), *folder.glob(f'*/*{METRICS}')]
    for path in sorted(paths, key=lambda path: _order(str(path))):
        rows = [parse(Row, line, f'{path}: line {number}')
                for number, line in enumerate(path.read_text(errors='replace').splitlines(), 1)]
        # Most rows have no validation; a resumed run repeats steps, the later ones count.
        latest = {row.step: row for row in rows if row.action_error_mm is not None}
        name = str(path.relative_to(folder)).removesuffix(METRICS)
        curves[name] = [latest[step] for step in sorted(latest)]
    return curves


def _order(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r'(\d+)', name)]


def columns(results: Results) -> Results:
    """Return the results by variant and task; variants are in the order of their numbers."""
    names = sorted({name for row in results.values() for name in row}, key=_order)
    return {name: {task: row[name] for task, row in results.items() if name in row}
            for name in names}


def sweep_of(results: Results) -> str | None:
    """Return `steps` or `demos` where all variants are of that sweep."""
    kinds = {match and match[1] for row in results.values() for match in map(SWEEP.fullmatch, row)}
    return kinds.pop() if len(kinds) == 1 else None


def is_wide(results: Results) -> bool:
    """Return whether each variant had better be a row."""
    return len(columns(results)) > max(WIDEST, len(results)) and not sweep_of(results)


def _number(variant: str) -> int:
    return int(variant.partition('_')[2])


def _height(lines: Collection[str]) -> float:
    return max(3.5, 0.5 + 0.23 * len(lines))  # inches, for the legend


def _words(name: str) -> str:
    return name.replace('_', ' ')


def cell(results: Iterable[Result]) -> str:
    """Return `48/50 (86.5-98.9 %)`, of all their episodes."""
    counts = [(result.n_success, result.n_episodes) for result in results]
    n_success, n_episodes = map(sum, zip(*counts, strict=True))
    return f'{n_success}/{n_episodes} ({percent(wilson_interval(n_success, n_episodes))})'


def mean_cell(results: Collection[Result]) -> str:
    """Return `96.0 %; 144/150 (91.5-98.2 %)`: the mean of the rates, and all episodes."""
    mean = 100 * fmean(result.n_success / result.n_episodes for result in results)
    return f'{mean:.1f} %; {cell(results)}'


def markdown(results: Results) -> str:
    """
    Return a row a task and a column a variant; below several tasks the mean of who has them all.

    Where that would be too wide to read, each variant is a row.
    """
    by_variant, sweep = columns(results), sweep_of(results)
    rows = [[f'task / {SWEPT[sweep][0]}' if sweep else 'task',
             *(str(_number(name)) if sweep else _words(name) for name in by_variant)]]
    for task, row in results.items():
        rows.append([task, *(cell([row[name]]) if name in row else '-' for name in by_variant)])
    means = [mean_cell(column.values()) if len(column) == len(results) else '-'
             for column in by_variant.values()]
    if len(results) > 1 and any(mean != '-' for mean in means):
        rows.append(['mean; pooled', *means])
    if is_wide(results):
        rows = [['variant', *(row[0] for row in rows[1:])], *zip(*(row[1:] for row in rows))]
    lines = [f'| {" | ".join(row)} |' for row in rows]
    return '\n'.join([lines[0], '|---' * len(rows[0]) + '|', *lines[1:], ''])


def draw_success(results: Results) -> Figure:
    """Draw a row of dots a task, or a variant as the table does; a sweep as a line a task."""
    rows, series, sweep = list(results), columns(results), sweep_of(results)
    wide = is_wide(results)
    if sweep or len(rows) == 1 or wide:
        rows, series = list(series), results
    height = 1.2 + (0.1 if wide else 0.15) * len(rows) * (len(series) + 1)
    figure = Figure(figsize=(10 if wide else 7, _height(series) if sweep else height),
                    layout='constrained')
    axes = figure.subplots()
    for i, (name, row) in enumerate(series.items()):
        shift = 0.8 * ((i + 0.5) / len(series) - 0.5)  # equal rates stay visible
        found = sorted(row, key=rows.index)
        rates = [100 * row[key].n_success / row[key].n_episodes for key in found]
        low, high = 100 * np.array([row[key].wilson95 for key in found]).T
        errors = np.maximum(0, [rates - low, high - rates])  # rounding at 0 and 100 %
        style = {'marker': MARKERS[i % len(MARKERS)], 'capsize': 2, 'label': _words(name), **STYLE}
        if sweep:
            axes.errorbar([_number(key) * 1.2 ** shift for key in found], rates, errors, **style)
        else:
            places = [rows.index(key) + shift for key in found]
            axes.errorbar(rates, places, xerr=errors, linestyle='', **style)
    label = 'success (%), Wilson 95 % interval'
    if sweep:
        axes.set(xscale='log', ylim=(-3, 103), xlabel=SWEPT[sweep][0], ylabel=label)
        axes.set_xticks([*map(_number, rows)], [*map(_number, rows)])
        axes.minorticks_off()
    else:
        axes.set(xlim=(-3, 103), ylim=(len(rows) - 0.5, -0.5), xlabel=label)
        axes.set_yticks(range(len(rows)), [*map(_words, rows)])
    axes.grid(axis='y' if sweep else 'x', alpha=0.3)
    figure.legend(loc='outside right upper')
    return figure


def draw_curves(curves: Curves) -> Figure:
    """
    Draw the action error over training; losses of different targets can't be compared.

    Of several tasks each has a colour, and each variant a marker and a kind of line.
    """
    figure = Figure(figsize=(10, _height(curves)), layout='constrained')
    axes = figure.subplots()
    keys = {name: name.rpartition('/')[::2] for name in curves}
    tasks, variants = (list(dict.fromkeys(part)) for part in zip(*keys.values(), strict=True))
    for name, rows in curves.items():
        task, variant = tasks.index(keys[name][0]), variants.index(keys[name][1])
        axes.plot([row.step for row in rows], [row.action_error_mm for row in rows],
                  color=COLOURS[(task if len(tasks) > 1 else variant) % len(COLOURS)],
                  marker=MARKERS[variant % len(MARKERS)], label=_words(name),
                  linestyle=LINES[variant % len(LINES)], **STYLE)
    axes.set(xlabel='optimiser step', ylabel='action error on held-out episodes (mm)',
             yscale='log')
    axes.yaxis.set(major_formatter=LogFormatter(), minor_formatter=LogFormatter())
    figure.legend(loc='outside right upper')
    return figure


def fill(text: str, where: str, block: Callable[[str], str]) -> str:
    """
    Return a text with what `block` makes of each marked name between its markers.

    Raises:
        ValueError: in one line that begins with `where`, when there are no pairs of markers.
    """
    closed = {match.start() for match in BLOCK.finditer(text)}
    for start in START.finditer(text):
        if start.start() not in closed:
            raise ValueError(f'{where}: {start[0].strip()} has no <!-- end report -->')
    if not closed or len(END.findall(text)) != len(closed):
        raise ValueError(f'{where}: {len(closed)} blocks <!-- report: NAME -->, '
                         f'{len(END.findall(text))} <!-- end report -->')
    return BLOCK.sub(lambda match: f'{match[1]}\n{block(match[2])}\n', text)


def report(path: Path, results: Path, images: Path, check: bool) -> None:
    """
    Fill one file's blocks and draw their figures into `images`.

    Args:
        path: Markdown file.
        results: folder of tables.
        images: folder of plots.
        check: write nothing.

    Raises:
        ValueError: in one line: the file or a result is wrong; or what `check` finds.
        OSError: a file cannot be read or written.
    """
    figures: dict[Path, Figure] = {}

    def block(name: str) -> str:
        found, curves = read_results(results / name), read_curves(results / name)
        if not found:
            raise ValueError(f'{path}: table {name}: there are no results in {results / name}')
        text, drawn = markdown(found), {f'results_{name}.png': draw_success(found)}
        if curves:
            drawn[f'results_{name}_curves.png'] = draw_curves(curves)
        for image, figure in drawn.items():
            figures[images / image] = figure
            text += f'\n![{_words(image[:-4])}]({os.path.relpath(images / image, path.parent)})\n'
        return text

    old = path.read_bytes()
    new = fill(old.decode(), str(path), block).encode()
    if check:
        if new != old:
            raise ValueError(f'{path}: out of date')
        if lost := [image for image in figures if not image.exists()]:
            raise ValueError(f'{lost[0]}: found no such picture, expected that of {path}')
        return
    images.mkdir(parents=True, exist_ok=True)
    for image, figure in figures.items():
        figure.savefig(image, dpi=120)
    path.write_bytes(new)
    print('wrote', *figures, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill the blocks of Markdown files from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.strip().split('\n\n')[0])
    parser.add_argument('files', type=Path, nargs='+', help='Markdown files with marked blocks')
    parser.add_argument('-r', '--results', type=Path, default=Path('results'),
                        help='folder of tables')
    parser.add_argument('-i', '--images', type=Path, help='folder of plots, else images/ beside')
    parser.add_argument('--check', action='store_true',
                        help='write nothing, fail if out of date or without a picture')
    options = parser.parse_args(arguments)
    try:
        for path in options.files:
            report(path, options.results, options.images or path.parent / 'images', options.check)
    except (OSError, ValueError) as error:
        sys.exit(f'report: {error}')


if __name__ == '__main__':
    main()
