"""MetaWorld's scripted expert, episode after episode: what `collect_demos.py` keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium
from gymnasium.spaces import Box, Dict
import numpy as np

from diffusion_policy_ros.control.images import camera_image
from diffusion_policy_ros.datatypes import EE_POSE
from diffusion_policy_ros.sim.arm import MetaWorldArm
from diffusion_policy_ros.sim.experts import Expert
from diffusion_policy_ros.sim.rendering import check_camera, check_renderer
from diffusion_policy_ros.sim.rollout import closing_envs, parallel_envs
from diffusion_policy_ros.sim.tasks import (
    check_collection_seed, check_task, FIRST_COLLECTION_SEED, TICKS_AFTER_SUCCESS, ticks_left,
)

Steps = dict[str, list[np.ndarray]]
MOVE_TICKS = 20  # to where an episode begins, at 1 cm a tick at most


@dataclass(frozen=True)
class CollectConfig:
    """
    What the data depend on.

    Attributes:
        task: one of MetaWorld's tasks.
        cameras: cameras to keep, each once.
        source_size: pixels a side of the pictures that the simulation draws.
        size: pixels a side that they are scaled to.
        renderer: name of the picture settings.
        seed_start: first seed that is tried.
        ticks_after_success: ticks that an episode goes on after the first success.
        start_offset: metres by which the hand begins an episode elsewhere, the standard deviation
            along each axis. It is moved there before the first step that is kept. Without it,
            where the hand is tells where the goal must be, before any camera sees it.
        goal_offset: metres from the goal to where the expert believes it to be.
    """

    task: str
    cameras: Sequence[str] = ('arm', 'wrist')
    source_size: int = 224
    size: int = 96
    renderer: str = 'plain'
    seed_start: int = FIRST_COLLECTION_SEED
    ticks_after_success: int = TICKS_AFTER_SUCCESS
    start_offset: float = 0.0
    goal_offset: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        check_task(self.task)
        for camera in self.cameras:
            check_camera(camera)
        if len(set(self.cameras)) < len(self.cameras):
            raise ValueError(f'cameras are {" ".join(self.cameras)}, expected each once')
        check_renderer(self.renderer)
        check_collection_seed(self.seed_start)
        if not 0 < self.size <= self.source_size or self.ticks_after_success < 0:
            raise ValueError(f'size is {self.size}, source_size {self.source_size} and '
                             f'ticks_after_success {self.ticks_after_success}, expected '
                             '0 < size <= source_size and no negative ticks')
        if not 0 <= self.start_offset < 1:
            raise ValueError(f'start_offset is {self.start_offset} m, expected 0 to less than 1')
        if not np.all(np.abs(self.goal_offset) < 1):
            raise ValueError(f'goal_offset is {list(self.goal_offset)} m, expected less than 1')


class ScaledCameras(gymnasium.ObservationWrapper):
    """Scales every camera's picture, in the process that drew it."""

    def __init__(self, env: gymnasium.Env, cameras: Sequence[str], size: int) -> None:
        super().__init__(env)
        self._cameras, self._size = cameras, size
        self.observation_space = Dict({
            **env.observation_space.spaces,
            **{name: Box(0, 255, (size, size, 3), np.uint8) for name in cameras}})

    def observation(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**observation, **{
            name: camera_image(observation[name], 'rgb8', self._size, self._size)
            for name in self._cameras}}


class StartElsewhere(gymnasium.Wrapper):
    """
    Moves the open hand by a random offset, which follows from the seed, before an episode begins.

    Args:
        env: a MetaWorldArm.
        start_offset: standard deviation in metres along each axis.
    """

    def __init__(self, env: gymnasium.Env, start_offset: float) -> None:
        super().__init__(env)
        self._start_offset = start_offset

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode; `seed` is needed."""
        observation, _ = self.env.reset(seed=seed, options=options)
        start = observation[EE_POSE][:3] + np.random.default_rng(seed).normal(
            0.0, self._start_offset, 3)
        for _ in range(MOVE_TICKS):
            observation, _, _, _, info = self.env.step(np.append(start, -1.0))
        return observation, info


def is_kept(tick: int) -> bool:
    """Return whether a tick since the reset is one of the episode, and drawn."""
    return tick >= MOVE_TICKS


def make_env(config: CollectConfig) -> gymnasium.Env:
    """Return one simulation that observes what is kept."""
    arm = MetaWorldArm(config.task, config.cameras, config.source_size, config.source_size,
                       config.renderer, image_due=is_kept if config.start_offset else None)
    if config.start_offset:
        arm = StartElsewhere(arm, config.start_offset)
    return ScaledCameras(arm, config.cameras, config.size)


@dataclass
class Episode:
    """One seed's steps, and the ticks left once it has succeeded; None before."""

    seed: int
    steps: Steps = field(default_factory=dict)
    ticks_left: int | None = None

    def answer(self, observation: dict[str, np.ndarray], position: np.ndarray,
               effort: float) -> np.ndarray:
        """Keep an observation with the target that answers it; return the action (4,) to take."""
        for name, value in (*observation.items(), ('target_position', position),
                            ('target_gripper', np.array([effort]))):
            self.steps.setdefault(name, []).append(value)
        return np.array([*position, effort])


def run_episodes(config: CollectConfig, first_seed: int, on_tick: Callable[[int], None],
                 workers: int) -> Iterator[Episode]:
    """
    Play seeds from `first_seed` on without end, and yield each episode when it is over.

    They come in the order in which they end; a failed one has `ticks_left` None.

    Args:
        config: what to play.
        first_seed: seed of the first episode.
        on_tick: is told the number of frames of each tick.
        workers: simulations in parallel, each in its own process.
    """
    expert = Expert(config.task, config.goal_offset)
    envs = parallel_envs([partial(make_env, config)] * workers)
    with closing_envs(envs):
        episodes = [Episode(seed) for seed in range(first_seed, first_seed + workers)]
        next_seed = first_seed + workers
        observations, infos = envs.reset(seed=[episode.seed for episode in episodes])
        states = infos['sim_state'].copy()
        while True:
            actions = np.empty((workers, 4))
            for i, episode in enumerate(episodes):
                seen = {name: values[i] for name, values in observations.items()}
                actions[i] = episode.answer(seen, *expert.target(states[i]))
            observations, _, _, truncated, infos = envs.step(actions)
            on_tick(workers)
            states = infos['sim_state'].copy()
            over = np.array([is_over(*step, config.ticks_after_success) for step
                             in zip(episodes, infos['success'], truncated, strict=True)])
            if over.any():
                for i in np.flatnonzero(over):
                    yield episodes[i]
                    episodes[i] = Episode(next_seed)
                    next_seed += 1
                observations, infos = envs.reset(seed=[episode.seed for episode in episodes],
                                                 options={'reset_mask': over})
                states[over] = infos['sim_state'][over]


def is_over(episode: Episode, success: bool, truncated: bool, ticks_after_success: int) -> bool:
    """Return whether an episode ends after this tick; its `ticks_left` are counted down."""
    episode.ticks_left = ticks_left(episode.ticks_left, success, ticks_after_success)
    return truncated or episode.ticks_left == 0
