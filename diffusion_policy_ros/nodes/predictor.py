"""What the policy node does between a message and a chunk, without ROS."""

from __future__ import annotations

from collections.abc import Callable
import time

import numpy as np

from diffusion_policy_ros.control.arm import ArmConfig
from diffusion_policy_ros.control.horizon import ChunkSchedule, Horizon, NotReady
from diffusion_policy_ros.datatypes import Chunk, EE_POSE, GRIPPER, Observation, ObservationWindow
from diffusion_policy_ros.nodes.worker import Worker
from diffusion_policy_ros.policy.config import PolicyConfig
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy, episode_noise

WARM_UP_CALLS = 8
WARM_UP_UNCOUNTED = 3
WARM_UP_S = 5.0  # a slow policy is called less often


class Predictor:
    """
    Observations in, a chunk whenever one is due.

    Args:
        policy: that predicts.
        worker: that it predicts in.
        publish: takes a chunk and the milliseconds that it took.
        refuse: takes what a prediction raised.
        tolerance_ns: greatest age of a sample in its slot of the window, and greatest step between
            two samples of a stream; None for dt.
        again: takes a published chunk whose observation is shown once more, as a lockstep tick is
            to which no answer came: the chunk may have been sent before its readers were found.
    """

    def __init__(self, policy: DiffusionPolicy, worker: Worker,
                 publish: Callable[[Chunk, float], None],
                 refuse: Callable[[Exception], None], tolerance_ns: int | None = None,
                 again: Callable[[Chunk], None] | None = None) -> None:
        config = policy.config
        self._policy, self._worker = policy, worker
        self._publish, self._refuse, self._again = publish, refuse, again
        self._horizon = Horizon(config.streams, config.n_obs_steps, config.dt_ns,
                                tolerance_ns)
        self._schedule = ChunkSchedule(config.chunk_period_ns)
        self._first_ns: int | None = None
        self._last: Chunk | None = None
        self.seed = 0

    @property
    def missed(self) -> int:
        """Chunks that were due while an inference ran or no window was there."""
        return self._schedule.missed

    @property
    def not_ready(self) -> str:
        """Why there is no window now, or ''."""
        window = self._horizon.window()
        return window.reason if isinstance(window, NotReady) else ''

    def reset(self, seed: int) -> None:
        """Begin an episode: forget what was seen, and what is in flight."""
        self.seed = seed
        self._horizon.reset()
        self._begin_episode(None)

    def push(self, observation: Observation) -> None:
        """Take an observation, and start an inference where a chunk is due."""
        last = self._last
        if (self._again is not None and last is not None
                and observation.stamp_ns == last.stamp_ns
                and observation.stream == self._policy.config.streams[0]):
            self._again(last)
        self._horizon.push(observation)
        self._predict_if_due()

    def _predict_if_due(self) -> None:
        t_ns, first_ns = self._horizon.stamp_ns, self._horizon.episode_start_ns
        if first_ns != self._first_ns:
            self._begin_episode(first_ns)
        if t_ns is None or self._worker.busy or not self._schedule.pending(t_ns, first_ns):
            return
        window = self._horizon.window()
        if not isinstance(window, NotReady) and self._schedule.due(t_ns, first_ns):
            noise = episode_noise(self.seed, t_ns - first_ns, self._policy.noise_shape)
            self._worker.submit(lambda: self._policy.predict([window], noise[None])[0],
                                self._done, self._refuse)

    def _done(self, chunk: Chunk, milliseconds: float) -> None:
        self._last = chunk
        self._publish(chunk, milliseconds)
        self._predict_if_due()

    def _begin_episode(self, first_ns: int | None) -> None:
        self._worker.drop()
        self._schedule.reset()
        self._first_ns = first_ns
        self._last = None


def warm_up(policy: DiffusionPolicy) -> float:
    """Predict from black images; return the median of one prediction in milliseconds."""
    config = policy.config
    values = {camera.name: np.zeros((camera.height, camera.width, 3), np.uint8)
              for camera in config.observation.cameras}
    values |= {EE_POSE: np.array([0.0, 0, 0, 0, 0, 0, 1]), GRIPPER: np.zeros(1)}
    window = ObservationWindow(1, {name: np.stack([values[name]] * config.n_obs_steps)
                                   for name in config.streams}, 'base')
    noise = episode_noise(0, 0, policy.noise_shape)[None]
    begin, times = time.perf_counter(), []
    while len(times) < WARM_UP_CALLS and (not times or time.perf_counter() - begin < WARM_UP_S):
        start = time.perf_counter()
        policy.predict([window], noise)
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times[min(WARM_UP_UNCOUNTED, len(times) - 1):]))


def check_arm(config: PolicyConfig, arm: ArmConfig) -> None:
    """
    Refuse an arm whose gripper is not the policy's.

    Raises:
        ValueError: it has none that the policy needs, or one that the policy does not move.
    """
    moves = 'gripper' in config.action.parts
    if moves and arm.gripper.type == 'none':
        raise ValueError("arm: gripper.type is none, expected a gripper, which the checkpoint's "
                         'policy moves')
    if not moves and arm.gripper.type != 'none':
        raise ValueError(f'arm: gripper.type is {arm.gripper.type}, expected none, since the '
                         "checkpoint's policy moves no gripper: the executor would wait for it")
