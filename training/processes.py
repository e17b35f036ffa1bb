"""What processes that learn together must agree on."""

from __future__ import annotations

import os
from pathlib import Path
import secrets

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
import torch


def threads_of_a_process() -> int:
    """Return this process's share of the machine's cores; torchrun says how many share them."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))


def any_of(accelerator: Accelerator, flag: bool) -> bool:
    """Return whether the flag is raised in any process."""
    if accelerator.num_processes == 1:
        return flag
    return accelerator.reduce(torch.tensor(float(flag), device=accelerator.device)).item() > 0


def check_same_folder(accelerator: Accelerator, folder: Path) -> None:
    """
    Wait until all processes are here, and see whether they see what the first one writes.

    Raises:
        ValueError: one does not.
    """
    mark, (token,) = folder / '.shared', broadcast_object_list([secrets.token_hex(8)])
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(token)
    accelerator.wait_for_everyone()
    seen = mark.exists() and mark.read_text() == token
    blind = accelerator.gather(torch.tensor([not seen], device=accelerator.device))
    if accelerator.is_main_process:
        mark.unlink()
    if blind.any():
        raise ValueError(f'{folder}: {int(blind.sum())} of {len(blind)} processes do not see what '
                         'the first one writes there, expected one folder that all machines share')
