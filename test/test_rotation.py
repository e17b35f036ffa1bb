"""Quaternions (x, y, z, w), against scipy-free definitions: matrices and angles."""

import math

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from diffusion_policy_ros.control import rotation

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
        rotation.quaternion_to_matrix(rotation.multiply(a, b)),
        rotation.quaternion_to_matrix(a) @ rotation.quaternion_to_matrix(b), atol=1e-12)


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


@settings(max_examples=50, deadline=None)
@given(unit)
def test_a_matrix_and_back(quaternion):
    matrix = rotation.quaternion_to_matrix(quaternion)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1.0)
    back = rotation.matrix_to_quaternion(matrix)
    same_rotation(back, quaternion)
    assert back[3] >= 0


@pytest.mark.parametrize('quaternion', [
    [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [HALF, 0, HALF, 0], [0.5] * 4])
def test_half_turns_survive_the_matrix(quaternion):
    quaternion = np.array(quaternion, float)
    same_rotation(rotation.matrix_to_quaternion(rotation.quaternion_to_matrix(quaternion)),
                  quaternion)


def test_six_numbers_are_the_first_two_columns():
    quarter = np.array([0, 0, HALF, HALF])  # x goes to y, y to -x
    np.testing.assert_allclose(rotation.quaternion_to_rot6d(quarter), [0, 1, 0, -1, 0, 0],
                               atol=1e-15)


@settings(max_examples=50, deadline=None)
@given(st.lists(unit, min_size=1, max_size=5))
def test_six_numbers_and_back_for_many_at_once(quaternions):
    quaternions = np.array(quaternions)
    six = rotation.quaternion_to_rot6d(quaternions)
    assert six.shape == (len(quaternions), 6)
    same_rotation(rotation.rot6d_to_quaternion(six), quaternions)
    for one, alone in zip(six, quaternions, strict=True):
        same_rotation(rotation.rot6d_to_quaternion(one), alone)


def test_six_numbers_of_a_network_need_be_neither_long_nor_square():
    six = np.array([0.0, 3.0, 0.0, -0.5, 4.0, 0.0])
    same_rotation(rotation.rot6d_to_quaternion(six), np.array([0, 0, HALF, HALF]))


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
