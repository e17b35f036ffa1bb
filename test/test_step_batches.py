from demonstrations import write_demonstrations
from hypothesis import given, settings, strategies as st
import numpy as np
import pytest
import torch

from diffusion_policy_ros.data.replay_buffer import load_replay_buffer
from diffusion_policy_ros.data.step_batches import StepBatches
from diffusion_policy_ros.data.window_data import WindowData
from diffusion_policy_ros.data.windows import ShuffledPasses
from diffusion_policy_ros.policy.config import (
    CameraSpec,
    ObservationSpec,
    PolicyConfig,
    VisionConfig,
)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    path = write_demonstrations(tmp_path_factory.mktemp('data') / 'demos.zarr')
    config = PolicyConfig(ObservationSpec((CameraSpec('arm', 64, 64, 32, 32),)), dt_s=0.0125,
                          vision=VisionConfig(16, 28, 28, 'average'), renderer='plain')
    return WindowData(load_replay_buffer(path, ('arm',)), config)


@given(n=st.integers(1, 9), first=st.integers(0, 30), count=st.integers(1, 20))
def test_a_stretch_of_the_passes_is_the_same_however_it_is_asked_for(n, first, count):
    passes = ShuffledPasses(np.arange(n), seed=5)
    whole = np.concatenate([passes.take(i, 1) for i in range(first + count)])
    np.testing.assert_array_equal(passes.take(first, count), whole[first:])
    for start in range(0, len(whole) - n + 1, n):
        assert sorted(whole[start:start + n]) == list(range(n))


def test_passes_differ_from_each_other_and_with_the_seed():
    orders = [ShuffledPasses(np.arange(50), seed).take(number * 50, 50).tolist()
              for seed in (0, 1) for number in (0, 1)]
    assert len(set(map(tuple, orders))) == 4


@settings(deadline=None, max_examples=20)
@given(processes=st.integers(1, 3), accumulation=st.integers(1, 3), step=st.integers(0, 50),
       segment_windows=st.sampled_from([1, 4]), draws=st.sampled_from([1, 2]))
def test_processes_and_accumulated_batches_share_one_large_batch(
        data, processes, accumulation, step, segment_windows, draws):
    parts = processes * accumulation
    whole, = StepBatches(data, 2 * parts, segment_windows, draws, seed=3).of_step(step)
    shares = [StepBatches(data, 2, segment_windows, draws, 3, accumulation, process,
                          processes).of_step(step) for process in range(processes)]
    ordered = [shares[process][i] for i in range(accumulation) for process in range(processes)]
    for name in ('action', 'state'):
        assert torch.equal(torch.cat([getattr(part, name) for part in ordered]),
                           getattr(whole, name))
    assert torch.equal(torch.cat([part.noise for part in ordered], dim=-3), whole.noise)
    assert torch.equal(torch.cat([part.timestep for part in ordered], dim=-1), whole.timestep)
    assert torch.equal(torch.cat([part.shown[part.frames] for part in ordered]),
                       whole.shown[whole.frames])
    assert torch.equal(torch.cat([part.crop[part.frames] for part in ordered]),
                       whole.crop[whole.frames])
    assert sum(part.share for part in ordered) == pytest.approx(processes)
    for part in ordered:
        assert part.share == pytest.approx(processes * len(part.action) / len(whole.action))


def test_a_batch_holds_what_its_windows_observe_and_do(data):
    batch, = StepBatches(data, 3, 4, 1, seed=0).of_step(7)
    windows = batch.shown[batch.frames[:, -1]].numpy()  # at this dt a window's row is its frame's
    np.testing.assert_array_equal(batch.shown[batch.frames].numpy(),
                                  data.windows.observed[windows])
    np.testing.assert_array_equal(batch.action.numpy(), data.action[windows])
    np.testing.assert_array_equal(batch.state.numpy(), data.state[windows])
    assert data.windows.trained[windows].all()
    assert len(batch.shown) == len(set(batch.shown.tolist())) < batch.frames.numel()


def test_steps_differ_and_come_again(data):
    batches = StepBatches(data, 2, 4, 1, seed=0)
    (one,), (other,), (again,) = (batches.of_step(step) for step in (4, 5, 4))
    assert torch.equal(one.noise, again.noise) and torch.equal(one.crop, again.crop)
    assert not torch.equal(one.noise[:4], other.noise[:4])
