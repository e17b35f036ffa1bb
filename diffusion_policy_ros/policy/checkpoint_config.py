"""A checkpoint's config.yaml and its name, readable without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
import hashlib
from pathlib import Path
from typing import Any

from diffusion_policy_ros.policy.config import PolicyConfig
from diffusion_policy_ros.typed import from_mapping, load_yaml

FORMAT_VERSION = 1
CONFIG_NAME = 'config.yaml'
WEIGHTS_NAME = 'model.safetensors'


@dataclass(frozen=True)
class CheckpointConfig:
    """
    The whole of config.yaml.

    Attributes:
        format_version: `FORMAT_VERSION` of the code that wrote it.
        policy: what the policy observes, predicts and is made of.
        provenance: how it came to be: data, training, versions; no policy depends on it.
    """

    format_version: int
    policy: PolicyConfig
    provenance: dict[str, Any] = field(default_factory=dict)


def read_checkpoint_config(folder: str | Path) -> CheckpointConfig:
    """
    Read and check a checkpoint's config.yaml.

    Raises:
        ValueError: in one line that names the file: it is missing, of a newer format, or has an
            unknown, missing or wrong key.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f'checkpoint {folder}: no such folder')
    path = folder / CONFIG_NAME
    values = load_yaml(path)
    # Before the keys: a newer format may have any.
    version = values.get('format_version') if isinstance(values, dict) else None
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise ValueError(f'{path}: format_version is {version!r}, expected at most '
                         f'{FORMAT_VERSION}, the newest that this version reads')
    return from_mapping(CheckpointConfig, values, str(path))


def read_config(folder: str | Path) -> PolicyConfig:
    """Return the policy's configuration; raises as `read_checkpoint_config` does."""
    return read_checkpoint_config(folder).policy


def checkpoint_hash(folder: str | Path) -> str:
    """
    Return the sha256 of config.yaml and the weights, in hexadecimal digits.

    Raises:
        ValueError: a file is missing.
    """
    digest = hashlib.sha256()
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        path = Path(folder) / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ValueError(f'{path}: {error.strerror}') from None
        digest.update(f'{name} {len(content)}\n'.encode())
        digest.update(content)
    return digest.hexdigest()
