"""
Conditional 1-D U-Net over the steps of a chunk (Chi et al. 2023, section III-A).

Every residual block is modulated by FiLM (Perez et al. 2018): scale and bias are a linear function
of Mish(diffusion step, observation). Mish acts on each number alone, so the function is a sum of
the step's half and the observation's: a sampler computes each half once, not once a call.
"""

from __future__ import annotations

from collections.abc import Callable
import math

import torch
from torch import nn
from torch.nn import functional

from diffusion_policy_ros.policy.config import UnetConfig


def sinusoidal_embedding(timestep: torch.Tensor, dim: int) -> torch.Tensor:
    """Map (N,) to (N, dim): sines, then cosines (Vaswani et al. 2017, section 3.5)."""
    half = dim // 2
    frequency = torch.exp(torch.arange(half, device=timestep.device)
                          * (-math.log(10_000) / (half - 1)))
    angle = timestep[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


FEW = 4
"""Samples up to which inference is bound by the reading of weights, not by the products."""


class _BuildsFromWeights:
    """
    A layer that computes with a matrix and a bias built from its weights.

    Inference builds them once for the weights; a change through `weight.data` goes unnoticed.
    """

    _built: tuple[torch.Tensor, torch.Tensor] | None = None
    _built_from: tuple[str | int, ...] | None = None

    def _keeps(self) -> bool:
        """Return whether what is built may be kept; forget it where it may not."""
        # A fused optimiser's step does not count up versions, and inference tensors have none.
        keeps = not (self.training or torch.is_grad_enabled() or self.weight.is_inference())
        if not keeps:
            self._built = self._built_from = None
        return keeps

    def _of_weights(self, keeps: bool, build: Callable[..., tuple[torch.Tensor, torch.Tensor]],
                    *size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return build(*size)."""
        if not keeps:
            return build(*size)
        state = (build.__name__, *size, self.weight.data_ptr(), self.weight._version,
                 self.bias._version)
        if self._built_from != state:
            self._built, self._built_from = build(*size), state
        return self._built


def _neighbours(x: torch.Tensor, n_taps: int) -> torch.Tensor:
    """Map (B, n, T) to (B, T, n_taps * n): each step between its neighbours, 0 at the ends."""
    n_batch, n, steps = x.shape
    pad = n_taps // 2
    padded = functional.pad(x.transpose(1, 2), (0, 0, pad, pad)).contiguous()
    return padded.as_strided((n_batch, steps, n_taps * n), (padded.stride(0), n, 1))


class StepConv(_BuildsFromWeights, nn.Conv1d):
    """
    Conv1d that keeps the number of steps; over few steps on a CPU it is one matrix product.

    PyTorch has no fast Conv1d for a few steps of many channels on a CPU, and most taps would only
    meet padding. Over fewer steps than taps it is the matrix from all steps to all: over 2 steps
    of 256 channels it trains five times as fast. Inference for a few samples over more than two
    steps takes each step's neighbourhood instead, which reads every weight once.
    """

    def __init__(self, n_in: int, n_out: int, kernel_size: int) -> None:
        super().__init__(n_in, n_out, kernel_size, padding=kernel_size // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, n_in, T) to (B, n_out, T)."""
        steps, n_taps, keeps = x.shape[2], self.kernel_size[0], self._keeps()
        few = keeps and len(x) <= FEW
        if x.device.type != 'cpu' or steps >= n_taps and not few:
            return super().forward(x)
        if steps > 2 and few:
            n_live = min(n_taps, 2 * steps - 1)
            return functional.linear(_neighbours(x, n_live), *self._of_weights(
                keeps, self._rows, n_live)).transpose(1, 2)
        return functional.linear(x.flatten(1), *self._of_weights(
            keeps, self._matrix, steps)).view(len(x), -1, steps)

    def _rows(self, n_live: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (n_out, n_live * n_in), the middle taps one after the other, and the bias."""
        first = (self.kernel_size[0] - n_live) // 2
        rows = self.weight[:, :, first:first + n_live].transpose(1, 2).flatten(1)
        return rows.contiguous(), self.bias

    def _matrix(self, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return M[o, t, i, s] = weight[o, i, s - t + padding] as a matrix, and its bias."""
        taps = self.weight.unbind(2)
        zero = torch.zeros_like(taps[0])

        def row(t: int) -> torch.Tensor:
            first = self.padding[0] - t
            return torch.stack([taps[first + s] if 0 <= first + s < len(taps) else zero
                                for s in range(steps)], dim=2)

        matrix = torch.stack([row(t) for t in range(steps)], dim=1)      # (n_out, T, n_in, T)
        return matrix.flatten(2).flatten(0, 1), self.bias.repeat_interleave(steps)


class StepDoubling(_BuildsFromWeights, nn.ConvTranspose1d):
    """ConvTranspose1d that doubles the number of steps; inference on a CPU is a matrix product."""

    def __init__(self, n: int) -> None:
        super().__init__(n, n, 4, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, n, T) to (B, n, 2 T)."""
        if not self._keeps() or x.device.type != 'cpu' or len(x) > FEW:
            return super().forward(x)
        n_batch, n, steps = x.shape
        both = functional.linear(_neighbours(x, 3), *self._of_weights(True, self._rows))
        return both.view(n_batch, 2 * steps, n).transpose(1, 2)

    def _rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (2 n, 3 n), of even steps, then of odd ones, and the bias."""
        before, even, odd, after = (self.weight[:, :, tap] for tap in (3, 1, 2, 0))
        zero = torch.zeros_like(before)
        rows = torch.cat([torch.cat([before, even, zero]).T, torch.cat([zero, odd, after]).T])
        return rows, self.bias.repeat(2)


class ConvBlock(nn.Sequential):
    """Conv1d, GroupNorm, Mish."""

    def __init__(self, n_in: int, n_out: int, kernel_size: int, n_groups: int) -> None:
        super().__init__(StepConv(n_in, n_out, kernel_size), nn.GroupNorm(n_groups, n_out),
                         nn.Mish())


class ResidualBlock(nn.Module):
    """Two convolutions, FiLM after the first, and a way around both."""

    def __init__(self, n_in: int, n_out: int, kernel_size: int, n_groups: int) -> None:
        super().__init__()
        self.first = ConvBlock(n_in, n_out, kernel_size, n_groups)
        self.second = ConvBlock(n_out, n_out, kernel_size, n_groups)
        self.around = nn.Conv1d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Map (B, n_in, T) to (B, n_out, T); scale and bias are (B, n_out, 1)."""
        return self.second(scale * self.first(x) + bias) + self.around(x)


class ConditionalUnet1d(nn.Module):
    """
    Predicts the noise in a chunk of actions, or the clean chunk (`noise.prediction_type`).

    Args:
        action_dim: Da.
        condition_dim: length of one observation step's vector.
        n_obs_steps: To.
        config: widths and kernel.
    """

    def __init__(self, action_dim: int, condition_dim: int, n_obs_steps: int,
                 config: UnetConfig) -> None:
        super().__init__()
        self.step_dim = config.diffusion_step_embed_dim
        self.step_mlp = nn.Sequential(nn.Linear(self.step_dim, 4 * self.step_dim), nn.Mish(),
                                      nn.Linear(4 * self.step_dim, self.step_dim))
        widths = config.down_dims
        self.film_widths: list[int] = []     # of the blocks, in the order in which they run

        def block(n_in: int, n_out: int) -> ResidualBlock:
            self.film_widths.append(n_out)
            return ResidualBlock(n_in, n_out, config.kernel_size, config.n_groups)

        def pair(n_in: int, n_out: int) -> nn.ModuleList:
            return nn.ModuleList([block(n_in, n_out), block(n_out, n_out)])

        self.down = nn.ModuleList(pair(n_in, n_out) for n_in, n_out
                                  in zip((action_dim, *widths[:-1]), widths, strict=True))
        self.shrink = nn.ModuleList(nn.Conv1d(n, n, 3, stride=2, padding=1) for n in widths[:-1])
        self.middle = pair(widths[-1], widths[-1])
        self.up = nn.ModuleList(pair(2 * n_in, n_out) for n_in, n_out
                                in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.grow = nn.ModuleList(StepDoubling(n) for n in widths[-2::-1])
        self.last = ConvBlock(widths[0], widths[0], config.kernel_size, config.n_groups)
        self.out = nn.Conv1d(widths[0], action_dim, 1)
        self.film = nn.Linear(self.step_dim + n_obs_steps * condition_dim,
                              2 * sum(self.film_widths))

    def embed_step(self, timestep: torch.Tensor) -> torch.Tensor:
        """Return the diffusion step's half of every block's FiLM, (N,) to (N, F)."""
        embedded = self.step_mlp(sinusoidal_embedding(timestep, self.step_dim))
        return functional.linear(functional.mish(embedded), self.film.weight[:, :self.step_dim])

    def embed_condition(self, condition: torch.Tensor) -> torch.Tensor:
        """Return the observation's half of it, (N, To, condition_dim) to (N, F)."""
        return functional.linear(functional.mish(condition.flatten(1)),
                                 self.film.weight[:, self.step_dim:], self.film.bias)

    def forward(self, sample: torch.Tensor, step: torch.Tensor,
                condition: torch.Tensor) -> torch.Tensor:
        """
        Return the noise in a sample, or the clean sample, (B, Tp, Da).

        Args:
            sample: (B, Tp, Da) noisy actions; Tp is a multiple of 2^(stages - 1).
            step: (B, F) or (1, F), from `embed_step`.
            condition: (B, F), from `embed_condition`.

        Raises:
            ValueError: Tp is no such multiple.
        """
        halvings = 2 ** len(self.shrink)
        if sample.shape[1] % halvings:
            raise ValueError(f'U-Net: the horizon is {sample.shape[1]}, '
                             f'expected a multiple of {halvings}')
        film = iter((step + condition).unsqueeze(2).split(
            [2 * n for n in self.film_widths], dim=1))

        def run(blocks: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
            for block in blocks:
                x = block(x, *next(film).chunk(2, dim=1))
            return x

        x = sample.transpose(1, 2)                           # (B, Da, Tp)
        skips = []
        for i, blocks in enumerate(self.down):
            x = run(blocks, x)                               # (B, widths[i], Tp / 2^i)
            skips.append(x)
            if i < len(self.shrink):
                x = self.shrink[i](x)
        x = run(self.middle, x)
        for blocks, grow in zip(self.up, self.grow, strict=True):
            x = grow(run(blocks, torch.cat([x, skips.pop()], dim=1)))
        return self.out(self.last(x)).transpose(1, 2)        # (B, Tp, Da)
