"""
Time-series diffusion transformer over the steps of a chunk (Chi et al. 2023, section III-A).

Each step of the chunk is a token. With `cross_attention` it attends to the diffusion step, memory
token 0, and to the observations, tokens 1 to To; with `adaln_zero` both modulate every block
instead (Peebles & Xie 2023, section 3.2). What depends on the diffusion step alone and on the
observation alone is computed apart: a sampler needs each half once, not once a call.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from diffusion_policy_ros.policy.config import TransformerConfig
from diffusion_policy_ros.policy.unet import sinusoidal_embedding

INIT_STD = 0.02


def causal_mask(horizon: int) -> torch.Tensor:
    """Return (Tp, Tp) bool, true where step t may look at step s: s <= t."""
    return torch.ones(horizon, horizon, dtype=torch.bool).tril()


def memory_mask(horizon: int, n_obs_steps: int) -> torch.Tensor:
    """
    Return (Tp, 1 + To) bool, true where step t may look at memory token s: t >= s - 1.

    Token 0 is the diffusion step. Step 0 of the chunk belongs to the oldest observation, token 1:

        Tp 4, To 2    1 1 0
                      1 1 1
                      1 1 1
                      1 1 1
    """
    step, token = torch.arange(horizon)[:, None], torch.arange(1 + n_obs_steps)
    return step >= token - 1


class Attention(nn.Module):
    """Multi-head attention; keys and values come ready, from `keys_values`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, key_value: torch.Tensor,
                mask: torch.Tensor | None) -> torch.Tensor:
        """Map (B, T, E) and (B, S, 2 E) to (B, T, E); the mask is (T, S), true where allowed."""
        heads = self.config.n_heads

        def split(tokens: torch.Tensor) -> torch.Tensor:
            return tokens.unflatten(2, (heads, -1)).transpose(1, 2)      # (B, heads, T, E / heads)

        key, value = key_value.chunk(2, dim=2)
        attended = functional.scaled_dot_product_attention(
            split(self.query(x)), split(key), split(value), attn_mask=mask,
            dropout_p=self.config.p_drop_attn if self.training else 0.0)
        return self.out(attended.transpose(1, 2).flatten(2))


def feed_forward(config: TransformerConfig) -> nn.Sequential:
    """Return two layers, four times as wide between them."""
    return nn.Sequential(
        nn.Linear(config.embed_dim, 4 * config.embed_dim), nn.GELU(),
        nn.Dropout(config.p_drop_attn), nn.Linear(4 * config.embed_dim, config.embed_dim))


class CrossBlock(nn.Module):
    """Self-attention, attention to the memory, feed-forward; each behind a LayerNorm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(config.embed_dim) for _ in range(3))
        self.attention, self.cross = Attention(config), Attention(config)
        self.feed_forward = feed_forward(config)
        self.drop = nn.Dropout(config.p_drop_attn)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, memory: torch.Tensor,
                memory_mask: torch.Tensor) -> torch.Tensor:
        """Map (B, Tp, E) to the same; `memory` is (B, 1 + To, 2 E) keys and values."""
        y = self.norms[0](x)
        x = x + self.drop(self.attention(y, self.attention.key_value(y), mask))
        x = x + self.drop(self.cross(self.norms[1](x), memory, memory_mask))
        return x + self.drop(self.feed_forward(self.norms[2](x)))


class ModulatedBlock(nn.Module):
    """Self-attention and feed-forward; shift, scale and gate of each are given from outside."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norms = nn.ModuleList(
            nn.LayerNorm(config.embed_dim, elementwise_affine=False) for _ in range(2))
        self.attention = Attention(config)
        self.feed_forward = feed_forward(config)
        self.drop = nn.Dropout(config.p_drop_attn)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None,
                modulation: torch.Tensor) -> torch.Tensor:
        """Map (B, Tp, E) to the same; `modulation` is (B, 6 E)."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation[:, None].chunk(6, dim=2)
        y = self.norms[0](x) * (1 + scale_a) + shift_a
        x = x + gate_a * self.drop(self.attention(y, self.attention.key_value(y), mask))
        y = self.norms[1](x) * (1 + scale_f) + shift_f
        return x + gate_f * self.drop(self.feed_forward(y))


class DiffusionTransformer(nn.Module):
    """
    Predicts the noise in a chunk of actions, or the clean chunk (`noise.prediction_type`).

    Args:
        action_dim: Da.
        condition_dim: length of one observation step's vector.
        n_obs_steps: To.
        horizon: Tp.
        config: depth, width and conditioning.
    """

    def __init__(self, action_dim: int, condition_dim: int, n_obs_steps: int, horizon: int,
                 config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.input = nn.Linear(action_dim, dim)
        self.position = nn.Parameter(torch.empty(horizon, dim))
        self.condition_input = nn.Linear(condition_dim, dim)
        self.drop = nn.Dropout(config.p_drop_embed)
        self.crossing = config.conditioning == 'cross_attention'
        if self.crossing:
            self.memory_position = nn.Parameter(torch.empty(1 + n_obs_steps, dim))
            self.memory_mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.Mish(),
                                            nn.Linear(4 * dim, dim))
            self.blocks = nn.ModuleList(CrossBlock(config) for _ in range(config.n_layers))
            self.norm = nn.LayerNorm(dim)
        else:
            self.step_mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.Mish(),
                                          nn.Linear(4 * dim, dim))
            self.blocks = nn.ModuleList(ModulatedBlock(config) for _ in range(config.n_layers))
            self.norm = nn.LayerNorm(dim, elementwise_affine=False)
            self.modulation = nn.Linear((1 + n_obs_steps) * dim, (6 * config.n_layers + 2) * dim)
        self.out = nn.Linear(dim, action_dim)
        self.register_buffer('mask', causal_mask(horizon), persistent=False)
        if self.crossing:
            self.register_buffer('memory_mask', memory_mask(horizon, n_obs_steps),
                                 persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """Draw weights as Chi et al. (minGPT's) or, for adaLN-Zero, Peebles & Xie (Glorot's)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                if self.crossing:
                    nn.init.normal_(module.weight, std=INIT_STD)
                else:
                    nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.position, std=INIT_STD)
        if self.crossing:
            nn.init.normal_(self.memory_position, std=INIT_STD)
        else:  # every block begins as the identity, and the noise as zero
            for layer in (self.modulation, self.out):
                nn.init.zeros_(layer.weight)

    def embed_step(self, timestep: torch.Tensor) -> torch.Tensor:
        """Return the diffusion step's half of what conditions the blocks, (N,) to (N, ...)."""
        embedded = sinusoidal_embedding(timestep, self.config.embed_dim)
        if self.crossing:
            return self._memory((embedded + self.memory_position[0])[:, None])
        width = self.config.embed_dim
        return functional.linear(functional.silu(self.step_mlp(embedded)),
                                 self.modulation.weight[:, :width])

    def embed_condition(self, condition: torch.Tensor) -> torch.Tensor:
        """Return the observation's half, (N, To, condition_dim) to (N, ...)."""
        embedded = self.condition_input(condition)
        if self.crossing:
            return self._memory(embedded + self.memory_position[1:])
        width = self.config.embed_dim
        return functional.linear(functional.silu(embedded.flatten(1)),
                                 self.modulation.weight[:, width:], self.modulation.bias)

    def _memory(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return every block's keys and values, (N, S, E) to (N, S, layers, 2 E)."""
        tokens = self.memory_mlp(self.drop(tokens))
        return torch.stack([block.cross.key_value(tokens) for block in self.blocks], dim=2)

    def forward(self, sample: torch.Tensor, step: torch.Tensor,
                condition: torch.Tensor) -> torch.Tensor:
        """
        Return the noise in a sample, or the clean sample, (B, Tp, Da).

        Args:
            sample: (B, Tp, Da) noisy actions.
            step: from `embed_step`, (B, ...) or (1, ...).
            condition: from `embed_condition`, (B, ...).
        """
        x = self.drop(self.input(sample) + self.position)               # (B, Tp, E)
        mask = self.mask if self.config.causal else None
        if self.crossing:
            memory_mask = self.memory_mask if self.config.causal else None
            memory = torch.cat([step.expand(len(condition), -1, -1, -1), condition], dim=1)
            for block, key_value in zip(self.blocks, memory.unbind(2), strict=True):
                x = block(x, mask, key_value, memory_mask)
            return self.out(self.norm(x))
        *modulations, last = (step + condition).split(
            [6 * self.config.embed_dim] * len(self.blocks) + [2 * self.config.embed_dim], dim=1)
        for block, modulation in zip(self.blocks, modulations, strict=True):
            x = block(x, mask, modulation)
        shift, scale = last[:, None].chunk(2, dim=2)
        return self.out(self.norm(x) * (1 + scale) + shift)
