from functools import partial

from diffusers import DDIMScheduler, DDPMScheduler
import numpy as np
import pytest
import torch

from diffusion_policy_ros.policy.diffusion import add_noise, squaredcos_cap_v2
from diffusion_policy_ros.policy.levels import leading_levels, LEVELS, trailing_levels
from diffusion_policy_ros.policy.samplers import ddim, ddpm

K = 100
ALPHA_BARS = squaredcos_cap_v2(K)
SETTINGS = {'num_train_timesteps': K, 'beta_schedule': 'squaredcos_cap_v2',
            'prediction_type': 'sample'}


def gaussian(mean, deviation):
    """Return the expected clean sample of data from N(mean, deviation^2)."""
    def clean(x, level):
        alpha_bar = ALPHA_BARS[level].item()
        gain = alpha_bar ** 0.5 * deviation ** 2 / (alpha_bar * deviation ** 2 + 1 - alpha_bar)
        return mean + gain * (x - alpha_bar ** 0.5 * mean)
    return clean


def predict(x, level):
    """Return an estimate that is curved, mixes dimensions, and often is outside of [-1, 1]."""
    curved = torch.sin(3 * x) + 0.5 * x.roll(1, dims=-1)
    return gaussian(0.8, 0.6)(x, level) - 0.3 * (1 - ALPHA_BARS[level].item()) ** 0.5 * curved


# By trailing steps that don't divide K, diffusers goes to other levels than those it lists.
SPACED_STEPS = [('leading', 1), ('leading', 8), ('leading', 16), ('leading', 100),
                ('trailing', 1), ('trailing', 10), ('trailing', 100)]


@pytest.mark.parametrize('clip_sample', [True, False])
@pytest.mark.parametrize(('spacing', 'steps'), SPACED_STEPS)
def test_ddpm_is_diffusers(steps, clip_sample, spacing, monkeypatch):
    noise = torch.randn(steps, 2, 8, 4, generator=torch.Generator().manual_seed(0))
    scheduler = DDPMScheduler(**SETTINGS, variance_type='fixed_small', clip_sample=clip_sample,
                              timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    levels = LEVELS[spacing](K, steps)
    assert levels == scheduler.timesteps.tolist()
    draws = iter([*noise[1:], torch.zeros(())])
    monkeypatch.setattr('diffusers.schedulers.scheduling_ddpm.randn_tensor',
                        lambda *args, **kwargs: next(draws))
    x = noise[0]
    for level in scheduler.timesteps:
        x = scheduler.step(predict(x, level.item()), level, x).prev_sample
    ours = ddpm(predict, noise, ALPHA_BARS, levels, clip_sample=clip_sample)
    torch.testing.assert_close(ours, x, atol=1e-5, rtol=1e-5)
    assert len([*draws]) == (levels[-1] == 0)  # above level 0 it draws once too often


@pytest.mark.parametrize('clip_sample', [True, False])
@pytest.mark.parametrize(('spacing', 'steps'), SPACED_STEPS)
def test_ddim_is_diffusers(steps, clip_sample, spacing):
    noise = torch.randn(1, 2, 8, 4, generator=torch.Generator().manual_seed(1))
    scheduler = DDIMScheduler(**SETTINGS, clip_sample=clip_sample, set_alpha_to_one=True,
                              timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    levels = LEVELS[spacing](K, steps)
    assert levels == scheduler.timesteps.tolist()
    x = noise[0]
    for level in scheduler.timesteps:
        x = scheduler.step(predict(x, level.item()), level, x).prev_sample
    torch.testing.assert_close(ddim(predict, noise, ALPHA_BARS, levels, clip_sample=clip_sample),
                               x, atol=1e-5, rtol=1e-5)


def test_levels():
    assert leading_levels(100, 4) == [75, 50, 25, 0]
    assert leading_levels(100, 16)[:2] == [90, 84]
    assert leading_levels(3, 3) == trailing_levels(3, 3) == [2, 1, 0]
    assert trailing_levels(100, 4) == [99, 74, 49, 24]
    assert trailing_levels(100, 1) == [99]


@pytest.mark.parametrize('steps', [1, 34, 51, 60])
def test_trailing_steps_keep_the_shares_of_two_kinds_of_data(steps):
    """Where 9 of 10 data are 0.8 and the others -0.8, so are 9 of 10 samples of many steps."""
    noise = torch.randn(steps, 20_000, generator=torch.Generator().manual_seed(3),
                        dtype=torch.float64)

    def expected(x, level):
        signal, rest = ALPHA_BARS[level] ** 0.5, 1 - ALPHA_BARS[level]
        return 0.8 * torch.tanh(signal * 0.8 * x / rest + 0.5 * np.log(9))

    found = ddpm(expected, noise, ALPHA_BARS, trailing_levels(K, steps))
    if steps == 1:  # nothing but their mean
        torch.testing.assert_close(found.mean().item(), 0.64, atol=0.03, rtol=0)
    else:
        assert (found > 0).double().mean().item() == pytest.approx(0.9, abs=0.02)


def test_ddim_of_gaussian_data_follows_the_closed_form():
    """
    Recompute DDIM as a chain of gains.

    With the expected clean sample every step maps the deviation from the level's mean by a factor.
    """
    mean, deviation, levels = 0.3, 0.2, [90, 55, 12, 3]
    start = 1.7
    z = start - ALPHA_BARS[levels[0]] ** 0.5 * mean
    for a, b in zip(ALPHA_BARS[levels], [*ALPHA_BARS[levels[1:]], 1.0], strict=True):
        variance = a * deviation ** 2 + 1 - a
        z *= ((a * b) ** 0.5 * deviation ** 2 + ((1 - a) * (1 - b)) ** 0.5) / variance
    found = ddim(gaussian(mean, deviation), torch.tensor([[start]], dtype=torch.float64),
                 ALPHA_BARS, levels, clip_sample=False)
    assert found.item() == pytest.approx(z + mean, abs=1e-12)


def test_ddim_in_many_steps_maps_noise_to_gaussian_data():
    """Follow the probability flow, which takes a standard normal z to mean + deviation z."""
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)[None]
    found = ddim(gaussian(0.3, 0.2), noise, ALPHA_BARS, leading_levels(K, K), clip_sample=False)
    torch.testing.assert_close(found, 0.3 + 0.2 * noise[0], atol=0.02, rtol=0)


def test_ddpm_of_gaussian_data_has_its_mean_and_deviation():
    """Recompute mean and variance level by level; then ask the sampler for both."""
    mean, deviation = 0.3, 0.2
    expected_mean, expected_variance = 0.0, 1.0
    for a, b in zip(ALPHA_BARS[::-1], [*ALPHA_BARS[-2::-1], 1.0], strict=True):
        variance = a * deviation ** 2 + 1 - a
        weight = b ** 0.5 * (1 - a / b) / (1 - a)          # of the estimate of the clean sample
        gain = weight * a ** 0.5 * deviation ** 2 / variance + (a / b) ** 0.5 * (1 - b) / (1 - a)
        offset = weight * (1 - a) / variance * mean
        expected_mean = gain * expected_mean + offset
        expected_variance = gain ** 2 * expected_variance + (1 - b) / (1 - a) * (1 - a / b)
    noise = torch.randn(K, 20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = ddpm(gaussian(mean, deviation), noise, ALPHA_BARS, leading_levels(K, K),
                 clip_sample=False)
    assert expected_mean == pytest.approx(mean, abs=0.01)
    assert found.mean().item() == pytest.approx(expected_mean, abs=0.006)
    assert found.std().item() == pytest.approx(expected_variance ** 0.5, rel=0.03)


@pytest.mark.parametrize('sampler', [ddpm, ddim])
def test_any_list_of_levels_returns_the_only_possible_sample(sampler):
    """Step between listed levels: where the data is one point, every route ends in it."""
    point = torch.linspace(-0.9, 0.9, 6, dtype=torch.float64)
    for levels in ([99, 98, 40, 39, 7], [60, 20], [30]):
        noise = torch.randn(len(levels), 6, dtype=torch.float64)
        found = sampler(lambda x, level: point, noise, ALPHA_BARS, levels)
        torch.testing.assert_close(found, point)


def test_ddim_stays_on_the_noised_point_at_every_level():
    """Pin which level each step goes to: each time the point is noised to just that level."""
    point, start, seen = torch.tensor([0.4, -0.2]), torch.randn(2), []

    def expected(x, level):
        torch.testing.assert_close(x, add_noise(point, start, float(ALPHA_BARS[level])),
                                   atol=1e-5, rtol=1e-4)
        seen.append(level)
        return point

    levels = [80, 33, 32, 5]
    first = add_noise(point, start, float(ALPHA_BARS[80]))
    torch.testing.assert_close(ddim(expected, first[None], ALPHA_BARS, levels), point,
                               atol=1e-5, rtol=1e-4)
    assert seen == levels


@pytest.mark.parametrize('sampler', [ddpm, ddim])
def test_clipping_bounds_the_sample(sampler):
    noise = torch.randn(K, 50, generator=torch.Generator().manual_seed(2))
    run = partial(sampler, gaussian(3.0, 0.1), noise, ALPHA_BARS, leading_levels(K, K))
    clipped, free = run(clip_sample=True), run(clip_sample=False)
    assert clipped.abs().max() <= 1
    assert np.allclose(free.mean(), 3.0, atol=0.1)
