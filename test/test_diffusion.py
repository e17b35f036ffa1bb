from diffusers import DDPMScheduler
import numpy as np
import pytest
import torch

from diffusion_policy_ros.policy.diffusion import (
    add_noise,
    clean_from_epsilon,
    epsilon_from_clean,
    posterior_mean,
    posterior_variance,
    squaredcos_cap_v2,
)


@pytest.mark.parametrize('levels', [10, 100, 1000])
def test_schedule_is_diffusers(levels):
    theirs = DDPMScheduler(levels, beta_schedule='squaredcos_cap_v2').alphas_cumprod
    np.testing.assert_allclose(squaredcos_cap_v2(levels), theirs.numpy(), atol=1e-6)


def test_schedule_falls_from_almost_clean_to_almost_noise():
    alpha_bars = squaredcos_cap_v2(100)
    assert alpha_bars.dtype == np.float64
    assert np.all(np.diff(alpha_bars) < 0)
    assert alpha_bars[0] > 0.999
    assert 0 < alpha_bars[-1] < 1e-5


def test_no_step_removes_more_than_max_beta():
    alpha_bars = squaredcos_cap_v2(100, max_beta=0.2)
    betas = 1 - alpha_bars / np.concatenate([[1.0], alpha_bars[:-1]])
    assert betas.max() == pytest.approx(0.2)
    assert np.sum(np.isclose(betas, 0.2)) > 1


def test_the_clean_sample_and_the_noise_follow_from_each_other():
    clean, epsilon = torch.randn(2, 5, dtype=torch.float64)
    noisy = add_noise(clean, epsilon, 0.3)
    torch.testing.assert_close(noisy, 0.3 ** 0.5 * clean + 0.7 ** 0.5 * epsilon)
    torch.testing.assert_close(clean_from_epsilon(noisy, epsilon, 0.3), clean)
    torch.testing.assert_close(epsilon_from_clean(noisy, clean, 0.3), epsilon)


def test_posterior_is_that_of_two_jointly_gaussian_levels():
    """Given x0: x_next = sqrt(b) x0 + n1, x = sqrt(a/b) x_next + n2; condition by the textbook."""
    alpha_bar, alpha_bar_next, clean, noisy = 0.4, 0.7, 0.3, -0.9
    forward = (alpha_bar / alpha_bar_next) ** 0.5
    variance_next = 1 - alpha_bar_next
    variance = forward ** 2 * variance_next + (1 - forward ** 2)
    gain = forward * variance_next / variance
    mean = alpha_bar_next ** 0.5 * clean + gain * (noisy - alpha_bar ** 0.5 * clean)
    assert posterior_mean(torch.tensor(noisy), torch.tensor(clean), alpha_bar,
                          alpha_bar_next).item() == pytest.approx(mean, abs=1e-6)
    assert posterior_variance(alpha_bar, alpha_bar_next) == pytest.approx(
        variance_next - gain * forward * variance_next)


def test_posterior_at_the_last_step_is_the_clean_sample():
    clean = torch.tensor([0.25, -0.5])
    torch.testing.assert_close(posterior_mean(torch.tensor([3.0, 4.0]), clean, 0.99, 1.0), clean)
    assert posterior_variance(0.99, 1.0) == 0
