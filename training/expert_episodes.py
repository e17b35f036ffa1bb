"""MetaWorld's scripted expert, episode after episode: what `collect_demos.py` keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import gymnasium
from gymnasium.spaces import Box, Dict
import numpy as np

from diffusion_policy_ros.control.images import camera_image
from diffusion_policy_ros.sim.arm import MetaWorldArm
from diffusion_policy_ros.sim.experts import Expert
from diffusion_policy_ros.sim.rendering import check_camera, check_renderer
from diffusion_policy_ros.sim.rollout import closing_envs, parallel_envs
from diffusion_policy_ros.sim.tasks import (
    check_collection_seed, check_task, FIRST_COLLECTION_SEED, MAX_STEPS, TICKS_AFTER_SUCCESS,
    ticks_left,
)

Steps = dict[str, list[np.ndarray]]
PUSH_TICKS = 10
PAUSE_TICKS = (10, 50)  # from the end of a push to the next one, drawn evenly


@dataclass(frozen=True)
class CollectConfig:
    """
    What the data depend on.

    Attributes:
        task: one of MetaWorld's tasks.
        cameras: cameras to keep.
        source_size: pixels a side of the pictures that the simulation draws.
        size: pixels a side that they are scaled to.
        renderer: name of the picture settings.
        seed_start: first seed that is tried.
        ticks_after_success: ticks that an episode goes on after the first success.
        disturbance: metres that a push moves the hand, the standard deviation along each axis; 0
            for no pushes. The first begins with the episode, so that where the hand is does not
            tell where the goal is while no camera sees it. The expert's targets are kept as they
            answer what a push has done, so that the data show how to come back (Laskey et al.
            2017, arXiv 1703.09327).
    """

    task: str
    cameras: Sequence[str] = ('arm', 'wrist')
    source_size: int = 224
    size: int = 96
    renderer: str = 'plain'
    seed_start: int = FIRST_COLLECTION_SEED
    ticks_after_success: int = TICKS_AFTER_SUCCESS
    disturbance: float = 0.0

    def __post_init__(self) -> None:
        check_task(self.task)
        for camera in self.cameras:
            check_camera(camera)
        check_renderer(self.renderer)
        check_collection_seed(self.seed_start)
        if not 0 < self.size <= self.source_size or self.ticks_after_success < 0:
            raise ValueError(f'size is {self.size}, source_size {self.source_size} and '
                             f'ticks_after_success {self.ticks_after_success}, expected '
                             '0 < size <= source_size and no negative ticks')
        if not 0 <= self.disturbance < 1:
            raise ValueError(f'disturbance is {self.disturbance} m, expected 0 to less than 1')

    def pushes(self, seed: int) -> np.ndarray:
        """Return (MAX_STEPS, 3), metres by which each tick of an episode misses its target."""
        rng, offsets, tick = np.random.default_rng(seed), np.zeros((MAX_STEPS, 3)), 0
        while self.disturbance and tick < MAX_STEPS:
            offsets[tick:tick + PUSH_TICKS] = rng.normal(0, self.disturbance / PUSH_TICKS, 3)
            tick += PUSH_TICKS + rng.integers(*PAUSE_TICKS)
        return offsets


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


def make_env(config: CollectConfig) -> gymnasium.Env:
    """Return one simulation that observes what is kept."""
    arm = MetaWorldArm(config.task, config.cameras, config.source_size, config.source_size,
                       config.renderer)
    return ScaledCameras(arm, config.cameras, config.size)


@dataclass
class Episode:
    """One seed's steps, and the ticks left once it has succeeded; None before."""

    seed: int
    pushes: np.ndarray
    steps: Steps = field(default_factory=dict)
    ticks_left: int | None = None

    def answer(self, observation: dict[str, np.ndarray], position: np.ndarray,
               effort: float) -> np.ndarray:
        """Keep an observation with the target that answers it; return the action (4,) to take."""
        push = self.pushes[len(self.steps.get('target_position', ()))]
        for name, value in (*observation.items(), ('target_position', position),
                            ('target_gripper', np.array([effort]))):
            self.steps.setdefault(name, []).append(value)
        return np.array([*(position + push), effort])


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
    expert = Expert(config.task)
    envs = parallel_envs([partial(make_env, config)] * workers)
    with closing_envs(envs):
        episodes = [Episode(seed, config.pushes(seed))
                    for seed in range(first_seed, first_seed + workers)]
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
                    episodes[i] = Episode(next_seed, config.pushes(next_seed))
                    next_seed += 1
                observations, infos = envs.reset(seed=[episode.seed for episode in episodes],
                                                 options={'reset_mask': over})
                states[over] = infos['sim_state'][over]


def is_over(episode: Episode, success: bool, truncated: bool, ticks_after_success: int) -> bool:
    """Return whether an episode ends after this tick; its `ticks_left` are counted down."""
    episode.ticks_left = ticks_left(episode.ticks_left, success, ticks_after_success)
    return truncated or episode.ticks_left == 0
