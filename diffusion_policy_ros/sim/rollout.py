"""The nodes' closed loop without ROS: the same horizon, chunk schedule, executor and stamps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
import os
import signal

import gymnasium
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
import numpy as np

from diffusion_policy_ros.control.arm import ArmConfig
from diffusion_policy_ros.control.executor import ChunkExecutor
from diffusion_policy_ros.control.executor_config import ExecutorConfig
from diffusion_policy_ros.control.horizon import ChunkSchedule, Horizon, NotReady
from diffusion_policy_ros.control.images import camera_image
from diffusion_policy_ros.control.plan import target_problem
from diffusion_policy_ros.datatypes import (
    Chunk,
    Command,
    EE_POSE,
    NS_PER_S,
    Observation,
    ObservationWindow,
)
from diffusion_policy_ros.policy.config import PolicyConfig
from diffusion_policy_ros.sim.rendering import check_camera, check_renderer
from diffusion_policy_ros.sim.tasks import check_task, MAX_STEPS, STEP_NS

FIRST_STAMP_NS = NS_PER_S
EPISODE_GAP_NS = 2 * NS_PER_S

Predict = Callable[[Sequence[ObservationWindow], Sequence[int], Sequence[int]], Sequence[Chunk]]
"""Windows, their episodes' seeds and their times since their start, in nanoseconds, to chunks."""
OnTick = Callable[[int, int, Mapping[str, np.ndarray]], None]
"""Is told an episode's seed, the stamp and what the arm observes."""


@dataclass
class Episode:
    """
    What one episode was.

    Attributes:
        seed: of the environment.
        success: whether the task's own measure was reached within the step limit.
        targets: commanded position and closing effort (4,), one a tick.
        first_chunk: the first prediction.
        limits_acted: how often each limit changed a command.
    """

    seed: int
    success: bool = False
    targets: list[np.ndarray] = field(default_factory=list)
    first_chunk: Chunk | None = None
    limits_acted: dict[str, int] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Ticks until success or the limit."""
        return len(self.targets)


def image_every(config: PolicyConfig) -> int:
    """
    Return the ticks between two camera images: one image a step of the policy.

    Raises:
        ValueError: the policy's dt is no multiple of the simulator's tick.
    """
    ticks, rest = divmod(config.dt_ns, STEP_NS)
    if rest or ticks < 1:
        raise ValueError(f"dt_s is {config.dt_s}, expected a multiple of the simulator's tick "
                         f'{STEP_NS / NS_PER_S} s')
    return ticks


def check_policy(config: PolicyConfig) -> None:
    """
    Refuse a policy that the simulator can't show its observations.

    Raises:
        ValueError: for its task, renderer, dt_s or cameras.
    """
    check_task(config.task)
    check_renderer(config.renderer)
    image_every(config)
    for camera in config.observation.cameras:
        check_camera(camera.name)
    source_size(config)


def source_size(config: PolicyConfig) -> tuple[int, int]:
    """
    Return height and width of the simulator's pictures.

    Raises:
        ValueError: the cameras' sizes differ.
    """
    sizes = {(camera.source_height, camera.source_width) for camera in config.observation.cameras}
    if len(sizes) > 1:
        raise ValueError(f'the cameras have source sizes {sorted(sizes)}, expected one for all')
    return sizes.pop() if sizes else (224, 224)


@dataclass(frozen=True)
class WindowTicks:
    """
    Says of an episode's ticks, from 0, whether the policy looks at their images.

    At the others the last image may stand in for them.

    Attributes:
        image_every: ticks a step of the policy.
        n_obs_steps: steps that a window holds.
        n_action_steps: steps from one window to the next.
    """

    image_every: int
    n_obs_steps: int
    n_action_steps: int

    @classmethod
    def of(cls, config: PolicyConfig) -> WindowTicks:
        """Return those of a policy."""
        return cls(image_every(config), config.n_obs_steps, config.n_action_steps)

    def __call__(self, tick: int) -> bool:
        """Return whether the window at the end of a tick's period reaches back to it."""
        step, rest = divmod(tick, self.image_every)
        return not rest and -step % self.n_action_steps < self.n_obs_steps


def executor_config(config: PolicyConfig, blend_s: float) -> ExecutorConfig:
    """Return the executor's settings for lockstep with this policy."""
    return ExecutorConfig(lockstep=True, n_action_steps=config.n_action_steps, dt_s=config.dt_s,
                          blend_s=blend_s, enable_on_start=True)


class ClosedLoop:
    """One arm's side of the topics, on the stamps that the bridge would give."""

    def __init__(self, config: PolicyConfig, executor: ExecutorConfig, arm: ArmConfig) -> None:
        self._horizon = Horizon(config.streams, config.n_obs_steps, config.dt_ns)
        self._schedule = ChunkSchedule(config.chunk_period_ns)
        self._executor = ChunkExecutor(executor, arm)
        self._streams = config.streams
        self._frame = arm.base_frame
        self._cameras = {camera.name: camera for camera in config.observation.cameras}
        self._image_every = image_every(config)
        self._tick = 0
        self.stamp_ns = FIRST_STAMP_NS - EPISODE_GAP_NS

    def start(self) -> None:
        """Begin an episode, 2 s after the last."""
        self._horizon.reset()
        self._schedule.reset()
        self._executor.reset()
        self._executor.enable()
        self._tick = 0
        self.stamp_ns += EPISODE_GAP_NS

    def observe(self, values: Mapping[str, np.ndarray]) -> ObservationWindow | None:
        """Take the arm's observation at the current tick; return a window where a chunk is due."""
        fresh_image = self._tick % self._image_every == 0
        for stream in self._streams:
            value = values[stream]
            if stream in self._cameras:
                if not fresh_image:
                    continue
                size = self._cameras[stream]
                value = camera_image(value, 'rgb8', size.height, size.width)
            observation = Observation(stream, self.stamp_ns, value, self._frame)
            self._horizon.push(observation)
            if stream == EE_POSE:
                self._executor.push_pose(observation)
        t_ns, first_ns = self._horizon.stamp_ns, self._horizon.episode_start_ns
        if t_ns is None or first_ns is None or not self._schedule.due(t_ns, first_ns):
            return None
        window = self._horizon.window()
        if isinstance(window, NotReady):
            raise RuntimeError(f'the simulator skipped an observation: {window.reason}')
        return window

    def elapsed_ns(self, window: ObservationWindow) -> int:
        """Return the window's time since the episode's first t."""
        return window.stamp_ns - self._horizon.episode_start_ns

    def take(self, chunk: Chunk) -> None:
        """Hand a prediction to the executor; it holds, as in the node, where it is unusable."""
        refusal = self._executor.push_chunk(chunk, self.stamp_ns, self.stamp_ns)
        if refusal is not None and target_problem(
                chunk.position, chunk.quaternion, chunk.gripper, *2 * [chunk.frame_id]) is None:
            raise RuntimeError(f'the executor refused a chunk: {refusal}')

    def command(self) -> Command:
        """Return the current tick's target and go on to the next tick."""
        command, status = self._executor.step(self.stamp_ns, self.stamp_ns)
        if command is None:
            raise RuntimeError(f'the executor sent nothing: {status.value}')
        self.stamp_ns += STEP_NS
        self._tick += 1
        return command

    @property
    def limits_acted(self) -> dict[str, int]:
        """How often each limit changed a command since the start."""
        return dict(self._executor.limits_acted)


def parallel_envs(makes: Sequence[Callable[[], gymnasium.Env]]) -> AsyncVectorEnv:
    """
    Return environments without autoreset, each in a process of its own.

    An interruption is left to this process: theirs, which a terminal interrupts too, go on.
    """
    return AsyncVectorEnv([partial(_undisturbed, make, os.getpid()) for make in makes],
                          context='spawn', autoreset_mode=AutoresetMode.DISABLED)


def _undisturbed(make: Callable[[], gymnasium.Env], parent: int) -> gymnasium.Env:
    if os.getpid() != parent:  # gymnasium makes the first one there, too, to look at its spaces
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return make()


@contextmanager
def closing_envs(envs: gymnasium.vector.VectorEnv) -> Iterator[gymnasium.vector.VectorEnv]:
    """
    Close environments at the end; after an error, end their processes without asking them.

    One that died may leave the others in the middle of an answer: asked, they would block.
    """
    try:
        yield envs
        envs.close()
    finally:
        if not envs.closed:
            for process in getattr(envs, 'processes', ()):
                process.terminate()
                process.join()
            envs.closed = True


def run_episodes(envs: gymnasium.vector.VectorEnv, loops: Sequence[ClosedLoop], predict: Predict,
                 seeds: Sequence[int], max_steps: int = MAX_STEPS,
                 on_tick: OnTick | None = None) -> Iterator[Episode]:
    """
    Run one episode a seed over parallel arms, with one batched prediction a tick.

    Args:
        envs: of MetaWorldArm without a step limit, autoreset disabled; at most one a seed.
        loops: one for each environment.
        predict: windows to chunks.
        seeds: of the episodes.
        max_steps: ticks after which an episode counts as failed.
        on_tick: watches.

    Yields:
        Each episode as it ends, so in the order of ending.
    """
    waiting = list(reversed(seeds))
    running: list[Episode | None] = [None] * len(loops)
    actions = np.zeros((len(loops), 4))
    while True:
        begin = np.array([episode is None for episode in running])
        begin[np.flatnonzero(begin)[len(waiting):]] = False
        if begin.any():
            for i in np.flatnonzero(begin):
                running[i] = Episode(waiting.pop())
                loops[i].start()
            observation, _ = envs.reset(
                seed=[episode.seed if episode else None for episode in running],
                options={'reset_mask': begin})
        if not any(running):
            return
        _predict_due(loops, running, predict, observation)
        for i, episode in enumerate(running):
            if episode is not None:
                if on_tick is not None:
                    on_tick(episode.seed, loops[i].stamp_ns,
                            {key: value[i] for key, value in observation.items()})
                command = loops[i].command()
                actions[i] = (*command.position, command.gripper)
                episode.targets.append(actions[i].copy())
        observation, _, _, _, info = envs.step(actions)
        for i, episode in enumerate(running):
            if episode is None:
                continue
            episode.success = bool(info['success'][i])
            if episode.success or episode.steps == max_steps:
                episode.limits_acted = loops[i].limits_acted
                running[i] = None
                yield episode


def _predict_due(loops: Sequence[ClosedLoop], running: Sequence[Episode | None], predict: Predict,
                 observation: Mapping[str, np.ndarray]) -> None:
    due, windows = [], []
    for i, episode in enumerate(running):
        if episode is None:
            continue
        window = loops[i].observe({key: value[i] for key, value in observation.items()})
        if window is not None:
            due.append(i)
            windows.append(window)
    if not due:
        return
    elapsed = [loops[i].elapsed_ns(window) for i, window in zip(due, windows, strict=True)]
    seeds = [running[i].seed for i in due]
    for i, chunk in zip(due, predict(windows, seeds, elapsed), strict=True):
        loops[i].take(chunk)
        if running[i].first_chunk is None:
            running[i].first_chunk = chunk
