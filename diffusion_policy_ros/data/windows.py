"""Which rows of a replay buffer make a window: control/horizon.py's rule, for every step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from diffusion_policy_ros.control.horizon import window_indices
from diffusion_policy_ros.data.attributes import whole_number
from diffusion_policy_ros.data.replay_buffer import ReplayBuffer

MOST_JITTER = 0.9
"""Of a recording's step: a camera at the policy's own rate is not refused for its jitter."""


@dataclass(frozen=True)
class Windows:
    """
    One window for each row of the buffer that a live policy could take as its observation's time.

    Attributes:
        observed: (N, To) int64 rows of the observations, oldest first.
        acted: (N, Tp) int64 rows of the targets; step i is due (i - (To - 1)) * dt after the
            observation, beyond an episode's ends its first or last target is repeated.
        trained: (N,) bool, false for windows with more than Ta - 1 repeated targets at the end
            (Chi et al. 2023, the released code's `pad_after`).
        episode: (N,) int64.
        stride: windows from one to the next that is dt later (the nearest, in a recording).
    """

    observed: np.ndarray
    acted: np.ndarray
    trained: np.ndarray
    episode: np.ndarray
    stride: int


def make_windows(buffer: ReplayBuffer, n_obs_steps: int, horizon: int, n_action_steps: int,
                 dt_ns: int) -> Windows:
    """
    Return the windows of all rows.

    Raises:
        ValueError: dt is no multiple of the data's step, or shorter than a recording's, whose
            stamps may also leave too long a gap.
    """
    stamps_ns, step_ns = _stamps(buffer)
    is_observation = buffer.arrays.get('is_observation', np.ones(len(stamps_ns), bool))
    if 'stamp_ns' in buffer.arrays:
        if dt_ns < step_ns * MOST_JITTER:
            raise ValueError(f'dt is {dt_ns} ns, expected at least the {step_ns} ns that most '
                             'observations of the data are apart')
    elif dt_ns % step_ns or dt_ns < step_ns:
        raise ValueError(f"dt is {dt_ns} ns, expected a multiple of the data's step {step_ns} ns")
    tolerance_ns = (whole_number(buffer.attributes, 'tolerance_ns')
                    if 'tolerance_ns' in buffer.attributes else dt_ns)
    observed, acted, trained, episode = [], [], [], []
    lead_ns = (np.arange(horizon) - (n_obs_steps - 1)) * dt_ns
    for number, rows in enumerate(buffer.episodes()):
        stamps = stamps_ns[rows]
        times = stamps[is_observation[rows]]
        for t_ns in times.tolist():
            indices = window_indices(stamps, t_ns, dt_ns, n_obs_steps, tolerance_ns, stamps[0])
            if indices is None:
                raise ValueError(_gap(stamps, tolerance_ns))
            observed.append(rows.start + indices)
        due_ns = times[:, None] + lead_ns
        acted.append(rows.start + np.clip(np.searchsorted(stamps, due_ns), 0, len(stamps) - 1))
        trained.append(due_ns[:, -1] - stamps[-1] <= (n_action_steps - 1) * dt_ns)
        episode.append(np.full(len(times), number))
    return Windows(np.asarray(observed), np.concatenate(acted), np.concatenate(trained),
                   np.concatenate(episode), max(1, round(dt_ns / step_ns)))


def _gap(stamps_ns: np.ndarray, tolerance_ns: int) -> str:
    """Return in words why an episode has no window; stamps tell which, in any part of the data."""
    row = int(np.argmax(np.diff(stamps_ns)))
    return (f'data/stamp_ns has a gap of {stamps_ns[row + 1] - stamps_ns[row]} ns after '
            f'{stamps_ns[row]}, expected at most {tolerance_ns} ns')


def _stamps(buffer: ReplayBuffer) -> tuple[np.ndarray, int]:
    """Return each row's time in nanoseconds, and the (median) time between two observations."""
    if 'stamp_ns' not in buffer.arrays:
        step_ns = whole_number(buffer.attributes, 'step_ns')
        return np.concatenate([np.arange(rows.stop - rows.start) * step_ns
                               for rows in buffer.episodes()]), step_ns
    stamps, is_observation = buffer.arrays['stamp_ns'], buffer.arrays['is_observation']
    steps = np.concatenate([np.diff(stamps[rows][is_observation[rows]])
                            for rows in buffer.episodes()])
    if not len(steps):
        raise ValueError('no episode has two observations')
    return stamps, int(np.median(steps))


def segment_starts(windows: Windows, n_windows: int, stride: int) -> np.ndarray:
    """
    Return (S, 2) episode and first row of every segment that holds at least one trained window.

    A segment may begin before its episode or run over its end, so that every window, the first
    and the last too, is in as many segments as any other.
    """
    starts = []
    bounds = np.flatnonzero(np.diff(windows.episode, prepend=-1, append=windows.episode[-1] + 1))
    for first, end in zip(bounds[:-1], bounds[1:], strict=True):
        rows = np.arange(first - stride * (n_windows - 1), end)
        places = rows[:, None] + stride * np.arange(n_windows)
        inside = (places >= first) & (places < end)
        some = np.any(inside & windows.trained[np.where(inside, places, first)], axis=1)
        starts.append(np.stack([np.full(len(rows), windows.episode[first]), rows], axis=1)[some])
    return np.concatenate(starts)


def segment_rows(windows: Windows, starts: np.ndarray, n_windows: int, stride: int) -> np.ndarray:
    """
    Return the rows of the trained windows in some segments, `stride` rows (one dt) apart.

    Neighbouring windows share frames, so that a batch of segments has few frames to encode.
    """
    rows = (starts[:, 1:] + stride * np.arange(n_windows)).ravel()
    episode = np.repeat(starts[:, 0], n_windows)
    inside = (rows >= 0) & (rows < len(windows.episode))
    rows, episode = rows[inside], episode[inside]
    return rows[(windows.episode[rows] == episode) & windows.trained[rows]]


class ShuffledPasses:
    """
    Endless passes over some items, each in an order of its own.

    Any stretch can be asked for at any time, so that a resumed training goes on in its pass.

    Args:
        items: (N, ...) what is passed over.
        seed: of all orders.
    """

    def __init__(self, items: np.ndarray, seed: int) -> None:
        self._items, self._seed = items, seed
        self._order = lru_cache(maxsize=2)(self._shuffle)  # a stretch may reach into the next pass

    def take(self, first: int, count: int) -> np.ndarray:
        """Return items number `first` to `first + count - 1` of the endless sequence."""
        passes, places = np.divmod(np.arange(first, first + count), len(self._items))
        parts = [self._items[self._order(number)[places[passes == number]]]
                 for number in np.unique(passes).tolist()]
        return np.concatenate(parts)

    def _shuffle(self, number: int) -> np.ndarray:
        return np.random.default_rng([self._seed, number]).permutation(len(self._items))
