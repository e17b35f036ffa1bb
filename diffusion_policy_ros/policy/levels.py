"""Which noise levels a sampler visits, most noise first; without PyTorch, for config.py."""

from __future__ import annotations


def leading_levels(num_train_timesteps: int, num_inference_steps: int) -> list[int]:
    """
    Return evenly spaced levels down to 0 (diffusers' `leading`).

    100 levels in 4 steps are 75, 50, 25, 0, and in 100 steps all of them.
    """
    stride = num_train_timesteps // num_inference_steps
    return [i * stride for i in range(num_inference_steps)][::-1]


def trailing_levels(num_train_timesteps: int, num_inference_steps: int) -> list[int]:
    """
    Return evenly spaced levels from the noisiest on (diffusers' `trailing`).

    Lin et al. 2024 (https://arxiv.org/abs/2305.08891), section 3.3: sampling begins with noise
    alone, so it has to begin at the level that is all noise. 100 levels in 4 steps are 99, 74, 49,
    24, and in 100 steps all of them.
    """
    stride = num_train_timesteps / num_inference_steps
    return [round(num_train_timesteps - i * stride) - 1 for i in range(num_inference_steps)]


LEVELS = {'leading': leading_levels, 'trailing': trailing_levels}
