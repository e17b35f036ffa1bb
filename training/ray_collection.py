"""Demonstrations over a Ray cluster: `collect_demos.py --ray`; needs the extra `ray`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from expert_episodes import CollectConfig, Episode, is_over, make_env

from diffusion_policy_ros.sim.experts import Expert

try:
    import ray
    from ray.util import ActorPool
except ImportError:
    raise ValueError("--ray: ray is missing; type: pip install 'diffusion_policy_ros[ray]'"
                     ) from None


class Player:
    """One simulation and its expert, wherever Ray puts them."""

    def __init__(self, config: CollectConfig) -> None:
        self._config, self._expert, self._env = config, Expert(config.task), make_env(config)

    def play(self, seed: int) -> Episode:
        """Play one episode."""
        episode = Episode(seed)
        observation, info = self._env.reset(seed=seed)
        while True:
            action = episode.answer(observation, *self._expert.target(info['sim_state']))
            observation, _, _, truncated, info = self._env.step(action)
            if is_over(episode, info['success'], truncated, self._config.ticks_after_success):
                return episode


def run_episodes(config: CollectConfig, first_seed: int, on_tick: Callable[[int], None],
                 workers: int, address: str) -> Iterator[Episode]:
    """
    Play as `expert_episodes.run_episodes` does, each simulation an actor on one core.

    A machine that is lost has its episodes played again elsewhere.

    Args:
        config: what to play.
        first_seed: seed of the first episode.
        on_tick: is told the frames of each episode.
        workers: actors.
        address: of the cluster; `auto` joins the one that runs here, or starts one.
    """
    if not ray.is_initialized():
        here = {'working_dir': str(Path(__file__).parent)}
        try:
            ray.init(address, runtime_env=here)
        except ConnectionError:
            if address != 'auto':
                raise ValueError(f'--ray {address}: no Ray cluster answers there') from None
            ray.init(runtime_env=here)
    actor = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)(Player)
    players = [actor.remote(config) for _ in range(workers)]
    pool, seeds = ActorPool(players), count(first_seed)
    try:
        for _ in players:
            pool.submit(_play, next(seeds))
        while True:
            episode = pool.get_next_unordered()
            on_tick(len(episode.steps['ee_pose']))
            yield episode
            pool.submit(_play, next(seeds))
    finally:
        for player in players:
            ray.kill(player)


def _play(player: ray.actor.ActorHandle, seed: int) -> ray.ObjectRef:
    return player.play.remote(seed)
