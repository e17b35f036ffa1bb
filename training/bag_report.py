"""What is in a data set of recordings, as one HTML file: numbers, curves and pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
import io
from pathlib import Path
from typing import Any

import cv2
import matplotlib.pyplot as plt
import numpy as np

from diffusion_policy_ros.data.bag_reader import STATUS
from diffusion_policy_ros.data.pictures import encode_picture
from diffusion_policy_ros.data.replay_buffer import load_replay_buffer, ReplayBuffer
from diffusion_policy_ros.data.stored_pictures import StoredPictures
from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER, NS_PER_S
from diffusion_policy_ros.policy.config import PolicyConfig

LONGEST_DELAY_S, DELAY_STEP_S = 0.6, 0.01
SHEET_EPISODES, SHEET_PX = 24, 96
STYLE = """body { font: 14px sans-serif; margin: 2em; max-width: 70em }
table { border-collapse: collapse } td, th { padding: 2px 10px; text-align: right }
td:first-child, th:first-child, td.text { text-align: left }
tr:nth-child(even) { background: #eee }
"""


def write_report(path: Path, dataset: Path, config: PolicyConfig,
                 bags: Sequence[Mapping[str, Any]], problems: Mapping[str, str]) -> None:
    """
    Write the report.

    Args:
        path: of the HTML file.
        dataset: replay buffer of the bags.
        config: of the policy that it was made for.
        bags: what is known of each, in the order of the episodes.
        problems: bag to why it was left out.
    """
    cameras = tuple(camera.name for camera in config.observation.cameras)
    buffer = load_replay_buffer(dataset, ())
    delays, errors = following_delay(buffer)
    best = int(np.argmin(errors))
    task = str(buffer.attributes['task']) or 'not said'
    parts = [
        f'<h1>{escape(dataset.name)}</h1><p>{len(bags)} episodes, {len(problems)} bags left out, '
        f'made for dt {config.dt_s} s. Task: {escape(task)}</p>', _left_out(problems),
        '<h2>Actions</h2>', _ranges(buffer),
        f'<p>{EE_POSE} follows the targets best {delays[best]:.2f} s later, '
        f'{1e3 * errors[best]:.1f} mm away on average.</p>', _curve(delays, errors),
        '<h2>First and last frames</h2><p>Encoding changed a value of a pixel by '
        f'{max(bag["pixel_error"] for bag in bags)} of 255 at most.</p>',
        *(_sheet(dataset, buffer, camera, bags) for camera in cameras), '<h2>Episodes</h2>',
        _episodes(buffer, bags)]
    path.write_text(f'<!doctype html><meta charset="utf-8"><title>{escape(dataset.name)}</title>'
                    f'<style>{STYLE}</style>{"".join(parts)}\n')


def following_delay(buffer: ReplayBuffer) -> tuple[np.ndarray, np.ndarray]:
    """
    Return delays in seconds, and how far on average the hand is from its target that much later.

    The minimum is the arm's lag: a target is reached, if at all, about then.
    """
    delays = np.arange(0.0, LONGEST_DELAY_S + DELAY_STEP_S / 2, DELAY_STEP_S)
    totals, count = np.zeros(len(delays)), 0
    for rows in buffer.episodes():
        stamps = buffer.arrays['stamp_ns'][rows]
        seconds = (stamps - stamps[0]) / NS_PER_S
        position = buffer.arrays[EE_POSE][rows, :3]
        target = buffer.arrays['target_position'][rows]
        fits = seconds <= seconds[-1] - LONGEST_DELAY_S
        for i, delay in enumerate(delays):
            later = np.stack([np.interp(seconds[fits] + delay, seconds, axis)
                              for axis in position.T], axis=1)
            totals[i] += np.linalg.norm(later - target[fits], axis=1).sum()
        count += int(fits.sum())
    return delays, totals / max(count, 1)


def _left_out(problems: Mapping[str, str]) -> str:
    if not problems:
        return ''
    rows = ''.join(f'<tr><td>{escape(name)}</td><td class="text">{escape(problem)}</td></tr>'
                   for name, problem in problems.items())
    return f'<h2>Left out</h2><table>{rows}</table>'


def _ranges(buffer: ReplayBuffer) -> str:
    names = ('target x [m]', 'target y [m]', 'target z [m]', 'target closing effort',
             'state of the gripper (0 open, 1 closed)')
    values = np.concatenate([buffer.arrays[key] for key in (
        'target_position', 'target_gripper', GRIPPER)], axis=1)
    rows = ''.join(
        f'<tr><td>{name}</td>' + ''.join(f'<td>{number:.4f}</td>' for number in (
            column.min(), column.mean(), column.max(), column.std())) + '</tr>'
        for name, column in zip(names, values.T, strict=True))
    return ('<table><tr><th></th><th>least</th><th>mean</th><th>most</th>'
            f'<th>deviation</th></tr>{rows}</table>')


def _curve(delays: np.ndarray, errors: np.ndarray) -> str:
    figure, axes = plt.subplots(figsize=(6, 2.5), layout='constrained')
    axes.plot(delays, 1e3 * errors)
    axes.set(xlabel='delay [s]', ylabel=f'{EE_POSE} to target [mm]')
    stream = io.BytesIO()
    figure.savefig(stream, dpi=100)
    plt.close(figure)
    return _image(stream.getvalue())


def _sheet(dataset: Path, buffer: ReplayBuffer, camera: str,
           bags: Sequence[Mapping[str, Any]]) -> str:
    """Return the first frames of some episodes, and below them their last."""
    episodes = list(buffer.episodes())
    chosen = np.unique(np.linspace(0, len(episodes) - 1, SHEET_EPISODES).round().astype(int))
    stored = StoredPictures(dataset, camera, int(buffer.episode_ends[-1]))
    ends = [stored.read(np.array([episodes[i].start, episodes[i].stop - 1])) for i in chosen]
    rows = [np.hstack([cv2.resize(frame, (SHEET_PX, SHEET_PX)) for frame in frames])
            for frames in zip(*ends, strict=True)]
    names = ', '.join(escape(bags[i]['name']) for i in chosen)
    picture = encode_picture(np.vstack(rows), 'png').tobytes()
    return f'<h3>{escape(camera)}</h3>{_image(picture)}<p>{names}</p>'


def _episodes(buffer: ReplayBuffer, bags: Sequence[Mapping[str, Any]]) -> str:
    head = ''.join(f'<th>{name}</th>' for name in (
        'bag', 'length [s]', 'observations', 'led by a person', 'rates [Hz]', 'largest gaps [s]',
        'notes'))
    rows = []
    for bag, part in zip(bags, buffer.episodes(), strict=True):
        stamps = buffer.arrays['stamp_ns'][part]
        streams = [item for item in bag['streams'].items() if item[0] != STATUS]
        cells = (
            f'{(stamps[-1] - stamps[0]) / NS_PER_S:.2f}',
            str(int(buffer.arrays['is_observation'][part].sum())),
            f'{100 * buffer.arrays["is_teleop"][part].mean():.0f} %',
            ', '.join(f'{role} {stats["rate_hz"]:.1f}' for role, stats in streams),
            ', '.join(f'{role} {stats["largest_gap_s"]:.3f}' for role, stats in streams),
            '; '.join(bag['notes']))
        rows.append(f'<tr><td>{escape(bag["name"])}</td>'
                    + ''.join(f'<td>{escape(cell)}</td>' for cell in cells) + '</tr>')
    return f'<table><tr>{head}</tr>{"".join(rows)}</table>'


def _image(png: bytes) -> str:
    return f'<p><img src="data:image/png;base64,{base64.b64encode(png).decode()}"></p>'
