"""A policy as a folder: model.safetensors and config.yaml, nothing pickled."""

from __future__ import annotations

from collections.abc import Mapping
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
import torch
import yaml

from diffusion_policy_ros.policy.checkpoint_config import (
    CheckpointConfig,
    CONFIG_NAME,
    FORMAT_VERSION,
    read_config,
    WEIGHTS_NAME,
)
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.normalizer import Normalizer
from diffusion_policy_ros.typed import to_mapping


def save_checkpoint(folder: str | Path, policy: DiffusionPolicy, extra: Mapping[str, Any],
                    dtype: torch.dtype = torch.float16) -> None:
    """
    Write a policy; a full disk or a kill while it is written leaves the last one as it was.

    A kill between the two renames at its end leaves new weights beside the older config.yaml.

    Args:
        folder: is made where it is missing.
        policy: its weights are stored as `dtype`, its normaliser in full.
        extra: provenance, plain values for YAML.
        dtype: of the stored weights.

    Raises:
        ValueError: a weight is not finite as `dtype`, named.
    """
    folder = Path(folder)
    tensors = {}
    for name, tensor in policy.state_dict().items():
        kept = tensor if name.startswith('normalizer.') else tensor.to(dtype)
        if not torch.isfinite(kept).all():
            raise ValueError(f'checkpoint {folder}: {name} is not finite as {dtype}, not saved')
        tensors[name] = kept.cpu().contiguous()
    config = to_mapping(CheckpointConfig(FORMAT_VERSION, policy.config, dict(extra)))
    folder.mkdir(parents=True, exist_ok=True)
    new = {name: folder / f'.{name}.new' for name in (WEIGHTS_NAME, CONFIG_NAME)}
    try:
        new[WEIGHTS_NAME].write_bytes(save(tensors))
        new[CONFIG_NAME].write_text(yaml.safe_dump(config, sort_keys=False, width=99))
        for path in new.values():
            with path.open('rb+') as file:
                os.fsync(file.fileno())
        for name, path in new.items():
            os.replace(path, folder / name)
    finally:
        for path in new.values():
            path.unlink(missing_ok=True)


def load_checkpoint(folder: str | Path, device: str | torch.device = 'cpu') -> DiffusionPolicy:
    """
    Read a policy, in float32 and ready to predict.

    Raises:
        ValueError: in one line that names the file and the tensor or key: one is missing,
            unexpected, of another shape or not finite, or the format is newer; or the device,
            which is not there.
    """
    config = read_config(folder)
    path = Path(folder) / WEIGHTS_NAME
    if not path.is_file():
        raise ValueError(f'{path}: no such file')
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f'{path}: {" ".join(str(error).split())}') from None
    dims = {'action': config.action.dim}
    if config.observation.state:
        dims['state'] = config.observation.state_dim
    policy = DiffusionPolicy(config, Normalizer(dims))
    _check_tensors(path, tensors, policy.state_dict())
    policy.load_state_dict(tensors)
    try:
        policy = policy.to(device)
    except (RuntimeError, AssertionError) as error:  # no such device, or one that torch lacks
        raise ValueError(f'device {str(device)!r}: {str(error).splitlines()[0]}') from None
    return policy.eval().requires_grad_(False)


def _check_tensors(path: Path, found: Mapping[str, torch.Tensor],
                   expected: Mapping[str, torch.Tensor]) -> None:
    for problem, names in (('is missing', expected.keys() - found.keys()),
                           ('is unexpected', found.keys() - expected.keys())):
        if names:
            raise ValueError(f'{path}: tensor {min(names)} {problem}, and {len(names) - 1} more')
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(f'{path}: tensor {name} has shape {tuple(tensor.shape)}, '
                             f'expected {tuple(expected[name].shape)}')
        if not torch.isfinite(tensor).all():
            raise ValueError(f'{path}: tensor {name} holds numbers that are not finite')
