"""A person's rates to targets."""

from __future__ import annotations

import math

from hypothesis import given, strategies
import numpy as np
import pytest

from diffusion_policy_ros.control.arm import load_arm
from diffusion_policy_ros.control.jog import Jog, JogConfig
from diffusion_policy_ros.control.rotation import difference
from diffusion_policy_ros.nodes.resources import config_folder

HERE = np.array([0.1, 0.2, 0.3, 0.0, 0.0, 0.0, 1.0])
HELD = [0, 0, 0, 0, 0, 1, 0, 0]
FREE = [0] * 8
REST = [0.0] * 6


def axes(**values):
    found = REST.copy()
    for name, value in values.items():
        found[int(name.removeprefix('a'))] = value
    return found


def jog_of(config):
    """Return a Jog whose device has said once that nothing is pressed."""
    result = Jog(config)
    result.read(REST, FREE)
    return result


@pytest.fixture()
def jog():
    return jog_of(JogConfig(angular_axes=(-1, -1, 3)))


def press(jog, *more):
    buttons = HELD.copy()
    for button in more:
        buttons[button] = 1
    return jog.read(REST, buttons)


def test_nothing_is_sent_without_the_dead_man(jog):
    jog.read(axes(a1=1.0), FREE)
    assert not jog.held and jog.step(HERE, 0.02) is None


def test_motion_begins_at_the_measured_pose_and_goes_at_the_speed_of_the_stick(jog):
    jog.read(axes(a1=1.0), HELD)
    position, quaternion = jog.step(HERE, 0.02)
    assert position.tolist() == HERE[:3].tolist() and quaternion.tolist() == [0, 0, 0, 1]
    position, _ = jog.step(HERE, 0.1)
    np.testing.assert_allclose(position - HERE[:3], [0.01, 0, 0])


def test_each_axis_moves_its_own_way_and_a_negative_scale_turns_it_round():
    jog = jog_of(JogConfig(linear_scale=(0.1, -0.2, 0.3), max_lead_m=0.05))
    jog.read(axes(a0=1.0, a4=-1.0), HELD)
    jog.step(HERE, 0.1)
    np.testing.assert_allclose(jog.step(HERE, 0.1)[0] - HERE[:3], [0, -0.02, -0.03])


def test_a_stick_that_is_hardly_touched_is_no_motion_and_there_is_no_jump_at_the_deadband(jog):
    for value, speed in ((0.1, 0.0), (-0.09, 0.0), (0.109, 0.001), (1.0, 0.1), (3.0, 0.1)):
        jog.read(REST, FREE)
        jog.read(axes(a1=value), HELD)
        jog.step(HERE, 1e-3)
        moved = jog.step(HERE, 1e-3)[0][0] - HERE[0]
        assert moved == pytest.approx(speed * 1e-3, abs=1e-9)


def test_a_turn_is_about_the_axis_of_the_base(jog):
    jog.read(axes(a3=1.0), HELD)
    jog.step(HERE, 0.1)
    _, quaternion = jog.step(HERE, 0.1)
    np.testing.assert_allclose(quaternion, [0, 0, math.sin(0.025), math.cos(0.025)])


def test_letting_go_and_pressing_again_begins_at_the_measured_pose(jog):
    jog.read(axes(a1=1.0), HELD)
    for _ in range(5):
        jog.step(HERE, 0.02)
    jog.read(REST, FREE)
    assert jog.step(HERE, 0.02) is None
    jog.read(REST, HELD)
    assert jog.step(HERE, 0.02)[0].tolist() == HERE[:3].tolist()


@pytest.mark.parametrize('ahead, turn, begins_there', [
    ((0.0, 0.0, 0.02), 0.1, True), ((0.0, 0.0, 0.04), 0.0, False), ((0.0, 0.0, 0.02), 0.2, False)])
def test_a_press_begins_at_the_command_where_the_hand_is_near_it(jog, ahead, turn, begins_there):
    """An arm that hangs below its command does not sink with each press."""
    commanded = np.array([*HERE[:3] + ahead, 0.0, 0.0, math.sin(turn / 2), math.cos(turn / 2)])
    press(jog)
    position, quaternion = jog.step(HERE, 0.02, commanded)
    np.testing.assert_array_equal([*position, *quaternion],
                                  commanded if begins_there else HERE)


def test_the_target_does_not_follow_an_arm_that_gives_way(jog):
    press(jog)
    start, turned = (value.copy() for value in jog.step(HERE, 0.02))
    sunk = np.array([*HERE[:3] - [0.0, 0.0, 0.04], 0.0, 0.0, math.sin(0.1), math.cos(0.1)])
    for _ in range(50):
        position, quaternion = jog.step(sunk, 0.02)
    np.testing.assert_allclose(position, start)
    np.testing.assert_allclose(quaternion, turned, atol=1e-12)
    jog.read(axes(a4=1.0), HELD)
    assert jog.step(sunk, 0.02)[0][2] - sunk[2] <= 0.04 + 1e-12


def test_a_press_closes_the_gripper_and_the_next_opens_it(jog):
    assert jog.effort is None  # nothing is known of the hand, so nothing is sent to it
    for effort in (1.0, -1.0):
        press(jog)
        assert press(jog, 0) == {0}
        assert press(jog, 0) == frozenset()  # it is still down
        assert jog.effort == effort
    jog.read(REST, FREE)
    jog.read(REST, [1, *FREE[1:]])
    assert jog.effort == -1.0  # not without the dead-man


@pytest.mark.parametrize('told, pressed', [(1.0, -1.0), (0.2, -1.0), (-0.3, 1.0), (-1.0, 1.0)])
def test_a_takeover_leaves_the_gripper_as_it_was_last_told(jog, told, pressed):
    jog.told(-told)
    jog.told(told)
    press(jog)
    assert jog.effort == told
    press(jog, 0)
    jog.told(told)  # what the executor was sent before the press
    assert jog.effort == pressed
    jog.read(REST, FREE)
    jog.told(told)
    assert jog.effort == told


def test_what_the_gripper_was_told_in_the_moment_of_the_takeover_is_not_undone(jog):
    jog.told(-1.0)
    press(jog)
    jog.told(1.0)  # by the policy, just before it was told to rest
    assert jog.effort == 1.0
    press(jog, 0)
    assert jog.effort == -1.0


def test_buttons_that_are_down_in_the_first_message_were_not_pressed():
    jog = Jog(JogConfig())
    assert jog.read(REST, [1] * len(FREE)) == frozenset()
    assert not jog.held and jog.effort is None
    jog.read(REST, FREE)
    assert jog.read(REST, [1] * len(FREE)) == frozenset(range(len(FREE)))
    assert jog.held


def test_the_first_that_the_gripper_is_told_is_taken_over_in_the_middle_of_a_lead(jog):
    press(jog)
    jog.told(1.0)
    assert jog.effort == 1.0


def test_a_hand_that_may_have_been_moved_goes_on_as_it_is_told_anew_or_closes_at_a_press(jog):
    press(jog, 0)  # the person leads it, and what it is told doesn't count
    jog.forget()
    assert jog.held and jog.effort is None
    jog.told(-0.4)
    assert jog.effort == -0.4
    jog.forget()
    press(jog)
    press(jog, 0)
    assert jog.effort == 1.0


NUMBER = strategies.floats(-1, 1)


@given(strategies.lists(strategies.tuples(*6 * [NUMBER]), max_size=200),
       strategies.tuples(*3 * [NUMBER]))
def test_the_target_never_runs_away_from_a_hand_that_is_held_back(sticks, turned):
    jog = jog_of(JogConfig(linear_axes=(0, 1, 2), angular_axes=(3, 4, 5), max_lead_m=0.02,
                           max_lead_rad=0.1))
    hand = np.array([*HERE[:3], *turned, 0.0])
    hand[6] = math.sqrt(4 - np.sum(hand[3:6] ** 2))
    hand[3:] /= 2
    jog.read(REST, HELD)
    for stick in sticks:
        jog.read(stick, HELD)
        position, quaternion = jog.step(hand, 0.05)
        assert np.linalg.norm(position - hand[:3]) <= 0.02 + 1e-12
        assert np.linalg.norm(difference(quaternion, hand[3:])) <= 0.1 + 1e-9
        assert np.linalg.norm(quaternion) == pytest.approx(1.0)


def test_a_turn_goes_on_until_the_hand_is_held_back(jog):
    jog.read(axes(a3=1.0), HELD)
    for _ in range(100):
        _, quaternion = jog.step(HERE, 0.02)
    np.testing.assert_allclose(quaternion, [0, 0, math.sin(0.075), math.cos(0.075)])


@pytest.mark.parametrize('state, expected', [
    ((REST[:4], HELD), 'axes: 4 of them, expected more than 4'),
    ((REST, HELD[:5]), 'buttons: 5 of them, expected more than 5'),
    ((axes(a1=float('nan')), HELD), 'axes: .* has NaN'),
])
def test_a_device_that_does_not_fit_is_refused_and_ends_the_motion(jog, state, expected):
    jog.read(axes(a1=1.0), HELD)
    jog.step(HERE, 0.02)
    with pytest.raises(ValueError, match=expected):
        jog.read(*state)
    assert not jog.held and jog.step(HERE, 0.02) is None


def refuse(jog):
    with pytest.raises(ValueError, match='buttons'):
        jog.read(REST, [])


@pytest.mark.parametrize('end', [Jog.release, refuse])
def test_after_a_release_from_outside_only_a_new_press_of_the_dead_man_leads(jog, end):
    press(jog, 0, 7)
    for _ in range(3):
        end(jog)
        assert press(jog, 0, 7) == frozenset()  # the driver repeats its state
        assert not jog.held and jog.step(HERE, 0.02) is None and jog.effort == 1.0
    assert jog.read(REST, FREE) == frozenset()
    assert press(jog) == {5} and jog.held
    assert jog.step(HERE, 0.02)[0].tolist() == HERE[:3].tolist()


def test_the_gripper_button_does_nothing_between_a_release_from_outside_and_a_new_press(jog):
    press(jog, 0)
    jog.release()
    press(jog)
    assert press(jog, 0) == {0} and jog.effort == 1.0


def test_no_button_does_two_things():
    with pytest.raises(ValueError, match='enable_button and gripper_button are 0, expected a'):
        JogConfig(enable_button=0, gripper_button=0)


def test_three_axes_are_expected():
    with pytest.raises(ValueError, match=r'linear_axes is \[1, 0\], expected three numbers'):
        JogConfig(linear_axes=(1, 0))


def test_a_hand_that_is_held_back_is_not_astray():
    """By default the target stays nearer to the hand than an arm's command may get."""
    limits, jog = load_arm(config_folder() / 'arms/example.yaml').limits, JogConfig()
    assert jog.max_lead_m < 0.8 * limits.max_tracking_error
    assert jog.max_lead_rad < 0.8 * limits.max_tracking_turn
