"""How sure a measured success rate is."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054


def wilson_interval(n_success: int, n_episodes: int) -> tuple[float, float]:
    """
    Return the 95 % interval of a success rate (Wilson 1927, the score interval).

    Raises:
        ValueError: `n_success` is not within 0 and `n_episodes`, or there are no episodes.
    """
    if not 0 <= n_success <= n_episodes or n_episodes == 0:
        raise ValueError(f'found {n_success} successes in {n_episodes} episodes')
    rate, z2 = n_success / n_episodes, Z_95 ** 2
    centre = rate + z2 / (2 * n_episodes)
    spread = Z_95 * math.sqrt(rate * (1 - rate) / n_episodes + z2 / (4 * n_episodes ** 2))
    scale = 1 + z2 / n_episodes
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def percent(interval: tuple[float, float]) -> str:
    """Return an interval of rates as `93.0-99.4 %`."""
    low, high = (100 * bound for bound in interval)
    return f'{low:.1f}-{high:.1f} %'
