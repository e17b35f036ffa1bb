"""
Ways from noise to a sample: free functions of a prediction and of noise drawn beforehand.

A sampler goes through `levels` (most noise first) and from the last one to the clean sample. Each
step names the level that it starts from and the one that it goes to, so that any list is right;
`predict(x, level)` estimates the clean sample, and `alpha_bars[level]` is the share of signal
left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from diffusion_policy_ros.policy.diffusion import (
    epsilon_from_clean,
    posterior_mean,
    posterior_variance,
)

Predict = Callable[[torch.Tensor, int], torch.Tensor]


def ddpm(predict: Predict, noise: torch.Tensor, alpha_bars: Sequence[float],
         levels: Sequence[int], *, clip_sample: bool = True) -> torch.Tensor:
    """
    Sample by Ho et al. 2020, algorithm 2, with the posterior's variance.

    Args:
        predict: the clean sample that a sample at a level is estimated to come from.
        noise: (len(levels), ...) standard normal; the first is the start, one for each later step.
        alpha_bars: of every level of training.
        levels: to visit, most noise first.
        clip_sample: clip each estimate of the clean sample to [-1, 1].
    """
    x = noise[0]
    for i, (level, alpha_bar, alpha_bar_next) in enumerate(_steps(alpha_bars, levels)):
        clean = predict(x, level)
        if clip_sample:
            clean = clean.clamp(-1, 1)
        x = posterior_mean(x, clean, alpha_bar, alpha_bar_next)
        if alpha_bar_next < 1:
            x = x + posterior_variance(alpha_bar, alpha_bar_next) ** 0.5 * noise[i + 1]
    return x


def ddim(predict: Predict, noise: torch.Tensor, alpha_bars: Sequence[float],
         levels: Sequence[int], *, clip_sample: bool = True) -> torch.Tensor:
    """
    Sample by Song et al. 2020 (https://arxiv.org/abs/2010.02502), equation 12 without noise.

    As in diffusers, clipping changes the estimate of the clean sample, not the noise of that.

    Args:
        predict: the clean sample that a sample at a level is estimated to come from.
        noise: (1, ...) standard normal, the start.
        alpha_bars: of every level of training.
        levels: to visit, most noise first.
        clip_sample: clip each estimate of the clean sample to [-1, 1].
    """
    x = noise[0]
    for level, alpha_bar, alpha_bar_next in _steps(alpha_bars, levels):
        clean = predict(x, level)
        epsilon = epsilon_from_clean(x, clean, alpha_bar)
        if clip_sample:
            clean = clean.clamp(-1, 1)
        x = alpha_bar_next ** 0.5 * clean + (1 - alpha_bar_next) ** 0.5 * epsilon
    return x


def _steps(alpha_bars: Sequence[float],
           levels: Sequence[int]) -> Iterator[tuple[int, float, float]]:
    """Yield each level, its alpha_bar and that of the level to go to; the last is clean, 1."""
    here = [float(alpha_bars[level]) for level in levels]
    yield from zip(levels, here, (*here[1:], 1.0), strict=True)
