"""Training: it learns, it resumes to the bit, and it refuses what does not fit."""

import json
from pathlib import Path

from demonstrations import write_demonstrations
import pytest
import torch
import train

from diffusion_policy_ros.policy.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[1]
SMALL = ('policy.observation.cameras='
         '[{name: arm, source_height: 64, source_width: 64, height: 32, width: 32}]',
         'policy.vision={base_width: 16, crop_height: 28, crop_width: 28, pooling: average}',
         'policy.unet={down_dims: [16, 32], diffusion_step_embed_dim: 16}', 'policy.dt_s=0.0125',
         'training.episodes=2', 'training.validation_episodes=1', 'training.segments=2',
         'training.segment_windows=4', 'training.warmup_steps=2', 'training.save_every=3')


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def dataset(tmp_path):
    return write_demonstrations(tmp_path / 'demos.zarr')


def small(*overrides):
    return train.read_config(ROOT / 'config/training/drawer_open.yaml', (*SMALL, *overrides))


def weights(folder):
    return torch.load(folder / 'state.pt', weights_only=True)


def test_loss_falls_and_the_checkpoint_predicts(dataset, tmp_path):
    config = small('training.steps=100', 'training.learning_rate=3e-3', 'training.segments=8',
                   'training.noise_draws=2', 'training.save_every=25')
    train.train(config, dataset, tmp_path / 'run')
    rows = [json.loads(line) for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()]
    assert [row['step'] for row in rows] == [25, 50, 75, 100]
    for loss in ('loss', 'validation_loss'):
        assert rows[-1][loss] < 0.85 * rows[0][loss]
    policy = load_checkpoint(tmp_path / 'run/checkpoint')
    assert policy.config.task == 'drawer-open-v3'
    assert (tmp_path / 'run/loss.png').stat().st_size > 1000


@pytest.mark.parametrize('overrides', [
    (), ('policy.network=transformer',
         'policy.transformer={n_layers: 1, n_heads: 2, embed_dim: 16}')])
def test_resumed_training_is_the_uninterrupted_one_to_the_bit(dataset, tmp_path, monkeypatch,
                                                              overrides):
    config = small('training.steps=7', *overrides)
    train.train(config, dataset, tmp_path / 'whole')

    advance = train.Trainer.advance

    def interrupted(trainer):
        if trainer.step == 5:
            raise KeyboardInterrupt
        return advance(trainer)

    monkeypatch.setattr(train.Trainer, 'advance', interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.train(config, dataset, tmp_path / 'cut')
    assert weights(tmp_path / 'cut')['step'] == 3
    monkeypatch.setattr(train.Trainer, 'advance', advance)
    train.train(config, dataset, tmp_path / 'cut')

    whole, cut = weights(tmp_path / 'whole'), weights(tmp_path / 'cut')
    for part in ('policy', 'average'):
        for name, tensor in whole[part].items():
            torch.testing.assert_close(cut[part][name], tensor, rtol=0, atol=0, msg=name)


def test_refuses_to_go_on_with_another_configuration(dataset, tmp_path):
    train.train(small('training.steps=3'), dataset, tmp_path / 'run')
    before = (tmp_path / 'run/state.pt').read_bytes()
    with pytest.raises(ValueError, match='saved with another configuration'):
        train.train(small('training.steps=4'), dataset, tmp_path / 'run')
    assert (tmp_path / 'run/state.pt').read_bytes() == before


@pytest.mark.parametrize('override, words', [
    ('training.step=3', ('drawer_open.yaml', 'step')),
    ('training.steps=many', ('steps', 'many')),
    ('policy.horizon=6', ('horizon is 6', 'multiple of 4')),
    ('training.steps', ('--set training.steps', 'key=value')),
])
def test_refuses_bad_overrides_by_name(override, words):
    with pytest.raises(ValueError) as error:
        train.read_config(ROOT / 'config/training/drawer_open.yaml', (override,))
    for word in words:
        assert word in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('overrides, words', [
    (('training.episodes=9',), ('10 episodes', 'has 3')),
    (('policy.renderer=shadows',), ("'plain'", "'shadows'")),
])
def test_main_ends_with_one_line(dataset, tmp_path, overrides, words):
    arguments = [value for override in (*SMALL, 'training.steps=1', *overrides)
                 for value in ('--set', override)]
    with pytest.raises(SystemExit) as end:
        train.main([str(ROOT / 'config/training/drawer_open.yaml'), '-d', str(dataset),
                    '-o', str(tmp_path / 'run'), '--threads', '1', *arguments])
    message = str(end.value)
    assert message.startswith('train: ')
    assert '\n' not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize('name', sorted(
    path.name for path in (ROOT / 'config/training').glob('*.yaml')
    if not path.stem.endswith('_variants')))
def test_every_configuration_loads(name):
    train.read_config(ROOT / 'config/training' / name, ())


@pytest.mark.parametrize('network', ['unet', 'transformer'])
def test_every_weight_is_in_one_group_and_only_a_transformers_matrices_decay(dataset, network):
    config = small(f'policy.network={network}', 'training.weight_decay=0.5',
                   'policy.transformer={n_layers: 1, n_heads: 2, embed_dim: 16}')
    trainer = train.Trainer(config, *train.read_data(dataset, config)[:2])
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


def test_learning_rate_warms_up_and_falls_to_zero(dataset):
    config = small('training.steps=10', 'training.learning_rate=1.0')
    trainer = train.Trainer(config, *train.read_data(dataset, config)[:2])
    rates = []
    for trainer.step in range(11):
        rates.append(trainer.learning_rate)
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5)
    assert rates[10] == pytest.approx(0.0)
