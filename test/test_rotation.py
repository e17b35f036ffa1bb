"""Quaternions (x, y, z, w), against scipy-free definitions: matrices and angles."""

import math

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from diffusion_policy_ros.control import rotation
from diffusion_policy_ros.policy.actions import matrix

number = st.floats(-1.0, 1.0)
vector = st.tuples(number, number, number).map(lambda v: np.array(v) * 3.0)
unit = vector.map(rotation.exp)
HALF = math.sqrt(0.5)


def same_rotation(a, b):
    np.testing.assert_allclose(np.abs(np.sum(a * b, axis=-1)), 1.0, atol=1e-12)


@pytest.mark.parametrize('turned, quaternion', [
    ([0, 0, math.pi / 2], [0, 0, HALF, HALF]),
    ([math.pi, 0, 0], [1, 0, 0, 0]),
    ([0, 0, 0], [0, 0, 0, 1]),
])
def test_exp_and_log_of_known_turns(turned, quaternion):
    np.testing.assert_allclose(rotation.exp(np.array(turned, float)), quaternion, atol=1e-15)
    np.testing.assert_allclose(rotation.log(np.array(quaternion, float)), turned, atol=1e-15)


@settings(max_examples=50, deadline=None)
@given(vector)
def test_log_undoes_exp(turned):
    length = np.linalg.norm(turned)
    if length > math.pi:
        turned = turned * (1 - 2 * math.pi / length)
    np.testing.assert_allclose(rotation.log(rotation.exp(turned)), turned, atol=1e-7)


@pytest.mark.parametrize('angle', [1e-12, 1e-9, 1e-6, 1e-3])
def test_small_turns_keep_their_digits(angle):
    turned = np.array([angle, -2 * angle, 0.0])
    np.testing.assert_allclose(rotation.log(rotation.exp(turned)), turned, rtol=1e-9)


@settings(max_examples=50, deadline=None)
@given(unit, unit)
def test_multiply_is_the_product_of_matrices(a, b):
    np.testing.assert_allclose(
        matrix(rotation.multiply(a, b)), matrix(a) @ matrix(b), atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(unit, unit)
def test_the_difference_turns_the_start_into_the_end(end, start):
    turned = rotation.difference(end, start)
    assert np.linalg.norm(turned) <= math.pi + 1e-12
    same_rotation(rotation.multiply(rotation.exp(turned), start), end)


@settings(max_examples=50, deadline=None)
@given(unit, unit, st.floats(0.0, 1.0))
def test_slerp_goes_the_shorter_way_at_an_even_rate(start, end, fraction):
    middle = rotation.slerp(start, end, fraction)
    assert np.linalg.norm(middle) == pytest.approx(1.0)
    whole = np.linalg.norm(rotation.difference(end, start))
    part = np.linalg.norm(rotation.difference(middle, start))
    assert part == pytest.approx(fraction * whole, abs=1e-7)
    if whole < 3.1:
        same_rotation(rotation.slerp(start, -end, fraction), middle)


def test_slerp_gives_its_ends_to_the_bit():
    start, end = np.array([0, 0, 0, 1.0]), np.array([HALF, 0, 0, HALF])
    assert rotation.slerp(start, end, 0.0) is start and rotation.slerp(start, end, 1.0) is end


def test_normalise():
    np.testing.assert_allclose(rotation.normalise(np.array([0, 0, 3, 4])), [0, 0, 0.6, 0.8])
    for spoilt in ([0, 0, 0, 0], [0, 0, 0, math.nan], [math.inf, 0, 0, 0]):
        with pytest.raises(ValueError, match='expected 1'):
            rotation.normalise(np.array(spoilt, float))


def test_unit_length_within_the_tolerance():
    assert rotation.is_unit(np.array([0, 0, 0, 1.0009]))
    assert not rotation.is_unit(np.array([0, 0, 0, 1.002]))
    assert not rotation.is_unit(np.array([[0, 0, 0, 1.0], [0, 0, 0, 0.99]]))
    assert not rotation.is_unit(np.array([0, 0, 0, math.nan]))
