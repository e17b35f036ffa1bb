"""What a training tells while it runs: metrics.jsonl, TensorBoard, loss.png."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
import sys
from typing import Any

import cv2
from matplotlib.figure import Figure
import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from diffusion_policy_ros.data.window_data import WindowData
from diffusion_policy_ros.policy.actions import decode_action, split_targets
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy, draw
from diffusion_policy_ros.sim.tasks import TASKS

FIRST_EVALUATION_SEED = 500_000  # apart from those that evaluate.py begins with
VALIDATION_WINDOWS = 128
PICTURES = 4
PICTURE_PX = 320
WHITE = (255, 255, 255)


class Validation:
    """
    Held-out windows, always the same ones with the same noise.

    Args:
        data: of the held-out episodes.
    """

    def __init__(self, data: WindowData) -> None:
        rows = np.flatnonzero(data.windows.trained)
        self.data, config = data, data.config
        self.rows = np.sort(np.random.default_rng(0).choice(
            rows, min(VALIDATION_WINDOWS, len(rows)), replace=False))
        self.drawn = draw(config, (len(self.rows),), (), torch.Generator().manual_seed(0))
        self._wanted = self._targets(data.action[self.rows])

    @torch.no_grad()
    def measure(self, policy: DiffusionPolicy) -> tuple[dict[str, float], np.ndarray]:
        """
        Return how well a policy does on the windows.

        Returns:
            `validation_loss`; `action_error_mm`, the mean distance between predicted and
            demonstrated target positions of the executed steps; `action_error_p95_mm`, the same of
            the window that is worse than 95 % (a moment that decides, such as a grasp, is but a
            few windows); `gripper_error`, their mean difference in closing effort. And the
            predicted target positions, (N, Tp - To + 1, 3).
        """
        config, device = self.data.config, policy.device
        state = self.data.state
        condition = policy.condition(self._features(policy), None if state is None else
                                     torch.from_numpy(state[self.rows]).to(device))
        action = torch.from_numpy(self.data.action[self.rows]).to(device)
        loss = policy.loss_from_condition(condition, action, self.drawn['noise'].to(device),
                                          self.drawn['timestep'].to(device))
        noise = torch.randn((len(self.rows), *policy.noise_shape),
                            generator=torch.Generator().manual_seed(1))
        sample = policy.sample(condition, noise.to(device))
        found = self._targets(policy.normalizer.unnormalize('action', sample).cpu().numpy())
        wanted = self._wanted
        executed = slice(config.n_action_steps)
        apart = (found['ee_position'] - wanted['ee_position'])[:, executed]
        error_mm = 1000.0 * np.linalg.norm(apart, axis=-1).mean(axis=1)      # (N,)
        measures = {'validation_loss': loss.item(), 'action_error_mm': error_mm.mean(),
                    'action_error_p95_mm': np.percentile(error_mm, 95)}
        if 'gripper' in found:
            measures['gripper_error'] = np.abs(
                (found['gripper'] - wanted['gripper'])[:, executed]).mean()
        return {name: float(value) for name, value in measures.items()}, found['ee_position']

    def draw_chunks(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """
        Draw some predicted chunks (coloured) over the demonstrated ones (white).

        Args:
            positions: (N, Tp - To + 1, 3) of `measure`.

        Returns:
            Camera to (H, W, 3) uint8 RGB, windows side by side; nothing for data of no simulator.
        """
        config = self.data.config
        if not config.renderer or config.task not in TASKS:
            return {}
        from diffusion_policy_ros.sim.cameras import camera_geometry  # which imports MuJoCo
        from diffusion_policy_ros.sim.video import draw_chunk
        chosen = np.linspace(0, len(self.rows) - 1, PICTURES).round().astype(int)
        rows, sheets = self.rows[chosen], {}
        for name, frames in self.data.images(self.data.windows.observed[rows, -1]).items():
            geometry, panels = camera_geometry(config.task, name), []
            for i, now, frame in zip(chosen, self.data.now[rows], frames, strict=True):
                panel = cv2.resize(frame, (PICTURE_PX, PICTURE_PX))
                truth, found = (geometry.project(points[i], now, PICTURE_PX, PICTURE_PX)
                                for points in (self._wanted['ee_position'], positions))
                if np.isfinite(truth).all():
                    cv2.polylines(panel, [truth.round().astype(np.int32)], False, WHITE, 1,
                                  cv2.LINE_AA)
                draw_chunk(panel, found)
                panels.append(panel)
            sheets[name] = np.hstack(panels)
        return sheets

    def _targets(self, action: np.ndarray) -> dict[str, np.ndarray]:
        """Return the windows' encoded actions (N, Tp, Da) as absolute targets, by part."""
        config = self.data.config
        return split_targets(decode_action(action, self.data.now[self.rows], config), config)

    def _features(self, policy: DiffusionPolicy) -> torch.Tensor | None:
        shown, frames = self.data.frames(self.rows)
        images = {name: torch.from_numpy(pictures).to(policy.device).movedim(-1, -3)
                  for name, pictures in self.data.images(shown).items()}
        features = policy.encode(images)
        return None if features is None else features[torch.from_numpy(frames).to(policy.device)]


class Monitor:
    """
    Writes a training's figures.

    Args:
        folder: of the run.
        step: that the run goes on from.
        validation: what is measured with a policy.
    """

    def __init__(self, folder: Path, step: int, validation: Validation) -> None:
        self._folder, self._validation = folder, validation
        self._path = folder / 'metrics.jsonl'
        if step == 0:
            self._path.unlink(missing_ok=True)
        elif self._path.exists():  # a full disk may have cut its last line short
            rows = self._path.read_bytes()
            os.truncate(self._path, rows.rfind(b'\n') + 1)
        self._board = SummaryWriter(folder / 'tensorboard', purge_step=step + 1)

    def known(self, step: int) -> dict[str, float]:
        """Return what is written of a step."""
        return read_metrics(self._folder).get(step, {}) if self._path.exists() else {}

    def write(self, step: int, values: dict[str, Any], policy: DiffusionPolicy | None) -> None:
        """Write one row; with a policy its validation too."""
        pictures = {}
        if policy is not None:
            measures, positions = self._validation.measure(policy)
            values, pictures = {**values, **measures}, self._validation.draw_chunks(positions)
        with self._path.open('a') as file:
            file.write(json.dumps({'step': step, **values}) + '\n')
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        for name, picture in pictures.items():
            self._board.add_image(f'chunks/{name}', picture, step, dataformats='HWC')

    def close(self) -> None:
        """Draw loss.png and end the files."""
        self._board.close()
        draw_losses(self._folder)


def is_due(step: int, every: float) -> bool:
    """Return whether this is the first step at or after a multiple of `every`; 0 is never."""
    return every > 0 and math.floor(step / every) > math.floor((step - 1) / every)


def success_in_simulator(policy: DiffusionPolicy, n_episodes: int,
                         step: int) -> dict[str, float]:
    """Return a policy's success in its task; nothing where the simulator has died."""
    import evaluate
    seeds = range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + n_episodes)
    try:
        result = evaluate.evaluate(policy, policy.config.task, seeds)
    except ConnectionError as error:
        print(f'train: step {step} is not evaluated: {error}', file=sys.stderr)
        return {}
    return {'success': result['n_success'] / result['n_episodes']}


def read_metrics(folder: Path) -> dict[int, dict[str, float]]:
    """
    Return the values of metrics.jsonl by step; of a step's rows the later ones count.

    Raises:
        ValueError: in one line that names file and line, where one is no row.
    """
    path, rows = folder / 'metrics.jsonl', {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
            rows[row['step']] = {**rows.get(row['step'], {}), **row}
        except (ValueError, TypeError, KeyError):
            raise ValueError(f'{path}: line {number} is {line[:60]!r}, expected JSON with a '
                             'step') from None
    return rows


def draw_losses(folder: Path) -> None:
    """Draw loss.png from metrics.jsonl."""
    rows = sorted(read_metrics(folder).items())
    figure = Figure(figsize=(6, 3.5), layout='constrained')
    axes = figure.subplots()
    for key, style in (('loss', '-'), ('validation_loss', 'o-')):
        points = [(step, row[key]) for step, row in rows if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), style, markersize=3, label=key.replace('_', ' '))
    axes.set(xlabel='optimiser step', ylabel='mean squared error', yscale='log')
    axes.legend()
    figure.savefig(folder / 'loss.png', dpi=120)
