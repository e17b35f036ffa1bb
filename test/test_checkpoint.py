from dataclasses import replace
import subprocess
import sys

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
import torch
import yaml

from diffusion_policy_ros.policy import checkpoint
from diffusion_policy_ros.policy.checkpoint import load_checkpoint, save_checkpoint
from diffusion_policy_ros.policy.checkpoint_config import (
    checkpoint_hash,
    FORMAT_VERSION,
    read_checkpoint_config,
    read_config,
)
from diffusion_policy_ros.policy.config import (
    CameraSpec,
    ObservationSpec,
    PolicyConfig,
    UnetConfig,
    VisionConfig,
)
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.normalizer import Normalizer

CONFIG = PolicyConfig(
    ObservationSpec((CameraSpec('arm', 64, 64, 40, 40),)), dt_s=0.0125, task='reach-v3',
    vision=VisionConfig(base_width=16, crop_height=36, crop_width=36),
    unet=UnetConfig(down_dims=(8, 16), diffusion_step_embed_dim=16))
EXTRA = {'steps': 3, 'data': {'episodes': 2}, 'versions': ['torch']}


def make_policy(config=CONFIG, seed=0):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    arrays = {'action': rng.normal(size=(9, 4))}
    if config.observation.state:
        arrays['state'] = rng.normal(size=(9, config.observation.state_dim)) / 3
    return DiffusionPolicy(config, Normalizer.fit(arrays))


@pytest.fixture
def folder(tmp_path):
    save_checkpoint(tmp_path / 'run' / 'policy', make_policy(), EXTRA)
    return tmp_path / 'run' / 'policy'


def edit_config(folder, edit):
    path = folder / 'config.yaml'
    values = yaml.safe_load(path.read_text())
    edit(values)
    path.write_text(yaml.safe_dump(values))


def edit_tensors(folder, edit):
    path = folder / 'model.safetensors'
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def refused(folder, *words):
    with pytest.raises(ValueError) as error:
        load_checkpoint(folder)
    assert '\n' not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_round_trip(folder):
    policy, loaded = make_policy(), load_checkpoint(folder)
    assert loaded.config == CONFIG
    assert not loaded.training
    expected = policy.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, value in loaded.state_dict().items():
        assert value.dtype == expected[name].dtype, name
        if name.startswith('normalizer.'):
            assert torch.equal(value, expected[name]), name
        else:
            assert torch.equal(value, expected[name].half().float()), name


def test_weights_are_halves_and_the_normaliser_is_not(folder):
    kinds = {name: value.dtype for name, value in load_file(folder / 'model.safetensors').items()}
    assert {kind for name, kind in kinds.items() if name.startswith('normalizer')} == {
        torch.float64}
    assert {kind for name, kind in kinds.items() if not name.startswith('normalizer')} == {
        torch.float16}


def test_full_precision_on_request(tmp_path):
    policy = make_policy()
    save_checkpoint(tmp_path, policy, {}, dtype=torch.float32)
    for name, value in load_checkpoint(tmp_path).state_dict().items():
        assert torch.equal(value, policy.state_dict()[name]), name


def test_images_only(tmp_path):
    config = replace(CONFIG, observation=ObservationSpec(CONFIG.observation.cameras, ()))
    save_checkpoint(tmp_path, make_policy(config), {})
    assert load_checkpoint(tmp_path).config == config


def test_config_and_provenance(folder):
    found = read_checkpoint_config(folder)
    assert found.format_version == FORMAT_VERSION
    assert found.policy == read_config(folder) == CONFIG
    assert found.provenance == EXTRA
    assert sorted(path.name for path in folder.iterdir()) == ['config.yaml', 'model.safetensors']


def test_config_and_hash_need_no_torch(folder):
    code = ('import sys; sys.modules["torch"] = None\n'
            'from diffusion_policy_ros.policy.checkpoint_config import *\n'
            f'print(read_config({str(folder)!r}).task, checkpoint_hash({str(folder)!r}))')
    found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                           check=True)
    assert found.stdout.split() == ['reach-v3', checkpoint_hash(folder)]


def test_hash_is_of_both_files(folder, tmp_path):
    first = checkpoint_hash(folder)
    save_checkpoint(tmp_path / 'same', make_policy(), EXTRA)
    assert checkpoint_hash(tmp_path / 'same') == first
    edit_config(folder, lambda values: values['provenance'].update(steps=4))
    second = checkpoint_hash(folder)
    edit_tensors(folder, lambda tensors: tensors['network.out.bias'].add_(1))
    assert len({first, second, checkpoint_hash(folder)}) == 3
    (folder / 'model.safetensors').unlink()
    with pytest.raises(ValueError, match='model.safetensors: No such file'):
        checkpoint_hash(folder)


def test_missing_folder(tmp_path):
    refused(tmp_path / 'nowhere', 'nowhere', 'no such folder')


@pytest.mark.parametrize('name', ['config.yaml', 'model.safetensors'])
def test_missing_file(folder, name):
    (folder / name).unlink()
    refused(folder, name, 'no such file')


def test_missing_tensor(folder):
    edit_tensors(folder, lambda tensors: tensors.pop('network.out.bias'))
    refused(folder, 'model.safetensors', 'network.out.bias is missing', '0 more')


def test_unexpected_tensor(folder):
    edit_tensors(folder, lambda tensors: tensors.update(extra=torch.zeros(1)))
    refused(folder, 'model.safetensors', 'extra is unexpected')


def test_wrong_shape(folder):
    edit_tensors(folder, lambda tensors: tensors.update({'network.out.bias': torch.zeros(7)}))
    refused(folder, 'network.out.bias has shape (7,)', 'expected (4,)')


@pytest.mark.parametrize('value', [torch.nan, torch.inf])
@pytest.mark.parametrize('name', ['network.out.bias', 'normalizer.action_min'])
def test_not_finite(folder, name, value):
    edit_tensors(folder, lambda tensors: tensors[name][:1].fill_(value))
    refused(folder, f'{name} holds numbers that are not finite')


def test_truncated_weights(folder):
    path = folder / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:-10])
    refused(folder, 'model.safetensors')


@pytest.mark.parametrize('edit, words', [
    (lambda values: values['policy'].update(horizn=8), ('config.yaml', 'horizn')),
    (lambda values: values.update(notes=1), ('config.yaml', 'notes')),
    (lambda values: values['policy'].pop('observation'), ('config.yaml', 'observation')),
    (lambda values: values['policy'].update(horizon='eight'), ('config.yaml', 'horizon')),
    (lambda values: values['policy'].update(horizon=7), ('config.yaml', 'horizon is 7')),
    (lambda values: values.pop('format_version'), ('format_version is None', 'at most 1')),
    (lambda values: values.update(format_version=2, shiny=1),
     ('format_version is 2', 'at most 1')),
    (lambda values: values.update(format_version='1'), ("format_version is '1'",)),
])
def test_bad_config(folder, edit, words):
    edit_config(folder, edit)
    refused(folder, *words)
    with pytest.raises(ValueError):
        read_config(folder)


def test_config_that_is_no_yaml(folder):
    (folder / 'config.yaml').write_text('policy: [')
    refused(folder, 'config.yaml')


@pytest.mark.parametrize('value', [torch.nan, 1e6])
def test_weights_that_halves_cannot_hold_leave_the_last_checkpoint(folder, value):
    before = checkpoint_hash(folder)
    policy = make_policy(seed=1)
    policy.network.out.bias.data[0] = value
    with pytest.raises(ValueError, match='network.out.bias is not finite as torch.float16'):
        save_checkpoint(folder, policy, EXTRA)
    assert checkpoint_hash(folder) == before


@pytest.mark.parametrize('name', ['model.safetensors', 'config.yaml'])
def test_a_disk_that_fills_up_leaves_the_last_checkpoint(folder, name, monkeypatch):
    before = checkpoint_hash(folder)
    fsync, calls = checkpoint.os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == ['model.safetensors', 'config.yaml'].index(name) + 1:
            raise OSError(28, 'No space left on device')
        fsync(descriptor)

    monkeypatch.setattr(checkpoint.os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        save_checkpoint(folder, make_policy(seed=1), EXTRA)
    assert checkpoint_hash(folder) == before
    assert sorted(path.name for path in folder.iterdir()) == ['config.yaml', 'model.safetensors']


def test_a_kill_while_writing_leaves_the_last_checkpoint_and_the_next_save_works(folder):
    before = checkpoint_hash(folder)
    (folder / '.model.safetensors.new').write_bytes(b'half of')
    (folder / '.config.yaml.new').write_text('form')
    assert checkpoint_hash(folder) == before
    load_checkpoint(folder)
    save_checkpoint(folder, make_policy(seed=1), EXTRA)
    assert checkpoint_hash(folder) != before
    assert sorted(path.name for path in folder.iterdir()) == ['config.yaml', 'model.safetensors']


def test_new_checkpoint_replaces_the_old(folder):
    policy = make_policy(seed=1)
    save_checkpoint(folder, policy, {'steps': 9})
    torch.testing.assert_close(load_checkpoint(folder).network.out.weight.data,
                               policy.network.out.weight.data.half().float())
    assert read_checkpoint_config(folder).provenance == {'steps': 9}
