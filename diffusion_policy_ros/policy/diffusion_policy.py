"""
Diffusion Policy (Chi et al. 2023, https://arxiv.org/abs/2303.04137): the class to read first.

    images (B, To, C, H, W) -> encoder a camera -> (B, To, F) ┐
    state  (B, To, Ds)      -> normalise                      ┴-> condition (B, To * (F + Ds))
    noise  (B, Tp, Da) -> sampler around U-Net(., condition) -> action -> absolute targets -> Chunk

Only `draw` and `episode_noise` draw random numbers: the loss is a function of its batch, a
prediction of its window and noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from diffusion_policy_ros.datatypes import Chunk, EE_POSE, ObservationWindow
from diffusion_policy_ros.policy.actions import decode_action, encode_state, split_targets
from diffusion_policy_ros.policy.config import PolicyConfig
from diffusion_policy_ros.policy.diffusion import (
    add_noise,
    clean_from_epsilon,
    squaredcos_cap_v2,
)
from diffusion_policy_ros.policy.levels import LEVELS
from diffusion_policy_ros.policy.normalizer import Normalizer
from diffusion_policy_ros.policy.samplers import ddim, ddpm
from diffusion_policy_ros.policy.transformer import DiffusionTransformer
from diffusion_policy_ros.policy.unet import ConditionalUnet1d
from diffusion_policy_ros.policy.vision import ImageEncoder

SAMPLERS = {'ddpm': ddpm, 'ddim': ddim}


def episode_noise(seed: int, elapsed_ns: int, shape: Sequence[int]) -> torch.Tensor:
    """
    Return a prediction's standard normal noise as a function of when it is made.

    Args:
        seed: of the episode, not negative.
        elapsed_ns: the observation's time since the episode's first, not negative.
        shape: (n_draws, Tp, Da).
    """
    rng = np.random.default_rng([seed, elapsed_ns])
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))


def draw(config: PolicyConfig, windows: Sequence[int], frames: Sequence[int],
         generator: torch.Generator, n_draws: int = 1) -> dict[str, torch.Tensor | None]:
    """
    Return what a training step draws by chance, on the CPU, so that every device has the same.

    Args:
        config: the policy's.
        windows: shape of the windows.
        frames: shape of the frames; each gets its own crop.
        generator: on the CPU.
        n_draws: noise levels for each window; more than 1 puts an axis in front.

    Returns:
        `noise` (*windows, Tp, Da), `timestep` (*windows) int64, and `crop` (*frames, cameras, 2),
        top and left, or None for a policy without cameras.
    """
    shape = (n_draws, *windows) if n_draws > 1 else tuple(windows)
    crops = [torch.stack([torch.randint(camera.height - config.vision.crop_height + 1,
                                        tuple(frames), generator=generator),
                          torch.randint(camera.width - config.vision.crop_width + 1,
                                        tuple(frames), generator=generator)], dim=-1)
             for camera in config.observation.cameras]
    return {'noise': torch.randn((*shape, config.horizon, config.action.dim),
                                 generator=generator),
            'timestep': torch.randint(config.noise.num_train_timesteps, shape,
                                      generator=generator),
            'crop': torch.stack(crops, dim=-2) if crops else None}


class DiffusionPolicy(nn.Module):
    """
    Windows of observations to chunks of actions.

    Args:
        config: the policy's.
        normalizer: with `action`, and `state` where the observation has one.
    """

    def __init__(self, config: PolicyConfig, normalizer: Normalizer) -> None:
        super().__init__()
        self.config, self.normalizer = config, normalizer
        for camera in config.observation.cameras:
            if hasattr(nn.ModuleDict(), camera.name):
                raise ValueError(f'camera name is {camera.name!r}, which PyTorch needs for itself')
        self.encoders = nn.ModuleDict({camera.name: ImageEncoder(camera, config.vision)
                                       for camera in config.observation.cameras})
        feature_dim = sum(encoder.feature_dim for encoder in self.encoders.values())
        condition_dim = feature_dim + config.observation.state_dim
        if config.network == 'unet':
            self.network = ConditionalUnet1d(
                config.action.dim, condition_dim, config.n_obs_steps, config.unet)
        else:
            self.network = DiffusionTransformer(
                config.action.dim, condition_dim, config.n_obs_steps, config.horizon,
                config.transformer)
        self.alpha_bars = squaredcos_cap_v2(config.noise.num_train_timesteps)
        self.register_buffer('_alpha_bar', torch.from_numpy(self.alpha_bars).float(),
                             persistent=False)  # on the device, so that no step waits for a copy

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.normalizer.action_min.device

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Shape (n_draws, Tp, Da) of one prediction's noise."""
        return self.n_draws, self.config.horizon, self.config.action.dim

    @property
    def n_draws(self) -> int:
        """Draws that a prediction uses: DDIM's start; DDPM's start and one between two levels."""
        noise = self.config.noise
        return 1 if noise.sampler == 'ddim' else noise.num_inference_steps

    def encode(self, images: Mapping[str, torch.Tensor],
               corners: torch.Tensor | None = None) -> torch.Tensor | None:
        """
        Return each frame's features, the cameras in the configuration's order.

        Args:
            images: camera name to (..., C, H, W) uint8 RGB.
            corners: (..., cameras, 2) top and left of random crops, or None for the centre.

        Returns:
            (..., F), or None for a policy without cameras.
        """
        features = []
        for i, (name, encoder) in enumerate(self.encoders.items()):
            frames = images[name]
            own = None if corners is None else corners[..., i, :].reshape(-1, 2)
            encoded = encoder(frames.reshape(-1, *frames.shape[-3:]), own)
            features.append(encoded.unflatten(0, frames.shape[:-3]))
        return torch.cat(features, dim=-1) if features else None

    def condition(self, features: torch.Tensor | None, state: torch.Tensor | None) -> torch.Tensor:
        """
        Return the observation's vector of each step.

        Args:
            features: (..., To, F) from `encode`.
            state: (..., To, state_dim) in robot units.

        Returns:
            (..., To, F + state_dim).
        """
        parts = [] if features is None else [features]
        if self.config.observation.state:
            parts.append(self.normalizer.normalize('state', state))
        return torch.cat(parts, dim=-1)

    def loss(self, features: torch.Tensor | None, state: torch.Tensor | None,
             action: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """
        Return the mean squared error of what the network predicts (`noise.prediction_type`).

        Of the noise it is Chi et al. 2023, equation 5. `draw` gives noise and levels.

        Args:
            features: (..., To, F) from `encode`.
            state: (..., To, state_dim) in robot units.
            action: (..., Tp, Da) from `encode_action`.
            noise: (..., Tp, Da), or (draws, ..., Tp, Da) for several noise levels of each window.
            timestep: (...) or (draws, ...) int64 levels.
        """
        return self.loss_from_condition(self.condition(features, state), action, noise, timestep)

    def loss_from_condition(self, condition: torch.Tensor, action: torch.Tensor,
                            noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Return the loss of windows; `condition` (..., To, F + state_dim) is from `condition`."""
        clean = self.normalizer.normalize('action', action).expand_as(noise)
        noisy = add_noise(clean, noise, self._alpha_bar[timestep][..., None, None])
        step = self.network.embed_step(timestep.flatten())
        observed = self.network.embed_condition(condition.flatten(0, -3))
        draws = len(step) // len(observed)
        predicted = self.network(noisy.flatten(0, -3), step, torch.cat([observed] * draws))
        target = noise if self.config.noise.prediction_type == 'epsilon' else clean
        return functional.mse_loss(predicted.float(), target.flatten(0, -3))

    @torch.inference_mode()
    def predict(self, windows: Sequence[ObservationWindow], noise: torch.Tensor) -> list[Chunk]:
        """
        Return one chunk a window, points To-1 to Tp-1 of the prediction.

        Args:
            windows: with the streams of the configuration, images at the network's size.
            noise: (B, n_draws, Tp, Da), from `episode_noise`.

        Raises:
            ValueError: a stream or the noise is missing or of another shape.
        """
        streams = {name: self._stacked(windows, name) for name in self.config.streams}
        images = {name: torch.from_numpy(streams[name]).to(self.device).movedim(-1, -3)
                  for name in self.encoders}
        state = None
        if self.config.observation.state:
            state = torch.from_numpy(encode_state(streams, self.config)).to(self.device)
        if noise.shape != (len(windows), *self.noise_shape):
            raise ValueError(f'noise has shape {tuple(noise.shape)}, '
                             f'expected {(len(windows), *self.noise_shape)}')
        sample = self.sample(self.condition(self.encode(images), state), noise.to(self.device))
        actions = self.normalizer.unnormalize('action', sample).cpu().numpy()
        targets = decode_action(actions, streams[EE_POSE][:, -1], self.config)
        return [self._chunk(*pair) for pair in zip(windows, targets, strict=True)]

    def sample(self, condition: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """
        Return normalised actions (B, Tp, Da).

        Args:
            condition: (B, To, F + state_dim) from `condition`.
            noise: (B, n_draws, Tp, Da).
        """
        config = self.config.noise
        levels = LEVELS[config.timestep_spacing](config.num_train_timesteps,
                                                 config.num_inference_steps)
        steps = dict(zip(levels, self.network.embed_step(
            torch.tensor(levels, device=condition.device)).split(1), strict=True))
        observed = self.network.embed_condition(condition)

        def clean(x: torch.Tensor, level: int) -> torch.Tensor:
            predicted = self.network(x, steps[level], observed)
            if config.prediction_type == 'sample':
                return predicted
            return clean_from_epsilon(x, predicted, float(self.alpha_bars[level]))

        return SAMPLERS[config.sampler](clean, noise.transpose(0, 1), self.alpha_bars, levels,
                                        clip_sample=config.clip_sample)

    def _stacked(self, windows: Sequence[ObservationWindow], name: str) -> np.ndarray:
        cameras = {camera.name: (camera.height, camera.width, 3)
                   for camera in self.config.observation.cameras}
        shape = (self.config.n_obs_steps, *cameras.get(name, (7 if name == EE_POSE else 1,)))
        for window in windows:
            if name not in window.streams:
                raise ValueError(f'window: stream {name} is missing, '
                                 f'found {", ".join(window.streams)}')
            if window.streams[name].shape != shape:
                raise ValueError(f'window: stream {name} has shape {window.streams[name].shape}, '
                                 f'expected {shape}')
        return np.stack([window.streams[name] for window in windows])

    def _chunk(self, window: ObservationWindow, target: np.ndarray) -> Chunk:
        parts = split_targets(target, self.config)
        gripper = parts.get('gripper')
        return Chunk(
            stamp_ns=window.stamp_ns,
            offsets_ns=np.arange(len(target), dtype=np.int64) * self.config.dt_ns,
            position=parts['ee_position'],
            quaternion=parts.get('ee_rotation'),
            gripper=None if gripper is None else np.clip(gripper[:, 0], -1.0, 1.0),
            frame_id=window.frame_id)
