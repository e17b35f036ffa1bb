from hypothesis import given
from hypothesis import strategies as st
import pytest
from scipy.stats import binomtest

from diffusion_policy_ros.statistics import wilson_interval


@pytest.mark.parametrize('n_success, n_episodes', [(10, 10), (0, 10), (46, 50), (98, 100), (1, 2)])
def test_agrees_with_scipy(n_success, n_episodes):
    expected = binomtest(n_success, n_episodes).proportion_ci(method='wilson')
    assert wilson_interval(n_success, n_episodes) == pytest.approx(tuple(expected), abs=1e-9)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_holds_the_rate_and_mirrors_failures(counts):
    n_success, n_episodes = counts
    low, high = wilson_interval(n_success, n_episodes)
    rate = n_success / n_episodes
    assert 0.0 <= low <= rate + 1e-12
    assert rate - 1e-12 <= high <= 1.0
    mirrored = wilson_interval(n_episodes - n_success, n_episodes)
    assert mirrored == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize('n_success, n_episodes', [(0, 0), (3, 2), (-1, 5)])
def test_refuses_impossible_counts(n_success, n_episodes):
    with pytest.raises(ValueError, match=f'{n_success} successes in {n_episodes}'):
        wilson_interval(n_success, n_episodes)
