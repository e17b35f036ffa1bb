"""
Stamped observations to the window of To steps at time t, or the reason why there is none.

The rule is `window_indices`, and training makes its windows with the same function. All that is
said about a set of samples follows from their stamps, stream by stream; in what order samples of
different streams arrive changes nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffusion_policy_ros.datatypes import EE_POSE, NS_PER_S, Observation, ObservationWindow

MAX_LAG_NS = NS_PER_S
"""How far one stream may be behind another; older samples are forgotten."""

SETTLE_NS = 2 * NS_PER_S
"""After so much new time a stream that jumped back alone is believed to have done so alone."""


@dataclass(frozen=True)
class NotReady:
    """
    There is no window now.

    Attributes:
        reason: one sentence that names the stream and its age or rate.
    """

    reason: str


def window_indices(stamps_ns: Sequence[int] | np.ndarray, t_ns: int, dt_ns: int, n_obs_steps: int,
                   tolerance_ns: int, first_ns: int) -> np.ndarray | None:
    """
    Return which samples of one stream make the window at t.

    Slot i from the end takes the newest sample at or before t - i*dt that is not older than the
    tolerance. Slots before the episode's first complete sample take that one (edge padding, Chi et
    al. 2023); any other hole means that there is no window. With dt 20, To 3, first 100:

        stamps   100 110 120 130 140 150          t   slots (stamps)
        index      0   1   2   3   4   5        100   100 100 100
                                                125   100 100 120
                                                150   110 130 150

    Args:
        stamps_ns: (N,) stamps of one stream in one episode, increasing.
        t_ns: the observation's time.
        dt_ns: time between two steps.
        n_obs_steps: To.
        tolerance_ns: greatest age of a sample.
        first_ns: the episode's first complete sample's time.

    Returns:
        (To,) indices, oldest slot first, or None.
    """
    indices = np.empty(n_obs_steps, np.int64)
    for slot in range(n_obs_steps):
        slot_ns = max(t_ns - (n_obs_steps - 1 - slot) * dt_ns, first_ns)
        index = bisect_right(stamps_ns, slot_ns) - 1
        if index < 0 or slot_ns - stamps_ns[index] > tolerance_ns:
            return None
        indices[slot] = index
    return indices


class _Stream:
    """The recent samples of one stream; a run is a stretch without a gap or a jump back."""

    def __init__(self, tolerance_ns: int, memory_ns: int) -> None:
        self._tolerance_ns = tolerance_ns
        self._memory_ns = memory_ns
        self.stamps: list[int] = []
        self.values: list[np.ndarray] = []
        self.frame_id = ''
        self.run_start_ns = 0
        self.landed_ns = 0
        self.jumps_back = 0
        self._gap_ns = 0
        self.slow_period_ns = 0

    @property
    def newest_ns(self) -> int:
        return self.stamps[-1]

    def push(self, observation: Observation) -> None:
        stamp_ns = observation.stamp_ns
        step_ns = stamp_ns - self.stamps[-1] if self.stamps else None
        if step_ns is not None and -self._tolerance_ns <= step_ns <= 0:
            return
        if step_ns is None or step_ns < 0 or step_ns > self._tolerance_ns:
            self._begin_run(stamp_ns, step_ns)
        else:
            self._gap_ns = self.slow_period_ns = 0
        self.stamps.append(stamp_ns)
        self.values.append(observation.value)
        self.frame_id = observation.frame_id
        if self.stamps[0] < stamp_ns - self._memory_ns:
            stale = bisect_right(self.stamps, stamp_ns - self._memory_ns - 1)
            del self.stamps[:stale]
            del self.values[:stale]

    def _begin_run(self, stamp_ns: int, step_ns: int | None) -> None:
        # Two gaps on end are no lost frame but the stream's rate.
        gap_ns = max(step_ns or 0, 0)
        self.slow_period_ns = min(gap_ns, self._gap_ns)
        self._gap_ns = gap_ns
        if step_ns is None or step_ns < 0:
            self.landed_ns = stamp_ns
            self.jumps_back += step_ns is not None
        self.run_start_ns = stamp_ns
        self.stamps.clear()
        self.values.clear()


class Horizon:
    """
    Align streams on their stamps.

    An episode begins with `reset`, and where a stream's stamps jump back or leave a gap, by more
    than the tolerance either way; it is complete, and has a first time, as soon as each stream has
    a sample from after that. Samples of one stream are expected in order: one that is late by less
    than the tolerance is dropped, as is a repeated stamp. Two steps on end that are above the
    tolerance mean that the stream is too slow for the policy.
    """

    def __init__(self, streams: Sequence[str], n_obs_steps: int, dt_ns: int,
                 tolerance_ns: int | None = None) -> None:
        """
        Prepare for some streams.

        Args:
            streams: names of all that a window must hold.
            n_obs_steps: To.
            dt_ns: time between two steps.
            tolerance_ns: greatest age of a sample in its slot, and greatest step between two
                samples of a stream; None for dt.

        Raises:
            ValueError: no streams, or a number that is not positive.
        """
        tolerance_ns = dt_ns if tolerance_ns is None else tolerance_ns
        if not streams or n_obs_steps < 1 or dt_ns <= 0 or tolerance_ns <= 0:
            raise ValueError(f'streams {list(streams)}, n_obs_steps {n_obs_steps}, dt_ns {dt_ns}, '
                             f'tolerance_ns {tolerance_ns}: expected a stream and numbers above 0')
        self._names = tuple(streams)
        self._n_obs_steps = n_obs_steps
        self._dt_ns = dt_ns
        self._tolerance_ns = tolerance_ns
        self._memory_ns = (n_obs_steps - 1) * dt_ns + tolerance_ns + MAX_LAG_NS
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next sample begins an episode."""
        self._streams = {name: _Stream(self._tolerance_ns, self._memory_ns)
                         for name in self._names}

    def push(self, observation: Observation) -> None:
        """
        Take one sample; its array is kept, not copied.

        Raises:
            ValueError: a stream that the horizon was not made for.
        """
        stream = self._streams.get(observation.stream)
        if stream is None:
            raise ValueError(f'stream {observation.stream!r} is not one of {list(self._names)}')
        stream.push(observation)

    @property
    def stamp_ns(self) -> int | None:
        """The observation's time t, the minimum of the streams' newest; None without one."""
        state = self._state()
        return None if isinstance(state, NotReady) else state[0]

    @property
    def episode_start_ns(self) -> int | None:
        """The episode's first t; None until each stream has a sample of the episode."""
        state = self._state()
        return None if isinstance(state, NotReady) else state[1]

    def window(self, t_ns: int | None = None) -> ObservationWindow | NotReady:
        """Return the window at t, by default at `stamp_ns`, or why there is none."""
        state = self._state()
        if isinstance(state, NotReady):
            return state
        newest_ns, first_ns = state
        t_ns = newest_ns if t_ns is None else t_ns
        if t_ns < first_ns:
            return NotReady(f'the episode began {_seconds(first_ns - t_ns)} after the time that '
                            'was asked for')
        windows = {}
        for name, stream in self._streams.items():
            if stream.slow_period_ns:
                return NotReady(
                    f'{name} comes at {_rate(stream.slow_period_ns)}, slower than the '
                    f'{_rate(self._tolerance_ns)} that the policy needs')
            indices = window_indices(stream.stamps, t_ns, self._dt_ns, self._n_obs_steps,
                                     self._tolerance_ns, first_ns)
            if indices is None:
                return self._hole(name, stream, t_ns)
            windows[name] = _stacked(stream.values, indices)
        pose = self._streams.get(EE_POSE)
        return ObservationWindow(t_ns, windows, pose.frame_id if pose else '')

    def _state(self) -> tuple[int, int] | NotReady:
        """Return t and the episode's first t."""
        streams = self._streams
        for name, stream in streams.items():
            if not stream.stamps:
                return NotReady(f'{name}: nothing has arrived')
        t_ns = min(stream.stamps[-1] for stream in streams.values())
        first_ns = max(stream.run_start_ns for stream in streams.values())
        fewest = min(stream.jumps_back for stream in streams.values())
        for stream in streams.values():
            if stream.jumps_back > fewest:
                first_ns = max(first_ns, stream.landed_ns + SETTLE_NS)
        if t_ns >= first_ns:
            return t_ns, first_ns
        late = min(streams, key=lambda name: (streams[name].jumps_back, streams[name].newest_ns))
        age_ns = max(stream.newest_ns for stream in streams.values()) - streams[late].newest_ns
        return NotReady(f'{late}: its newest sample is {_seconds(age_ns)} old and from before the '
                        'episode' if age_ns else
                        f'{late}: its stamps have not jumped back with the others')

    def _hole(self, name: str, stream: _Stream, t_ns: int) -> NotReady:
        if stream.stamps[0] > t_ns:
            late = min(self._streams, key=lambda other: self._streams[other].newest_ns)
            return NotReady(f'{late} is {_seconds(stream.newest_ns - t_ns)} behind {name}, at '
                            f'most {_seconds(MAX_LAG_NS)} is bridged')
        return NotReady(f'{name}: a sample is missing, its newest is '
                        f'{_seconds(t_ns - stream.newest_ns)} old and at most '
                        f'{_seconds(self._tolerance_ns)} is allowed')


class ChunkSchedule:
    """
    Say when a chunk is due: at the first t at or after each multiple of Ta*dt since the first t.

    Attributes:
        missed: multiples for which no t came before the next multiple was reached.
    """

    def __init__(self, period_ns: int) -> None:
        if period_ns <= 0:
            raise ValueError(f'period_ns is {period_ns}, expected more than 0')
        self._period_ns = period_ns
        self.missed = 0
        self.reset()

    def reset(self) -> None:
        """Begin an episode: the next t is due."""
        self._first_ns: int | None = None
        self._last_ns = 0
        self._multiple = -1

    def pending(self, t_ns: int, first_ns: int) -> bool:
        """Return what `due` would, without taking it."""
        return (first_ns != self._first_ns or t_ns < self._last_ns
                or (t_ns - first_ns) // self._period_ns > self._multiple)

    def due(self, t_ns: int, first_ns: int) -> bool:
        """Return whether a chunk is due at t; true once a multiple. An earlier t begins anew."""
        if not self.pending(t_ns, first_ns):
            return False
        if first_ns != self._first_ns or t_ns < self._last_ns:
            self.reset()
        multiple = (t_ns - first_ns) // self._period_ns
        if self._first_ns is not None:
            self.missed += multiple - self._multiple - 1
        self._first_ns, self._last_ns, self._multiple = first_ns, t_ns, multiple
        return True


def _stacked(values: list[np.ndarray], indices: np.ndarray) -> np.ndarray:
    # A third of np.stack's time for two small images.
    first = values[indices[0]]
    stacked = np.empty((len(indices), *first.shape), first.dtype)
    for slot, index in enumerate(indices):
        stacked[slot] = values[index]
    return stacked


def _seconds(duration_ns: int) -> str:
    return f'{duration_ns / NS_PER_S:.3f} s'


def _rate(period_ns: int) -> str:
    return f'{NS_PER_S / period_ns:.1f} Hz'
