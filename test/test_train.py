"""Training: it learns, it resumes to the bit, and it refuses what does not fit."""

import errno
import math
import os
from pathlib import Path
import shlex
import subprocess
import sys

from accelerate import Accelerator
from code_version import code_version
import cv2
from demonstrations import write_demonstrations
from monitor import is_due, Monitor, read_metrics, Validation
import numpy as np
from processes import threads_of_a_process
import pytest
from settings import Config, read_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
import torch
import train
import zarr

from diffusion_policy_ros.data.only_writer import only_writer
from diffusion_policy_ros.policy.checkpoint import load_checkpoint
from diffusion_policy_ros.policy.checkpoint_config import read_checkpoint_config
from diffusion_policy_ros.typed import describe, to_mapping

# After the policy: beside a CPU torch, torchvision cannot be imported before it.
from diffusers.optimization import get_cosine_schedule_with_warmup  # noqa: I100, I202
from diffusers.training_utils import EMAModel

ROOT = Path(__file__).parents[1]
SMALL = ('policy.observation.cameras='
         '[{name: arm, source_height: 64, source_width: 64, height: 32, width: 32}]',
         'policy.vision={base_width: 16, crop_height: 28, crop_width: 28, pooling: average}',
         'policy.unet={down_dims: [16, 32], diffusion_step_embed_dim: 16}', 'policy.dt_s=0.0125',
         'training.episodes=2', 'training.validation_episodes=1', 'training.segments=2',
         'training.segment_windows=4', 'training.warmup_steps=2', 'training.save_every=3')
CAMERA = '{{name: {}, source_height: {}, source_width: 224, height: 32, width: 32}}'


@pytest.fixture
def dataset(tmp_path):
    return write_demonstrations(tmp_path / 'demos.zarr')


def small(*overrides):
    return read_config(ROOT / 'config/training/drawer_open.yaml', (*SMALL, *overrides))


def run(config, dataset, folder, stopping=lambda: False):
    return train.train(config, dataset, folder, Accelerator(cpu=True), stopping)


def trainer_of(config, dataset):
    return train.Trainer(config, train.read_data(dataset, config)[0], Accelerator(cpu=True))


def weights(folder):
    return torch.load(folder / 'state.pt', weights_only=True)


@pytest.mark.slow
def test_loss_falls_and_the_checkpoint_predicts(dataset, tmp_path):
    config = small('training.steps=100', 'training.learning_rate=3e-3', 'training.segments=8',
                   'training.noise_draws=2', 'training.save_every=25')
    run(config, dataset, tmp_path / 'run')
    rows = read_metrics(tmp_path / 'run')
    assert list(rows) == [25, 50, 75, 100]
    for measure in ('loss', 'validation_loss'):
        assert rows[100][measure] < 0.85 * rows[25][measure]
    policy = load_checkpoint(tmp_path / 'run/checkpoint')
    assert policy.config.task == 'drawer-open-v3'
    assert (tmp_path / 'run/loss.png').stat().st_size > 1000


@pytest.mark.parametrize('overrides', [
    (), ('policy.network=transformer',
         'policy.transformer={n_layers: 1, n_heads: 2, embed_dim: 16}')])
def test_resumed_training_is_the_uninterrupted_one_to_the_bit(dataset, tmp_path, monkeypatch,
                                                              overrides):
    config = small('training.steps=7', *overrides)
    run(config, dataset, tmp_path / 'whole')

    advance = train.Trainer.advance

    def interrupted(trainer):
        if trainer.step == 5:
            raise KeyboardInterrupt
        return advance(trainer)

    monkeypatch.setattr(train.Trainer, 'advance', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config, dataset, tmp_path / 'cut')
    assert weights(tmp_path / 'cut')['step'] == 3
    versions = read_checkpoint_config(tmp_path / 'cut/checkpoint').provenance['versions']
    assert versions['diffusion_policy_ros'] == code_version()
    monkeypatch.setattr(train.Trainer, 'advance', advance)
    run(config, dataset, tmp_path / 'cut')

    whole, cut = weights(tmp_path / 'whole'), weights(tmp_path / 'cut')
    for part in ('policy', 'average'):
        for name, tensor in whole[part].items():
            torch.testing.assert_close(cut[part][name], tensor, rtol=0, atol=0, msg=name)


def test_crops_are_said_and_whole_pictures_are_not(dataset, tmp_path, capsys):
    for name, crop, said in (
            ('crop', 28, 'arm: crops of 32x28 of 32x32 pixels, at random in training, the middle '
                         'in use\n'),
            ('whole', 32, '')):
        run(small('training.steps=1', 'policy.vision.crop_height=32',
                  f'policy.vision.crop_width={crop}'), dataset, tmp_path / name)
        assert capsys.readouterr().out == said


def test_who_goes_on_with_other_code_says_so(dataset, tmp_path, monkeypatch):
    for steps, code in ((2, 'a'), (3, 'b'), (4, 'b'), (5, 'c')):
        monkeypatch.setattr(train, 'code_version', lambda code=code: code)
        monkeypatch.setattr(train.Trainer, 'steps', property(lambda _, steps=steps: steps,
                                                             lambda *_: None), raising=False)
        run(small('training.steps=9', 'training.save_every=1'), dataset, tmp_path / 'run')
    found = read_checkpoint_config(tmp_path / 'run/checkpoint').provenance['versions']
    assert found['diffusion_policy_ros'] == 'a to step 2; b to step 4; c'


def test_refuses_to_go_on_with_another_configuration(dataset, tmp_path):
    run(small('training.steps=3'), dataset, tmp_path / 'run')
    before = (tmp_path / 'run/state.pt').read_bytes()
    with pytest.raises(ValueError, match='saved with another configuration'):
        run(small('training.steps=4'), dataset, tmp_path / 'run')
    assert (tmp_path / 'run/state.pt').read_bytes() == before
    assert run(small('training.steps=3', 'training.save_every=1', 'training.images=device'),
               dataset, tmp_path / 'run')


def test_refuses_to_go_on_with_other_data(dataset, tmp_path):
    config = small('training.steps=6')
    run(config, dataset, tmp_path / 'run', lambda: True)
    other = write_demonstrations(tmp_path / 'other.zarr', seed=1)
    with pytest.raises(ValueError, match='saved on data of sha256'):
        run(config, other, tmp_path / 'run')
    assert run(config, dataset, tmp_path / 'run')


@pytest.mark.parametrize('left', [0, 1000])
def test_a_state_cut_short_is_named(dataset, tmp_path, left):
    config, state = small('training.steps=6'), tmp_path / 'run/state.pt'
    run(config, dataset, tmp_path / 'run', lambda: True)
    os.truncate(state, left)
    with pytest.raises(ValueError, match=f'{state}: cannot be read .* it begins anew'):
        run(config, dataset, tmp_path / 'run')


def test_a_second_training_in_a_folder_is_refused(dataset, tmp_path):
    folder = tmp_path / 'run'
    with only_writer(folder, folder / '.lock'), pytest.raises(
            ValueError, match=f'{folder}: is being written by another process'):
        run(small('training.steps=3'), dataset, folder)
    assert run(small('training.steps=3'), dataset, folder)


def test_a_row_cut_short_by_a_full_disk_does_not_spoil_the_next(dataset, tmp_path):
    config, path = small('training.steps=6'), tmp_path / 'run/metrics.jsonl'
    answers = iter([False, False, True])
    run(config, dataset, tmp_path / 'run', lambda: next(answers))
    with path.open('a') as file:
        file.write('{"step": 5, "lo')
    run(config, dataset, tmp_path / 'run')
    assert list(read_metrics(tmp_path / 'run')) == [3, 6]
    with path.open('a') as file:
        file.write('6\n')
    with pytest.raises(ValueError, match=f"{path}: line 3 is '6', expected JSON with a step"):
        read_metrics(tmp_path / 'run')


@pytest.mark.slow
def test_machines_that_do_not_share_the_folder_are_refused(dataset, tmp_path):
    words = [sys.executable, str(ROOT / 'training/train.py'),
             str(ROOT / 'config/training/drawer_open.yaml'), '-d', str(dataset), '--threads', '1',
             '--cpu']
    for override in (*SMALL, 'training.steps=3'):
        words += ['--set', override]
    each = f'exec {shlex.join(words)} -o {tmp_path}/of_$RANK'
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone',
                           '--nproc_per_node', '2', '--no-python', 'bash', '-c', each],
                          capture_output=True, text=True, timeout=120,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode
    assert 'of_0: 1 of 2 processes do not see what the first one writes there' in done.stderr
    assert not list(tmp_path.glob('of_*/state.pt'))


@pytest.mark.parametrize('override, words', [
    ('training.step=3', ('drawer_open.yaml', 'step')),
    ('training.steps=many', ('steps', 'many')),
    ('policy.horizon=6', ('horizon is 6', 'multiple of 4')),
    ('training.steps', ('--set training.steps', 'key=value')),
    ('training.seed=true', ('training.seed', 'True')),
    ('training.clip_norm=-1', ('training.clip_norm is -1',)),
    ('training.ema_max=.nan', ('ema_max nan',)),
    ('training.learning_rate=.inf', ('learning_rate inf',)),
    ('training.betas=[0.9', ('--set training.betas=[0.9',)),
    ('policy.unet.down_dims=64', ('down_dims', '64')),
    ('policy.unet.down_dims=[-64]', ('down_dims has -64', 'positive multiple of n_groups 8')),
    ('policy.dt_s=.inf', ('dt_s is inf', '0.0001 to 3600')),
    ('policy.dt_s=1e300', ('dt_s is 1e+300',)),
])
def test_refuses_bad_overrides_by_name(override, words):
    with pytest.raises(ValueError) as error:
        read_config(ROOT / 'config/training/drawer_open.yaml', (override,))
    for word in words:
        assert word in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('overrides, words', [
    (('training.episodes=9',), ('10 episodes', 'has 3')),
    (('policy.renderer=shadows',), ("'plain'", "'shadows'")),
    (('policy.task=push-v3',), ("'drawer-open-v3'", "policy.task 'push-v3'")),
    (('policy.observation.cameras=arm',), ("cameras is 'arm'", 'expected a list')),
    (('policy.task=lift', 'training.evaluate_every=1.0'), ("task 'lift'", 'MetaWorld')),
    (('policy.dt_s=0.03', 'training.evaluate_every=1.0'), ('dt_s is 0.03', 'tick')),
    (('policy.renderer=real', 'training.evaluate_every=1.0'), ("renderer 'real'", 'plain')),
    ((f'policy.observation.cameras=[{CAMERA.format("front", 224)}]',
      'training.evaluate_every=1.0'), ("camera 'front'", 'wrist')),
    ((f'policy.observation.cameras=[{CAMERA.format("arm", 224)}, {CAMERA.format("wrist", 96)}]',
      'training.evaluate_every=1.0'), ('source sizes [(96, 224), (224, 224)]', 'one for all')),
])
def test_main_ends_with_one_line(dataset, tmp_path, overrides, words):
    arguments = [value for override in (*SMALL, 'training.steps=1', *overrides)
                 for value in ('--set', override)]
    with pytest.raises(SystemExit) as end:
        train.main([str(ROOT / 'config/training/drawer_open.yaml'), '-d', str(dataset),
                    '-o', str(tmp_path / 'run'), '--threads', '1', '--cpu', *arguments])
    message = str(end.value)
    assert message.startswith('train: ')
    assert '\n' not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize('lengths, words', [
    ((40, 50, 2), 'the episodes held out for validation: every episode is shorter than'),
    ((2, 2, 45), 'every episode is shorter than a window of horizon 8'),
])
def test_it_says_which_episodes_are_too_short(tmp_path, lengths, words):
    path = write_demonstrations(tmp_path / 'short.zarr', lengths)
    with pytest.raises(ValueError, match=f'^{path}: {words}'):
        train.read_data(path, small())


def test_the_provenance_says_how_the_demonstrations_were_collected(dataset):
    kept = {'task': 'drawer-open-v3', 'start_offset': 0.05, 'ticks_after_success': 40}
    zarr.open_group(str(dataset), mode='r+').attrs.update(kept)
    assert kept.items() <= train.read_data(dataset, small())[2]['data'].items()


@pytest.mark.parametrize('name', sorted(
    path.name for path in (ROOT / 'config/training').glob('*.yaml')
    if not path.stem.endswith('_table')))
def test_every_configuration_loads(name):
    read_config(ROOT / 'config/training' / name, ())


@pytest.mark.parametrize('network', ['unet', 'transformer'])
def test_the_papers_settings(network):
    config = read_config(ROOT / f'config/training/paper_{network}.yaml', ())
    policy, training = config.policy, config.training
    assert policy.network == network and policy.vision.base_width == 64
    assert [(camera.name, camera.height, camera.width) for camera in
            policy.observation.cameras] == [('arm', 224, 224)] and not policy.observation.state
    assert (policy.n_obs_steps, policy.horizon, policy.n_action_steps) == (2, 8, 4)
    assert (policy.noise.sampler, policy.noise.num_train_timesteps,
            policy.noise.num_inference_steps) == ('ddpm', 100, 100)
    assert (training.episodes, training.epochs) == (250, 100)
    assert training.segments * training.segment_windows * training.accumulation == 64
    assert (training.learning_rate, training.weight_decay) == (1e-4, 1e-6)


def test_the_small_presets_differ_in_the_network_alone():
    unet, transformer = (to_mapping(read_config(ROOT / f'config/training/cpu_{name}.yaml', ()))
                         for name in ('unet', 'transformer'))
    differing = {f'{part}.{key}' for part in unet for key in unet[part]
                 if unet[part][key] != transformer[part][key]}
    assert differing <= {'policy.network', 'policy.transformer', 'training.betas',
                         'training.weight_decay', 'training.warmup_steps',
                         'training.learning_rate', 'training.noise_draws',
                         'training.segments', 'training.segment_windows'}


@pytest.mark.parametrize('network', ['unet', 'transformer'])
def test_every_weight_is_in_one_group_and_only_a_transformers_matrices_decay(dataset, network):
    config = small(f'policy.network={network}', 'training.weight_decay=0.5',
                   'policy.transformer={n_layers: 1, n_heads: 2, embed_dim: 16}')
    trainer = trainer_of(config, dataset)
    decay = {id(parameter): group['weight_decay'] for group in trainer.optimizer.param_groups
             for parameter in group['params']}
    named = dict(trainer.policy.named_parameters())
    assert len(decay) == len(named) == sum(
        len(group['params']) for group in trainer.optimizer.param_groups)
    for name, parameter in named.items():
        expected = 1e-6 if name.startswith('encoders.') else 0.5
        if network == 'transformer' and name.startswith('network.') and (
                parameter.ndim == 1 or 'position' in name):
            expected = 0.0
        assert decay[id(parameter)] == expected, name


def test_the_schedule_is_diffusers():
    training = small('training.steps=50', 'training.warmup_steps=10').training
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=training.learning_rate)
    reference = get_cosine_schedule_with_warmup(optimizer, 10, 50)
    for step in range(49):
        reference.step()  # at its step s it gives warm-up s / 10, here (s + 1) / 10: one ahead
        if step < 10:
            assert training.learning_rate_at(step, 50) == pytest.approx(
                optimizer.param_groups[0]['lr'])
        else:
            assert training.learning_rate_at(step + 1, 50) == pytest.approx(
                optimizer.param_groups[0]['lr'])


def test_a_row_has_the_learning_rate_of_its_last_step(dataset, tmp_path):
    config = small('training.steps=6')
    run(config, dataset, tmp_path / 'run')
    rows, rate_at = read_metrics(tmp_path / 'run'), config.training.learning_rate_at
    assert {step: row['learning_rate'] for step, row in rows.items()} == {
        3: rate_at(2, 6), 6: rate_at(5, 6)}


def test_the_average_is_diffusers(dataset):
    config = small('training.steps=6', 'training.learning_rate=1e-2', 'training.ema_max=0.6')
    trainer = trainer_of(config, dataset)
    reference = EMAModel(trainer.policy.parameters(), decay=0.6, use_ema_warmup=True, inv_gamma=1,
                         power=0.75)
    for _ in range(6):
        trainer.advance()
        reference.step(trainer.policy.parameters())
    for mine, theirs in zip(trainer.average.parameters(), reference.shadow_params, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_several_batches_make_the_step_of_a_large_one(dataset, tmp_path):
    """Loss and gradient of 4 accumulated batches are those of one batch of all windows."""
    large = trainer_of(small('training.steps=3', 'training.segments=4'), dataset)
    small_ones = trainer_of(small('training.steps=3', 'training.segments=1',
                                  'training.accumulation=4'), dataset)
    for _ in range(2):
        torch.testing.assert_close(small_ones.advance(), large.advance(), atol=1e-6, rtol=1e-5)
    for one, other in zip(small_ones.policy.parameters(), large.policy.parameters()):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_two_processes_learn_as_one_with_twice_the_batch(dataset, tmp_path):
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node',
               '2', str(ROOT / 'training/train.py'),
               str(ROOT / 'config/training/drawer_open.yaml'), '-d', str(dataset),
               '-o', str(tmp_path / 'two'), '--threads', '1', '--cpu']
    overrides = (*SMALL, 'training.steps=6', 'training.save_every=2')
    for override in overrides:
        command += ['--set', override]
    for _ in range(2):  # the second time it goes on from the last step
        done = subprocess.run(command, capture_output=True, text=True, timeout=120,
                              env={**os.environ, 'PYTHONPATH': str(ROOT)})
        assert done.returncode == 0, done.stderr
    provenance = read_checkpoint_config(tmp_path / 'two/checkpoint').provenance
    assert provenance['processes'] == 2
    run(small(*overrides[len(SMALL):], 'training.segments=4'), dataset, tmp_path / 'one')
    two, one = read_metrics(tmp_path / 'two'), read_metrics(tmp_path / 'one')
    assert list(two) == list(one) == [2, 4, 6]
    for step in one:
        for measure in ('loss', 'validation_loss'):
            assert two[step][measure] == pytest.approx(one[step][measure], rel=2e-4), step


def test_a_stopped_run_is_saved_where_it_stopped(dataset, tmp_path):
    answers = iter([False] * 4 + [True])
    assert not run(small('training.steps=7'), dataset, tmp_path / 'run', lambda: next(answers))
    assert weights(tmp_path / 'run')['step'] == 5
    assert run(small('training.steps=7'), dataset, tmp_path / 'run')
    assert weights(tmp_path / 'run')['step'] == 7


def test_a_full_disk_leaves_the_last_checkpoint(dataset, tmp_path, monkeypatch):
    config = small('training.steps=6')
    save, fsync, calls = torch.save, os.fsync, []

    def disk_fills(descriptor):
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(torch, 'save', lambda *arguments: (calls.append(1), save(*arguments)))
    monkeypatch.setattr(os, 'fsync', disk_fills)
    with pytest.raises(OSError, match='run: cannot be saved .No space left on device.'):
        run(config, dataset, tmp_path / 'run')
    assert weights(tmp_path / 'run')['step'] == 3
    assert load_checkpoint(tmp_path / 'run/checkpoint').config == config.policy
    assert not list((tmp_path / 'run').glob('.*.new'))


def test_measures_are_in_millimetres_and_drawn_on_every_camera(dataset):
    config = small('training.steps=3')
    data = train.read_data(dataset, config)[1]
    validation = Validation(data)
    policy = trainer_of(config, dataset).average
    wanted = torch.from_numpy(data.action[validation.rows])

    def perfect(condition, noise):
        shift = torch.tensor([0.003, 0.0, -0.004, 0.5]).repeat(len(wanted), 1, 1)
        shift[:len(wanted) // 10, :, :3] *= 3
        return policy.normalizer.normalize('action', wanted + shift)

    policy.sample = perfect
    measures, positions = validation.measure(policy)
    worse = len(wanted) // 10 / len(wanted)
    assert measures['action_error_mm'] == pytest.approx(5.0 + 10.0 * worse, rel=1e-3)
    assert measures['action_error_p95_mm'] == pytest.approx(15.0, rel=1e-3)
    assert measures['gripper_error'] == pytest.approx(0.5, rel=1e-3)
    assert positions.shape == (len(validation.rows), 7, 3)
    sheets = validation.draw_chunks(positions)
    assert list(sheets) == ['arm'] and sheets['arm'].ndim == 3


def test_pictures_on_disk_or_on_the_device_teach_the_same(dataset, tmp_path):
    losses = []
    for images in ('memory', 'mapped', 'device'):
        trainer = trainer_of(small('training.steps=3', f'training.images={images}'), dataset)
        losses.append([trainer.advance().item() for _ in range(3)])
    assert losses[0] == losses[1] == losses[2]


def test_epochs_are_passes_over_all_windows(dataset):
    config = small('training.steps=0', 'training.epochs=2.5', 'training.segment_windows=1',
                   'training.segments=4')
    trainer = trainer_of(config, dataset)
    windows = trainer.data.windows.trained.sum()
    assert trainer.steps == math.ceil(2.5 * windows / 4)
    seen = [shown for step in range(math.ceil(windows / 4)) for batch in
            trainer.batches.of_step(step) for shown in batch.shown[batch.frames[:, -1]].tolist()]
    assert set(seen) == set(np.flatnonzero(trainer.data.windows.trained).tolist())
    assert len(seen) - len(set(seen)) < 4


def test_tensorboard_has_the_curves_and_chunks_drawn_on_pictures(dataset, tmp_path):
    run(small('training.steps=6'), dataset, tmp_path / 'run')
    board = EventAccumulator(str(tmp_path / 'run/tensorboard'))
    board.Reload()
    assert {'loss', 'validation_loss', 'action_error_mm', 'learning_rate', 'waiting'} <= set(
        board.Tags()['scalars'])
    assert [event.step for event in board.Scalars('validation_loss')] == [3, 6]
    assert board.Tags()['images'] == ['chunks/arm']
    picture = cv2.imdecode(np.frombuffer(board.Images('chunks/arm')[-1].encoded_image_string,
                                         np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (320, 4 * 320, 3)
    assert (picture.max(axis=2) - picture.min(axis=2)).max() > 60  # the demonstrations are grey


@pytest.mark.parametrize('key, value', [('task', 'open the drawer'), ('renderer', '')])
def test_data_of_no_simulator_are_drawn_without_chunks_and_without_it(dataset, tmp_path,
                                                                      monkeypatch, key, value):
    monkeypatch.setitem(sys.modules, 'diffusion_policy_ros.sim.cameras', None)
    zarr.open_group(str(dataset), mode='r+').attrs[key] = value
    run(small('training.steps=3', f'policy.{key}={value!r}'), dataset, tmp_path / 'run')
    assert (tmp_path / 'run/checkpoint/model.safetensors').exists()
    assert read_metrics(tmp_path / 'run')[3]['action_error_mm'] > 0


@pytest.mark.parametrize('every, steps, expected', [
    (4.5, 18, [5, 9, 14, 18]), (2.25, 9, [3, 5, 7, 9]), (0.45, 3, [1, 2, 3]), (0.0, 5, [])])
def test_an_evaluation_is_due_at_the_first_step_after_so_many_epochs(every, steps, expected):
    assert [step for step in range(1, steps + 1) if is_due(step, every)] == expected


def test_a_measurement_that_was_cut_off_is_made_up_for(dataset, tmp_path, monkeypatch):
    config, write = small('training.steps=6'), Monitor.write

    def killed(self, step, *rest):
        if step == 6:
            raise KeyboardInterrupt
        write(self, step, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Monitor, 'write', killed)
        run(config, dataset, tmp_path / 'run')
    assert weights(tmp_path / 'run')['step'] == 6
    assert run(config, dataset, tmp_path / 'run')
    cut, whole = tmp_path / 'run', tmp_path / 'whole'
    run(config, dataset, whole)
    for key in ('validation_loss', 'action_error_mm'):
        assert read_metrics(cut)[6][key] == read_metrics(whole)[6][key]


def test_a_state_that_is_none_is_refused(dataset, tmp_path):
    (tmp_path / 'run').mkdir()
    text = {**dict.fromkeys(train.STATE), 'config': '{'}
    for wrong in (text, {**text, 'config': None}):
        torch.save(wrong, tmp_path / 'run/state.pt')
        with pytest.raises(ValueError, match='state.pt: its configuration cannot be read'):
            run(small('training.steps=3'), dataset, tmp_path / 'run')
    for wrong in ({'step': 3}, [1, 2]):
        torch.save(wrong, tmp_path / 'run/state.pt')
        with pytest.raises(ValueError, match='state.pt: is no state of a run'):
            run(small('training.steps=3'), dataset, tmp_path / 'run')
    (tmp_path / 'run/state.pt').write_text('nothing of the kind')
    with pytest.raises(ValueError, match='state.pt: cannot be read'):
        run(small('training.steps=3'), dataset, tmp_path / 'run')


@pytest.mark.parametrize('part', ['policy', 'average', 'optimizer'])
def test_a_state_of_other_tensors_is_one_line(dataset, tmp_path, part):
    config, path = small('training.steps=6'), tmp_path / 'run/state.pt'
    run(config, dataset, tmp_path / 'run', lambda: True)
    state = weights(tmp_path / 'run')
    renamed = {f'old.{name}': value for name, value in state[part].items()}
    torch.save({**state, part: renamed}, path)
    with pytest.raises(ValueError) as error:
        run(config, dataset, tmp_path / 'run')
    message = str(error.value)
    assert message.startswith(f'{path}: its tensors are not those of') and '\n' not in message


@pytest.mark.slow
def test_it_evaluates_in_the_simulator_every_so_many_epochs(dataset, tmp_path):
    config = small('training.steps=0', 'training.epochs=0.1', 'training.segments=4',
                   'training.evaluate_every=0.1', 'training.evaluation_episodes=1',
                   'policy.dt_s=0.05')
    run(config, dataset, tmp_path / 'run')
    rows = read_metrics(tmp_path / 'run')
    evaluated = [step for step, row in rows.items() if 'success' in row]
    assert len(evaluated) == 1 and rows[evaluated[0]]['success'] == 0.0


def test_help_names_every_value_with_its_meaning(capsys):
    with pytest.raises(SystemExit):
        train.main(['--help'])
    text = capsys.readouterr().out
    for name, _, _, note in describe(Config):
        assert f'  {name}  (' in text
        assert note, name


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, 'cpu_count', lambda: 8)
    monkeypatch.delenv('LOCAL_WORLD_SIZE', raising=False)
    assert threads_of_a_process() == 8
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '3')
    assert threads_of_a_process() == 2


@pytest.mark.gpu
@pytest.mark.parametrize('network', ['unet', 'transformer'])
@pytest.mark.parametrize('images', ['memory', 'device'])
def test_it_learns_on_a_gpu_and_predicts_there(dataset, tmp_path, network, images):
    overrides = (*SMALL, 'training.steps=4', 'training.bf16=true', 'training.accumulation=2',
                 'training.clip_norm=1.0', f'policy.network={network}',
                 f'training.images={images}')
    command = [sys.executable, str(ROOT / 'training/train.py'),
               str(ROOT / 'config/training/drawer_open.yaml'), '-d', str(dataset),
               '-o', str(tmp_path / 'run'),
               *(word for override in overrides for word in ('--set', override))]
    for _ in range(2):  # the second time it reads the state; a process has one kind of device
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert read_checkpoint_config(tmp_path / 'run/checkpoint').provenance['device'] == 'cuda'
    policy = load_checkpoint(tmp_path / 'run/checkpoint', 'cuda')
    images = torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8, device='cuda')
    condition = policy.condition(policy.encode({'arm': images}),
                                 torch.zeros(1, 2, 4, device='cuda'))
    sample = policy.sample(condition, torch.zeros(1, *policy.noise_shape, device='cuda'))
    assert sample.device.type == 'cuda' and torch.isfinite(sample).all()
