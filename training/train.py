#!/usr/bin/env python3
"""
Train a diffusion policy on a replay buffer: `train.py CONFIG -d DATASET -o FOLDER`.

On several GPUs or machines: `accelerate launch training/train.py ...`. Stop it at any time; the
same command goes on where it stopped. FOLDER then holds `checkpoint/` (the averaged weights),
`metrics.jsonl`, `tensorboard/`, `loss.png` and `state.pt` to resume from.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta
from importlib.metadata import version
import io
import json
import math
import os
from pathlib import Path
import pickle
import platform
import signal
import sys
from textwrap import shorten
import time
from typing import Any

from accelerate import Accelerator, InitProcessGroupKwargs
from arguments import at_least
from code_version import code_version, PACKAGE
from monitor import is_due, Monitor, success_in_simulator, Validation
import numpy as np
from processes import any_of, check_same_folder, threads_of_a_process
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from settings import Config, describe_values, read_config, say_crops, TrainingConfig, unlike
import torch
from torch import nn

from diffusion_policy_ros.data.only_writer import only_writer
from diffusion_policy_ros.data.replay_buffer import load_replay_buffer
from diffusion_policy_ros.data.step_batches import Batch, StepBatches, to_device
from diffusion_policy_ros.data.stored_arrays import naming
from diffusion_policy_ros.data.window_data import WindowData
from diffusion_policy_ros.policy.checkpoint import save_checkpoint
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.normalizer import Normalizer
from diffusion_policy_ros.sim.tasks import COLLECTED_BY_DEFAULT
from diffusion_policy_ros.typed import from_mapping, to_mapping

LOG_EVERY = 25
ASK_EVERY = 5  # steps, after which processes wait for each other to ask whether one is stopped
STATE = {'policy', 'average', 'optimizer', 'step', 'processes', 'config', 'data'}
COLLECTED = ('task', 'seed_start', *COLLECTED_BY_DEFAULT)
LONGEST_WAIT = timedelta(hours=6)  # of the other processes, while the first one evaluates


def parameter_groups(policy: DiffusionPolicy, training: TrainingConfig) -> list[dict[str, Any]]:
    """Return AdamW's groups; a transformer's biases, norms and positions are not decayed."""
    matrices, others = [], []
    for name, parameter in policy.network.named_parameters():
        plain = policy.config.network == 'unet'
        decayed = plain or parameter.ndim > 1 and not name.endswith('position')
        (matrices if decayed else others).append(parameter)
    return [{'params': matrices, 'weight_decay': training.weight_decay},
            {'params': others, 'weight_decay': 0.0},
            {'params': list(policy.encoders.parameters()),
             'weight_decay': training.encoder_weight_decay}]


class StepLoss(nn.Module):
    """A batch to its loss, as one module that can be wrapped for many processes."""

    def __init__(self, policy: DiffusionPolicy, cpu_bf16: bool) -> None:
        super().__init__()
        self.policy, self._cpu_bf16 = policy, cpu_bf16

    def forward(self, images: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """Return the mean loss; `images` are camera to (U, C, H, W) uint8, the batch's frames."""
        with torch.autocast('cpu', torch.bfloat16, enabled=self._cpu_bf16):
            features = self.policy.encode(images, batch.crop)
        if features is not None:
            features = features.float()[batch.frames]
        return self.policy.loss(features, batch.state, batch.action, batch.noise, batch.timestep)


class Trainer:
    """Weights, their average and the optimiser; all else follows from the step and the seed."""

    def __init__(self, config: Config, data: WindowData, accelerator: Accelerator) -> None:
        self.config, self.data, self.accelerator = config, data, accelerator
        training, device = config.training, accelerator.device
        torch.manual_seed(training.seed)
        normalizer = Normalizer.fit(data.arrays_to_normalize())
        self.policy = DiffusionPolicy(config.policy, normalizer).to(device)
        self.average = DiffusionPolicy(config.policy, normalizer).to(device)
        self.average.load_state_dict(self.policy.state_dict())
        self.average.eval().requires_grad_(False)
        self.model, self.optimizer = accelerator.prepare(
            StepLoss(self.policy, training.bf16 and device.type == 'cpu'),
            torch.optim.AdamW(parameter_groups(self.policy, training), lr=training.learning_rate,
                              betas=training.betas, fused=True))
        self.batches = StepBatches(
            data, training.segments, training.segment_windows, training.noise_draws,
            training.seed, training.accumulation, accelerator.process_index,
            accelerator.num_processes)
        self.steps = training.steps or math.ceil(training.epochs * self.batches.steps_per_epoch)
        self.step, self.waited_s = 0, 0.0
        self.code = code_version()
        self._images = {
            name: [torch.from_numpy(array).to(device)
                   for array in (data.buffer.arrays[name], data.buffer.shown[name])]
            for name in self.policy.encoders} if training.images == 'device' else None
        self._loader, self._next = ThreadPoolExecutor(1), None

    def advance(self) -> torch.Tensor:
        """Take one optimiser step; return its loss, of this process's batches."""
        training, accelerator = self.config.training, self.accelerator
        for group in self.optimizer.param_groups:
            group['lr'] = training.learning_rate_at(self.step, self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(self._dropout_seed())
        total, loaded = torch.zeros((), device=accelerator.device), self._load()
        for i, (images, batch) in enumerate(loaded):
            last = i == len(loaded) - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                loss = self.model(self._to_device(images, batch), batch.to(accelerator.device))
                loss = loss * batch.share
                accelerator.backward(loss)
            total += loss.detach()
        if training.clip_norm:
            accelerator.clip_grad_norm_(self.policy.parameters(), training.clip_norm)
        self.optimizer.step()
        torch._foreach_lerp_(list(self.average.parameters()),
                             [weight.detach() for weight in self.policy.parameters()],
                             1.0 - training.ema_decay(self.step))
        self.step += 1
        return total

    def _load(self) -> list[tuple[dict[str, np.ndarray], Batch]]:
        """Return this step's batches, and have the next step's made while this one is learnt."""
        start = time.perf_counter()
        loading = self._next or self._loader.submit(self._batches_of, self.step)
        loaded = loading.result()
        self.waited_s += time.perf_counter() - start
        self._next = self._loader.submit(self._batches_of, self.step + 1)
        return loaded

    def _batches_of(self, step: int) -> list[tuple[dict[str, np.ndarray], Batch]]:
        return [({} if self._images else self.data.images(batch.shown.numpy()), batch)
                for batch in self.batches.of_step(step)]

    def _to_device(self, images: dict[str, np.ndarray], batch: Batch) -> dict[str, torch.Tensor]:
        device = self.accelerator.device
        if self._images:
            rows = batch.shown.to(device)
            found = {name: frames[shown[rows]] for name, (frames, shown) in self._images.items()}
        else:
            found = {name: to_device(torch.from_numpy(frames), device)
                     for name, frames in images.items()}
        return {name: frames.movedim(-1, -3) for name, frames in found.items()}

    def _dropout_seed(self) -> int:
        place = [self.config.training.seed, self.step, self.accelerator.process_index]
        return int(np.random.SeedSequence(place).generate_state(1)[0])

    def save(self, folder: Path, provenance: dict[str, Any]) -> None:
        """
        Write the state to resume from and the averaged weights as a checkpoint.

        Raises:
            OSError: the disk is full, say; what was saved before is still there.
        """
        state = {'policy': self.policy.state_dict(), 'average': self.average.state_dict(),
                 'optimizer': self.optimizer.state_dict(), 'step': self.step,
                 'processes': self.accelerator.num_processes,
                 'config': json.dumps(to_mapping(self.config)),
                 'data': provenance['data']['sha256'], 'code': self.code}
        new = folder / '.state.pt.new'
        try:
            with new.open('wb') as file:
                saved = io.BytesIO()  # torch.save hides which error a file raised
                torch.save(state, saved)
                file.write(saved.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            save_checkpoint(folder / 'checkpoint', self.average,
                            {**provenance, 'step': self.step})
            os.replace(new, folder / 'state.pt')
        except OSError as error:
            raise OSError(f'{folder}: cannot be saved ({error.strerror or error}), what was saved '
                          'before is kept') from error
        finally:
            new.unlink(missing_ok=True)

    def resume(self, path: Path, data: str) -> None:
        """
        Go on from a saved state.

        Args:
            path: of the state.
            data: digest of the data set.

        Raises:
            ValueError: it cannot be read, or was saved by a run with another configuration, on
                other data or of another number of processes.
        """
        try:
            state = torch.load(path, map_location='cpu', weights_only=True)
        except (RuntimeError, EOFError, OSError, LookupError, pickle.UnpicklingError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f'{path}: cannot be read ({reason}), expected what a run has saved; '
                             'without the file it begins anew') from None
        if not isinstance(state, dict) or not STATE <= state.keys():
            raise ValueError(f'{path}: is no state of a run, expected what a run has saved; '
                             'without the file it begins anew')
        try:
            values = json.loads(state['config'])
        except (TypeError, ValueError) as error:
            raise ValueError(f'{path}: its configuration cannot be read ({error}); '
                             'without the file it begins anew') from None
        saved = from_mapping(Config, values, str(path))
        if others := unlike(saved, self.config):
            raise ValueError(f'{path}: was saved with another configuration '
                             f'({"; ".join(others)}); another folder begins anew')
        if state['data'] != data:
            raise ValueError(f"{path}: was saved on data of sha256 {state['data'][:16]}, these "
                             f'are {data[:16]}, expected the same or another folder')
        if state['processes'] != self.accelerator.num_processes:
            raise ValueError(f"{path}: was saved by {state['processes']} processes, these are "
                             f'{self.accelerator.num_processes}')
        try:
            self.policy.load_state_dict(state['policy'])
            self.average.load_state_dict(state['average'])
            self.optimizer.load_state_dict(state['optimizer'])
        except (RuntimeError, ValueError, LookupError, TypeError) as error:
            raise ValueError(f'{path}: its tensors are not those of this configuration '
                             f'({shorten(str(error), 200)}), expected what a run has saved; '
                             'without the file it begins anew') from None
        self.step = state['step']
        before = state.get('code', self.code)
        again = before.rpartition('; ')[2] == self.code
        self.code = before if again else f'{before} to step {self.step}; {self.code}'


def read_data(path: Path, config: Config) -> tuple[WindowData, WindowData, dict[str, Any]]:
    """Return what is trained on, what is held out, and the data's provenance."""
    training = config.training
    cameras = tuple(camera.name for camera in config.policy.observation.cameras)
    used = load_replay_buffer(path, cameras, training.episodes + training.validation_episodes,
                              mapped=training.images == 'mapped')
    train, held_out = used.split(training.episodes)
    provenance = {'data': {'name': path.name, 'sha256': used.digest(),
                           **{key: used.attributes[key] for key in COLLECTED
                              if key in used.attributes},
                           'episodes': training.episodes,
                           'validation_episodes': training.validation_episodes,
                           'frames': int(train.episode_ends[-1]),
                           'versions': used.attributes.get('versions', {})}}
    with naming(str(path)):
        data = WindowData(train, config.policy)
    with naming(f'{path}: the episodes held out for validation'):
        return data, WindowData(held_out, config.policy), provenance


def train(config: Config, dataset: Path, folder: Path, accelerator: Accelerator,
          stopping: Callable[[], bool] = lambda: False) -> bool:
    """
    Train until the last step, going on from what `folder` holds.

    Args:
        config: of policy and training.
        dataset: replay buffer.
        folder: of the run.
        accelerator: the processes that learn together.
        stopping: whether to save and end after the present step.

    Returns:
        Whether the last step is reached.

    Raises:
        ValueError: in one line: data or folder do not fit the configuration.
        OSError: the run's files cannot be written.
    """
    with accelerator.main_process_first():  # who decodes the pictures that all map
        data, held_out, provenance = read_data(dataset, config)
    check_same_folder(accelerator, folder)
    trainer = Trainer(config, data, accelerator)
    if (state := folder / 'state.pt').exists():
        trainer.resume(state, provenance['data']['sha256'])
    provenance |= {'training': to_mapping(config.training), 'machine': platform.machine(),
                   'device': accelerator.device.type, 'processes': accelerator.num_processes,
                   'threads': torch.get_num_threads(),
                   'versions': {PACKAGE: trainer.code, 'python': platform.python_version(), **{
                       name: version(name) for name in ('torch', 'torchvision', 'accelerate')}}}
    if not accelerator.is_main_process:
        run(trainer, None, stopping, lambda: None)
    else:
        with only_writer(folder, folder / '.lock'):
            say_crops(config.policy)
            monitor = Monitor(folder, trainer.step, Validation(held_out))
            run(trainer, monitor, stopping, lambda: trainer.save(folder, provenance))
            monitor.close()
    return trainer.step >= trainer.steps


def run(trainer: Trainer, monitor: Monitor | None, stopping: Callable[[], bool],
        save: Callable[[], None]) -> None:
    """Advance to the last step or until told to stop; measure, save and evaluate on the way."""
    accelerator = trainer.accelerator
    if monitor is not None and trainer.step:  # a run may have been killed while it measured
        saving, evaluating = due(trainer)
        known = monitor.known(trainer.step)
        measure(trainer, monitor, {}, saving and 'validation_loss' not in known,
                evaluating and 'success' not in known)
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(),
               TextColumn('{task.fields[rate]:.2f} steps/s'), TimeRemainingColumn())
    losses, started, first, stop = [], time.perf_counter(), trainer.step, False
    with Progress(*columns, disable=monitor is None or not sys.stderr.isatty()) as progress:
        bar = progress.add_task('training', total=trainer.steps, completed=first, rate=0.0)
        while trainer.step < trainer.steps and not stop:
            losses.append(trainer.advance())
            saving, evaluating = due(trainer)
            if accelerator.num_processes == 1 or saving or trainer.step % ASK_EVERY == 0:
                stop = any_of(accelerator, stopping())
            elapsed_s = time.perf_counter() - started
            rate = (trainer.step - first) / elapsed_s
            progress.update(bar, completed=trainer.step, rate=rate)
            if not (trainer.step % LOG_EVERY == 0 or saving or stop):
                continue
            loss = accelerator.reduce(torch.stack(losses).mean(), 'mean').item()
            losses = []
            progress.update(bar, description=f'loss {loss:.4f}')
            if monitor is not None:
                row = {'loss': loss, 'steps_per_s': round(rate, 3),
                       'waiting': round(trainer.waited_s / elapsed_s, 4),
                       'learning_rate': trainer.optimizer.param_groups[0]['lr']}
                if saving or stop:
                    save()
                measure(trainer, monitor, row, saving, evaluating and not stop)
            accelerator.wait_for_everyone()


def due(trainer: Trainer) -> tuple[bool, bool]:
    """Return whether this step is saved and measured, and whether it is evaluated."""
    training, last = trainer.config.training, trainer.step == trainer.steps
    every = training.evaluate_every * trainer.batches.steps_per_epoch
    evaluating = is_due(trainer.step, every) or every > 0 and last
    return evaluating or last or trainer.step % training.save_every == 0, evaluating


def measure(trainer: Trainer, monitor: Monitor, row: dict[str, float], validating: bool,
            evaluating: bool) -> None:
    """Write a step's row, and what is measured with the averaged weights."""
    if row or validating:
        monitor.write(trainer.step, row, trainer.average if validating else None)
    if evaluating:
        n_episodes = trainer.config.training.evaluation_episodes
        if measured := success_in_simulator(trainer.average, n_episodes, trainer.step):
            monitor.write(trainer.step, measured, None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.strip().split('\n\n')[0], epilog=describe_values(),
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', type=Path, help='file of config/training/')
    parser.add_argument('-d', '--dataset', type=Path, required=True, help='zarr replay buffer')
    parser.add_argument('-o', '--output', type=Path, required=True, help='folder to write')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                        dest='overrides', help='override a value, for example training.steps=3000')
    parser.add_argument('--threads', type=at_least(1), default=threads_of_a_process(),
                        help='PyTorch threads of each process')
    parser.add_argument('--cpu', action='store_true', help='leave GPUs alone')
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision('high')
    received: list[int] = []
    try:
        config = read_config(options.config, options.overrides)
        use_cpu = options.cpu or not torch.cuda.is_available()
        accelerator = Accelerator(
            cpu=use_cpu, mixed_precision='bf16' if config.training.bf16 and not use_cpu else 'no',
            kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)])
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: (received.append(number),
                                                     signal.signal(number, signal.SIG_DFL)))
        done = train(config, options.dataset, options.output, accelerator, lambda: bool(received))
    except (ValueError, OSError) as error:
        sys.exit(f'train: {error}')
    except torch.OutOfMemoryError as error:
        sys.exit(f'train: {str(error).splitlines()[0]} Fewer training.segments with more '
                 'training.accumulation need less, and so does training.images=memory')
    if accelerator.is_main_process and done:
        print(f'wrote {options.output}/checkpoint')
    if not done:
        sys.exit('train: stopped and saved; the same command goes on')


if __name__ == '__main__':
    main()
