"""
The forward process of diffusion and its identities, in normalised space.

`alpha_bar` is the share of signal left at a level: 1 is clean, 0 is noise alone. All of it is
Ho et al. 2020, https://arxiv.org/abs/2006.11239, whose equation numbers are given.
"""

from __future__ import annotations

import numpy as np
import torch


def squaredcos_cap_v2(num_train_timesteps: int, max_beta: float = 0.999) -> np.ndarray:
    """
    Return alpha_bar of every level, (K,) float64, least noise first.

    The cosine schedule of Nichol and Dhariwal 2021, equation 17, each beta at most `max_beta`.
    """
    edges = np.arange(num_train_timesteps + 1) / num_train_timesteps
    f = np.cos((edges + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], max_beta))


def add_noise(clean: torch.Tensor, epsilon: torch.Tensor,
              alpha_bar: torch.Tensor | float) -> torch.Tensor:
    """Return the noised sample, equation 4."""
    return alpha_bar ** 0.5 * clean + (1 - alpha_bar) ** 0.5 * epsilon


def clean_from_epsilon(noisy: torch.Tensor, epsilon: torch.Tensor,
                       alpha_bar: torch.Tensor | float) -> torch.Tensor:
    """Return the clean sample that `add_noise` turned into `noisy`, equation 15."""
    return (noisy - (1 - alpha_bar) ** 0.5 * epsilon) / alpha_bar ** 0.5


def epsilon_from_clean(noisy: torch.Tensor, clean: torch.Tensor,
                       alpha_bar: torch.Tensor | float) -> torch.Tensor:
    """Return the noise with which `add_noise` turned `clean` into `noisy`, equation 4."""
    return (noisy - alpha_bar ** 0.5 * clean) / (1 - alpha_bar) ** 0.5


def posterior_mean(noisy: torch.Tensor, clean: torch.Tensor, alpha_bar: float,
                   alpha_bar_next: float) -> torch.Tensor:
    """Return the mean of q(x_next | x, x0), equation 7, for any two levels."""
    alpha = alpha_bar / alpha_bar_next
    return (alpha_bar_next ** 0.5 * (1 - alpha) * clean
            + alpha ** 0.5 * (1 - alpha_bar_next) * noisy) / (1 - alpha_bar)


def posterior_variance(alpha_bar: float, alpha_bar_next: float) -> float:
    """Return the variance of q(x_next | x, x0), equation 7 (diffusers' `fixed_small`)."""
    return (1 - alpha_bar_next) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_next)
