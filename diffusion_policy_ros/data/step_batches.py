"""What one optimiser step learns from, as a function of (seed, step) and of nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from diffusion_policy_ros.data.window_data import WindowData
from diffusion_policy_ros.data.windows import ShuffledPasses
from diffusion_policy_ros.policy.diffusion_policy import draw


@dataclass(frozen=True)
class Batch:
    """
    Some windows with their noise, each frame once.

    Attributes:
        shown: (U,) int64 rows of the frames.
        frames: (B, To) int64, which of the U frames a window observes.
        crop: (U, cameras, 2) int64 top and left of each frame's random crop, or None.
        state: (B, To, state_dim) float32, or None.
        action: (B, Tp, Da) float32, encoded.
        noise: (B, Tp, Da) float32, with several noise draws (draws, B, Tp, Da).
        timestep: (B) or (draws, B) int64.
        share: of this batch's mean loss in the step's mean loss.
    """

    shown: torch.Tensor
    frames: torch.Tensor
    crop: torch.Tensor | None
    state: torch.Tensor | None
    action: torch.Tensor
    noise: torch.Tensor
    timestep: torch.Tensor
    share: float

    def to(self, device: torch.device) -> Batch:
        """Return it on a device; the copy runs beside the computation."""
        return Batch(**{
            name: to_device(value, device) if isinstance(value, torch.Tensor) else value
            for name, value in vars(self).items()})


def to_device(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the CPU on a device; the copy to a GPU runs beside its computation."""
    if device.type == 'cuda':
        value = value.pin_memory()
    return value.to(device, non_blocking=True)


class StepBatches:
    """
    The batches of any step, for one of several processes that learn together.

    All processes draw the whole step's segments and noise and keep their own part, so that the
    step does not depend on how many share it: n processes of m segments see what one of n m sees.
    Segments come from shuffled passes over the data, without replacement.

    Args:
        data: what is learnt from.
        segments: stretches of neighbouring windows in a batch; their frames are encoded once.
        segment_windows: windows of a segment, one policy step apart; 1 for independent windows.
        noise_draws: noise levels drawn for each window.
        seed: of the order, the crops and the noise.
        accumulation: batches of one process in a step.
        process: number of this process.
        processes: that share the step.
    """

    def __init__(self, data: WindowData, segments: int, segment_windows: int, noise_draws: int,
                 seed: int, accumulation: int = 1, process: int = 0, processes: int = 1) -> None:
        self._data, self._draws, self._seed = data, noise_draws, seed
        self._segments, self._segment_windows = segments, segment_windows
        self._accumulation, self._process, self._processes = accumulation, process, processes
        starts = data.segment_starts(segment_windows)
        self._passes = ShuffledPasses(starts, seed)
        # A window is in `segment_windows` segments, so this many steps show each window once.
        self.steps_per_epoch = len(starts) / (self._step_segments * segment_windows)

    @property
    def _step_segments(self) -> int:
        return self._segments * self._accumulation * self._processes

    def of_step(self, step: int) -> list[Batch]:
        """Return this process's batches of a step, one for each accumulation."""
        total = self._step_segments
        starts = self._passes.take(step * total, total)
        parts = [self._data.segment_rows(part, self._segment_windows) for part in
                 np.split(starts, self._accumulation * self._processes)]
        rows = np.concatenate(parts)
        shown, frames = self._data.frames(rows)
        entropy = np.random.SeedSequence([self._seed, step]).generate_state(1, np.uint64)
        drawn = draw(self._data.config, (len(rows),), (len(shown),),
                     torch.Generator().manual_seed(int(entropy[0] >> 1)), self._draws)
        state = self._data.state
        batches, ends = [], np.cumsum([len(part) for part in parts])
        for i in range(self._accumulation):
            number = i * self._processes + self._process
            own = slice(ends[number] - len(parts[number]), ends[number])
            seen, which = np.unique(frames[own], return_inverse=True)
            batches.append(Batch(
                shown=torch.from_numpy(shown[seen]),
                frames=torch.from_numpy(which.reshape(-1, frames.shape[1])),
                crop=None if drawn['crop'] is None else drawn['crop'][seen],
                state=None if state is None else torch.from_numpy(state[rows[own]]),
                action=torch.from_numpy(self._data.action[rows[own]]),
                noise=drawn['noise'][..., own, :, :], timestep=drawn['timestep'][..., own],
                share=len(parts[number]) * self._processes / len(rows)))
        return batches
