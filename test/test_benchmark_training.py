"""The training benchmark counts what is learnt, and measures what it says."""

from dataclasses import replace
import json
from pathlib import Path
import sys
import time

from accelerate import Accelerator
import benchmark_training as benchmark
from demonstrations import write_demonstrations
import pytest
from settings import Config, read_config
import torch
import train

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'config/training/drawer_open.yaml'
SMALL = ('policy.observation.cameras='
         '[{name: arm, source_height: 64, source_width: 64, height: 32, width: 32}]',
         'policy.vision={base_width: 16, crop_height: 28, crop_width: 28, pooling: average}',
         'policy.unet={down_dims: [16, 32], diffusion_step_embed_dim: 16}', 'policy.dt_s=0.0125',
         'training.episodes=2', 'training.validation_episodes=1', 'training.segments=3',
         'training.segment_windows=4')
STEPS = 2


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


@pytest.fixture(autouse=True)
def short_warm_up(monkeypatch):
    monkeypatch.setattr(benchmark, 'WARM_UP', 1)


@pytest.fixture
def dataset(tmp_path):
    return write_demonstrations(tmp_path / 'demos.zarr')


def small(*overrides):
    return read_config(CONFIG, (*SMALL, *overrides))


def command(dataset, *arguments):
    overrides = [part for override in SMALL for part in ('--set', override)]
    benchmark.main([str(CONFIG), '-d', str(dataset), '--threads', '1', '--cpu',
                    '--steps', str(STEPS), *overrides, *arguments])


def step_alone(config, dataset):
    return benchmark.StepAlone(config, train.read_data(dataset, config)[0], Accelerator(cpu=True))


@pytest.mark.parametrize('images', ['memory', 'mapped', 'device'])
def test_rates_are_of_the_windows_in_the_batches(dataset, tmp_path, capsys, images):
    file = tmp_path / 'new/benchmark.json'
    command(dataset, '-o', str(file), '--set', f'training.images={images}',
            '--set', 'training.accumulation=2')
    found, printed = json.loads(file.read_text()), capsys.readouterr().out
    batches = step_alone(small('training.accumulation=2'), dataset).batches
    windows = [sum(len(batch.action) for batch in batches.of_step(step)) for step in range(6)]
    # Segments at an episode's ends are shorter, so that the counts tell the steps apart.
    assert len({sum(windows[first:first + 2]) for first in (0, 1, 3, 4)}) == 4
    assert found['loader']['samples'] == sum(windows[1:3])
    assert found['step']['samples'] == 2 * windows[0]
    assert found['both']['samples'] == sum(windows[4:6])
    for name in ('loader', 'step', 'both'):
        part = found[name]
        assert part['samples_per_s'] == pytest.approx(part['samples'] / part['seconds'])
        assert 0 < part['samples_per_s'] < float('inf')
        assert f'{name}: {part["samples_per_s"]:.1f} samples/s' in printed
    assert 0 <= found['both']['waiting'] <= 1
    assert found['config']['training']['images'] == images and found['data']['episodes'] == 2
    assert (found['device'], found['threads'], found['torch']) == ('cpu', 1, torch.__version__)


def test_a_slow_disk_is_waited_for_and_the_step_alone_does_without(dataset, monkeypatch):
    images, loads = benchmark.WindowData.images, []

    def slow(data, shown):
        loads.append(len(shown))
        time.sleep(0.15)
        return images(data, shown)

    monkeypatch.setattr(benchmark.WindowData, 'images', slow)
    data = train.read_data(dataset, small())[0]
    found = benchmark.measure(small(), data, Accelerator(cpu=True), STEPS)
    assert found['loader']['seconds'] > 0.15 * STEPS
    assert found['both']['waiting'] > 0.05
    assert len(loads) - 1 - 2 * (benchmark.WARM_UP + STEPS) in (0, 1)  # one ahead, none for step


def test_the_step_alone_is_the_trainers(dataset):
    alone, trainer = (kind(small(), train.read_data(dataset, small())[0], Accelerator(cpu=True))
                      for kind in (benchmark.StepAlone, train.Trainer))
    assert alone.advance() == trainer.advance()
    learnt = [alone.advance().item() for _ in range(6)]
    assert alone.waited_s == 0.0 and learnt[-1] < learnt[0]  # the same noise again and again
    assert alone.windows == sum(len(batch.action) for batch in trainer.batches.of_step(0))


def test_the_compared_network_is_the_same_for_every_configuration():
    configs = [benchmark.same_network(read_config(ROOT / f'config/training/{name}.yaml', ()))
               for name in ('cpu_unet', 'cpu_transformer', 'drawer_open')]
    for config in configs:
        policy, training = config.policy, config.training
        assert [(camera.name, camera.height) for camera in policy.observation.cameras] == [
            ('arm', 96)]
        assert (policy.network, policy.vision.base_width) == ('unet', 64)
        assert (policy.observation.state_dim, policy.action.dim) == (4, 4)
        assert (training.segments, training.segment_windows, training.noise_draws) == (64, 1, 1)
        assert not training.bf16
    assert len({(config.policy.vision, config.policy.unet, config.policy.noise)
                for config in configs}) == 1


def test_without_lerobot_it_says_so_before_it_measures(dataset, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'lerobot', None)
    with pytest.raises(SystemExit, match='benchmark_training: .*lerobot'):
        command(dataset, '--lerobot')
    assert not capsys.readouterr().out


def test_a_place_that_cannot_be_written_to_is_refused_before_it_measures(tmp_path, monkeypatch):
    monkeypatch.delattr(benchmark, 'run')
    with pytest.raises(SystemExit, match='^benchmark_training: /proc/x.json: .*can be written to'):
        command(tmp_path, '-o', '/proc/x.json')


@pytest.mark.parametrize('name', ['--threads', '--steps'])
def test_a_count_of_none_is_one_line(tmp_path, name):
    with pytest.raises(SystemExit, match=f'^benchmark_training: argument {name}: found 0, '
                       'expected at least 1$'):
        command(tmp_path, name, '0')


@pytest.fixture
def compared(tmp_path):
    """Return the compared network's settings, with small crops and batches, and its data."""
    pytest.importorskip(benchmark.LEROBOT, exc_type=ImportError)
    config = benchmark.same_network(small(
        'policy.observation.cameras='
        '[{name: arm, source_height: 64, source_width: 64, height: 96, width: 96}]'))
    vision = replace(config.policy.vision, crop_height=40, crop_width=40)
    config = Config(replace(config.policy, vision=vision), replace(config.training, segments=4))
    dataset = write_demonstrations(tmp_path / 'large.zarr', size=96)
    return config, train.read_data(dataset, config)[0]


def test_lerobots_step_has_the_same_network_and_windows(compared):
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    config, data = compared
    assert set(DiffusionConfig.__annotations__) <= set(benchmark.lerobot_values(config))
    ours = benchmark.StepAlone(config, data, Accelerator(cpu=True))
    theirs, amp = (benchmark.LeRobotStep(ours, bf16) for bf16 in (False, True))
    batch = benchmark.lerobot_batch(ours)
    assert batch['observation.images.arm'].shape == (4, 2, 3, 96, 96)
    assert batch['observation.state'].shape == (4, 2, 4) and batch['action'].shape == (4, 8, 4)
    assert 0 < batch['observation.images.arm'].max() <= 1
    seen = []
    for step in (theirs, amp):
        step.policy.diffusion.unet.register_forward_hook(
            lambda *_: seen.append(torch.is_autocast_enabled('cpu')))
    before = [parameter.clone() for parameter in theirs.policy.parameters()]
    theirs.advance()
    amp.advance()
    assert seen == [False, True]
    assert not any(map(torch.equal, before, theirs.policy.parameters()))


def test_lerobot_is_compared_with_both_of_ours(compared, monkeypatch):
    config, data = compared
    found = benchmark.compare(config, data, Accelerator(cpu=True), 1)
    assert all(len(figures['seconds']) == 1 for figures in found.values())
    for suffix in ('', '_bf16'):
        assert [found[name + suffix]['windows'] for name in ('ours', 'lerobot')] == [4, 4]
        assert 64 < found[f'segments{suffix}']['windows'] <= 128
    ours, theirs = found['ours'], found['lerobot']
    assert theirs['parameters'] == pytest.approx(ours['parameters'], rel=0.05)
    assert ours['ratio'] == pytest.approx(ours['samples_per_s'] / theirs['samples_per_s'])
    assert ours['samples_per_s'] == pytest.approx(4 / ours['seconds'][0])
    assert theirs['ratio'] == 1.0 and found['segments']['ratio'] > 0
    wide = replace(config.policy.unet, down_dims=(256, 512, 1024))
    values = benchmark.lerobot_values
    monkeypatch.setattr(benchmark, 'lerobot_values', lambda config: values(
        replace(config, policy=replace(config.policy, unet=wide))))
    with pytest.raises(ValueError, match='parameters'):
        benchmark.compare(config, data, Accelerator(cpu=True), 1)
