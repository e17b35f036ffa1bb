import numpy as np
import pytest
import torch

from diffusion_policy_ros.policy.normalizer import MIN_RANGE, Normalizer

ROWS = np.array([[0.0, 5.0, 1.0], [4.0, 5.0, -1.0], [1.0, 5.00005, 0.0]])


def test_training_set_spans_minus_one_to_one():
    found = Normalizer.fit({'state': ROWS}).normalize('state', torch.from_numpy(ROWS))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found[:, 0], [-1, 1, -0.5])
    np.testing.assert_allclose(found[:, 2], [1, -1, 0])


def test_dimension_that_hardly_moves_keeps_its_unit():
    normalizer = Normalizer.fit({'state': ROWS})
    found = normalizer.normalize('state', torch.tensor([[0.0, 5.3, 0.0]], dtype=torch.float64))
    assert found[0, 1].item() == pytest.approx(5.3 - 5.000025)


@pytest.mark.parametrize('span, expected', [(0.9 * MIN_RANGE, 0.9 * MIN_RANGE / 2),
                                            (1.1 * MIN_RANGE, 1.0)])
def test_the_range_that_decides(span, expected):
    rows = np.array([[0.0], [span]])
    found = Normalizer.fit({'action': rows}).normalize('action', torch.from_numpy(rows))
    assert found[1].item() == pytest.approx(expected)


def test_round_trip_with_any_leading_axes():
    normalizer = Normalizer.fit({'action': ROWS, 'state': 10 * ROWS})
    value = torch.randn(2, 5, 3, dtype=torch.float64)
    back = normalizer.unnormalize('action', normalizer.normalize('action', value))
    assert back.dtype == torch.float64
    torch.testing.assert_close(back[..., [0, 2]], value[..., [0, 2]], atol=1e-6, rtol=1e-6)


def test_an_error_in_what_hardly_moves_stays_in_what_was_demonstrated():
    normalizer = Normalizer.fit({'action': ROWS})
    wrong = torch.tensor([[0.0, -1.0, 0.0], [0.0, 0.4, 0.0], [0.0, 1.0, 0.0]])
    found = normalizer.unnormalize('action', wrong)[:, 1]
    np.testing.assert_allclose(found, [5.0, 5.000035, 5.00005], rtol=1e-12)


def test_fit_takes_bounds_over_all_leading_axes():
    normalizer = Normalizer.fit({'action': np.arange(24.0).reshape(2, 4, 3)})
    np.testing.assert_array_equal(normalizer.action_min, [0, 1, 2])
    np.testing.assert_array_equal(normalizer.action_max, [21, 22, 23])


def test_missing_name_raises():
    normalizer = Normalizer.fit({'action': ROWS})
    for way in (normalizer.normalize, normalizer.unnormalize):
        with pytest.raises(ValueError, match="no 'state', only action"):
            way('state', torch.zeros(1, 3))


def test_wrong_length_raises():
    with pytest.raises(ValueError, match='action has 1 numbers, expected 3'):
        Normalizer.fit({'action': ROWS}).normalize('action', torch.zeros(4, 1))


@pytest.mark.parametrize('rows', [np.zeros((0, 2)), np.array([[0.0, np.nan]]),
                                  np.array([[np.inf, 0.0]])])
def test_fit_refuses_what_has_no_bounds(rows):
    with pytest.raises(ValueError, match='state is empty or not finite'):
        Normalizer.fit({'state': rows})


def test_bounds_travel_in_the_state_dict():
    fitted, other = Normalizer.fit({'state': ROWS}), Normalizer({'state': 3})
    assert torch.isnan(other.normalize('state', torch.zeros(3))).all()
    other.load_state_dict(fitted.state_dict())
    torch.testing.assert_close(other.normalize('state', torch.ones(3)),
                               fitted.normalize('state', torch.ones(3)))
