"""The row in blend's docstring, and what holds for all chunks."""

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from diffusion_policy_ros.control import rotation
from diffusion_policy_ros.control.blending import blend, sample
from diffusion_policy_ros.datatypes import Chunk

MS = 1_000_000
UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])


def chunk(stamp, times, x, gripper=None, quaternion=None):
    """Targets on the x axis, due at some times in ms."""
    position = np.zeros((len(times), 3))
    position[:, 0] = x
    return Chunk(stamp * MS, (np.array(times) - stamp) * MS, position,
                 None if quaternion is None else np.array(quaternion),
                 None if gripper is None else np.array(gripper, float), 'base')


def x_at(target, time_ms):
    return float(sample(target, round(time_ms * MS))[0][0])


def times_of(target):
    return ((target.stamp_ns + target.offsets_ns) // MS).tolist()


OLD = chunk(80, [80, 120, 160], [0, 20, 40])
NEW = chunk(80, [80, 100, 120, 140, 160, 180], [50, 60, 70, 80, 90, 100])


# One chunk

@pytest.mark.parametrize('time, expected', [
    (0, 0), (79, 0), (80, 0), (100, 10), (119, 19.5), (120, 20), (140, 30), (160, 40), (161, 40),
    (9999, 40)])
def test_a_chunk_is_straight_between_its_points_and_never_goes_beyond(time, expected):
    assert x_at(OLD, time) == pytest.approx(expected)


def test_at_a_points_time_it_is_that_point_to_the_bit():
    target = chunk(0, [0, 10, 20], [0.1, 0.7, 0.3])
    for i, time in enumerate((0, 10, 20)):
        assert x_at(target, time) == target.position[i, 0]


def test_the_gripper_is_held_between_points():
    target = chunk(0, [0, 10, 20], [0, 1, 2], gripper=[-1, 0.5, 1])
    assert [sample(target, t * MS)[2] for t in (-5, 0, 9, 10, 19, 20, 99)] == [
        -1, -1, -1, 0.5, 0.5, 1, 1]


def test_rotation_is_spherical_between_points():
    quarter = rotation.exp(np.array([0.0, 0.0, np.pi / 2]))
    target = chunk(0, [0, 10], [0, 1], quaternion=[UPRIGHT, quarter])
    np.testing.assert_allclose(sample(target, 5 * MS)[1],
                               rotation.exp(np.array([0, 0, np.pi / 4])))


def test_what_a_chunk_lacks_its_targets_lack():
    assert sample(OLD, 100 * MS)[1:] == (None, None)


# Two chunks

def test_the_row_in_the_docstring():
    blended = blend(OLD, NEW, 100 * MS, 40 * MS)
    assert times_of(blended) == [100, 120, 140, 160, 180]
    assert blended.position[:, 0].tolist() == [10, 45, 80, 90, 100]
    assert x_at(blended, 110) == 27.5
    assert blended.stamp_ns == NEW.stamp_ns and blended.frame_id == 'base'
    rows = {100: (10, 60), 110: (15, 65), 120: (20, 70), 130: (25, 75), 140: (30, 80)}
    for time, (previous, new) in rows.items():
        assert (x_at(OLD, time), x_at(NEW, time)) == (previous, new)
    assert x_at(blended, 120) == 0.5 * 20 + 0.5 * 70


def test_without_a_previous_chunk_or_time_to_blend_the_new_one_counts_at_once():
    for blended in (blend(None, NEW, 100 * MS, 40 * MS), blend(OLD, NEW, 100 * MS, 0)):
        assert times_of(blended) == [100, 120, 140, 160, 180]
        assert blended.position[:, 0].tolist() == [60, 70, 80, 90, 100]


def test_a_chunk_that_is_still_ahead_altogether_is_not_touched():
    assert blend(None, NEW, 80 * MS, 40 * MS) is NEW
    assert blend(None, NEW, 0, 0) is NEW


@pytest.mark.parametrize('length', [0, 40])
def test_the_previous_chunk_goes_on_until_the_new_one_begins(length):
    old = chunk(0, [0, 50, 200], [0, 50, 200], gripper=[-1, 1, -1])
    new = chunk(20, [120, 160, 200], [300, 340, 380], gripper=[0.5, 0.5, 0.5])
    blended = blend(old, new, 30 * MS, length * MS)
    assert blended.stamp_ns == new.stamp_ns and blended.end_ns == new.end_ns
    for time in (30, 49, 50, 80, 119):
        assert x_at(blended, time) == pytest.approx(time)
        assert sample(blended, time * MS)[2] == (-1 if time < 50 else 1)
    assert sample(blended, 120 * MS)[2] == 0.5
    assert x_at(blended, 120) == pytest.approx(120 if length else 300)
    assert x_at(blended, 140) == pytest.approx((140 + 320) / 2 if length else 320)
    assert x_at(blended, 180) == pytest.approx(360)
    again = blend(blended, chunk(90, [120, 160], [0, 0], gripper=[0, 0]), 100 * MS, 0)
    assert x_at(again, 110) == pytest.approx(110)


def test_now_between_two_points_becomes_one():
    blended = blend(None, NEW, 107 * MS, 0)
    assert times_of(blended) == [107, 120, 140, 160, 180]
    assert blended.position[0, 0] == pytest.approx(63.5)


def test_a_previous_chunk_past_its_end_is_left_from_its_last_point():
    new = chunk(80, [80, 100, 120, 140, 160, 180, 300], [50, 60, 70, 80, 90, 100, 100])
    blended = blend(OLD, new, 170 * MS, 100 * MS)
    assert x_at(blended, 170) == pytest.approx(40)
    assert x_at(blended, 180) == pytest.approx(0.9 * 40 + 0.1 * 100)


def test_the_gripper_is_the_new_chunks_at_once():
    old = chunk(80, [80, 160], [0, 1], gripper=[-1, -1])
    new = chunk(90, [90, 130, 170], [0, 1, 2], gripper=[0.2, 1, -0.5])
    blended = blend(old, new, 100 * MS, 60 * MS)
    efforts = [sample(blended, t * MS)[2] for t in (100, 129, 130, 160, 170)]
    assert efforts == [0.2, 0.2, 1, 1, -0.5]


def test_rotations_blend_by_slerp():
    def turn(angle):
        return rotation.exp(np.array([0.0, angle, 0.0]))
    old = chunk(0, [0, 100], [0, 0], quaternion=[turn(0.0)] * 2)
    new = chunk(0, [0, 50, 100], [0, 0, 0], quaternion=[turn(1.0)] * 3)
    blended = blend(old, new, 0, 100 * MS)
    for time, angle in ((0, 0.0), (50, 0.5), (100, 1.0)):
        np.testing.assert_allclose(sample(blended, time * MS)[1], turn(angle), atol=1e-12)


def test_neither_chunk_is_changed():
    before = NEW.position.copy(), OLD.position.copy()
    blend(OLD, NEW, 100 * MS, 40 * MS)
    np.testing.assert_array_equal(NEW.position, before[0])
    np.testing.assert_array_equal(OLD.position, before[1])


def chunks(first_stamp):
    def make(steps, xs, stamp):
        times = stamp + np.cumsum([0, *steps])
        return chunk(stamp, times.tolist(), xs[:len(times)])
    return st.builds(make, st.lists(st.integers(1, 60), max_size=7),
                     st.lists(st.floats(-1, 1), min_size=8, max_size=8),
                     st.integers(first_stamp, first_stamp + 100))


def test_a_chunk_that_ends_before_the_blend_would_ends_the_blend():
    blended = blend(OLD, NEW, 160 * MS, 100 * MS)
    assert x_at(blended, 160) == pytest.approx(40)
    assert x_at(blended, 170) == pytest.approx((40 + 100) / 2)
    assert x_at(blended, 180) == x_at(blended, 999) == 100


@settings(max_examples=80, deadline=None)
@given(chunks(100), chunks(120), st.integers(100, 300), st.integers(0, 120))
def test_the_blend_is_a_weighted_sum_and_the_new_chunk_after(old, new, now, length):
    blended = blend(old, new, now * MS, length * MS)
    start = max(now, new.first_ns // MS)
    end = min(start + length, new.end_ns // MS)
    assert blended.stamp_ns == new.stamp_ns and blended.end_ns == new.end_ns
    assert blended.first_ns == min(now * MS, new.end_ns)
    for time in range(now, start):
        assert x_at(blended, time) == pytest.approx(x_at(old, time), abs=1e-12)
    for time in (blended.stamp_ns + blended.offsets_ns) // MS:
        if time < start:
            continue
        weight = (end - time) / (end - start) if time < end else 0.0
        expected = weight * x_at(old, time) + (1 - weight) * x_at(new, time)
        assert x_at(blended, time) == pytest.approx(expected, abs=1e-12)
    for time in range(end, end + 100, 7):
        assert x_at(blended, time) == pytest.approx(x_at(new, time), abs=1e-12)
