"""An arm's YAML, and the gripper's numbers in both directions."""

import math
from pathlib import Path

from hypothesis import given, strategies as st
import numpy as np
import pytest
import yaml

from diffusion_policy_ros.control.arm import ArmConfig, GripperConfig, load_arm

ARMS = Path(__file__).parents[1] / 'config' / 'arms'
LIMITS = {'workspace_min': [-1, -1, 0], 'workspace_max': [1, 1, 1], 'max_speed': 0.5,
          'max_acceleration': 2, 'max_angular_speed': 1, 'max_angular_acceleration': 5,
          'max_start_jump': 0.2, 'max_start_turn': 0.5, 'start_speed': 0.1,
          'start_angular_speed': 0.2, 'max_tracking_error': 0.1, 'max_tracking_turn': 0.5}


def written(tmp_path, **values):
    path = tmp_path / 'arm.yaml'
    path.write_text(yaml.safe_dump({'base_frame': 'base', 'ee_frame': 'hand', **values}))
    return path


@pytest.mark.parametrize('path', sorted(ARMS.glob('*.yaml')), ids=lambda path: path.name)
def test_every_arm_of_the_package_can_be_read(path):
    assert load_arm(path).limits is not None


def test_metaworlds_limits_are_its_own_envelope():
    """It moves its mocap body 1 cm a tick of 12.5 ms; a target is 1 cm from it on either side."""
    limits = load_arm(ARMS / 'metaworld.yaml').limits
    tick_s, reach_m = 0.0125, 0.01
    assert limits.max_speed == limits.start_speed == pytest.approx(2 * reach_m / tick_s)
    assert limits.max_acceleration == pytest.approx(2 * limits.max_speed / tick_s)


def test_a_file_without_limits_has_none(tmp_path):
    arm = load_arm(written(tmp_path))
    assert arm == ArmConfig('base', 'hand', None, None, GripperConfig())


def test_a_whole_file(tmp_path):
    arm = load_arm(written(tmp_path, limits=LIMITS, fixed_orientation=[1, 0, 0, 0],
                           gripper={'type': 'on_off', 'command_open': 0.08, 'command_closed': 0}))
    assert arm.limits.workspace_max == (1, 1, 1) and arm.limits.max_acceleration == 2
    assert arm.fixed_orientation == (1, 0, 0, 0)
    assert arm.gripper.type == 'on_off' and arm.gripper.command_open == 0.08


@pytest.mark.parametrize('values, message', [
    ({'limit': LIMITS}, 'limit'),
    ({'limits': {**LIMITS, 'max_sped': 1}}, 'max_sped'),
    ({'limits': {k: v for k, v in LIMITS.items() if k != 'start_speed'}}, 'start_speed'),
    ({'limits': {**LIMITS, 'max_speed': 'fast'}}, 'max_speed'),
    ({'limits': {**LIMITS, 'workspace_min': [0, 0]}}, 'workspace'),
    ({'limits': {**LIMITS, 'start_speed': 3}}, 'start_speed 3.0 is above max_speed 0.5'),
    ({'base_frame': ''}, 'base_frame'),
    ({'fixed_orientation': [0, 0, 0, 0]}, 'length 0.0'),
    ({'fixed_orientation': [0, 0, 1, 1]}, 'fixed_orientation'),
    ({'gripper': {'type': 'suction'}}, "gripper.type is 'suction'"),
    ({'gripper': {'command_open': 1, 'command_closed': 1}}, 'gripper.command_open'),
    ({'gripper': {'state_open': 1.0, 'state_closed': 1.0}}, 'gripper.state_open'),
    ({'gripper': {'threshold': 0.95}}, 'gripper.threshold'),
    ({'gripper': {'hysteresis': -0.1}}, 'hysteresis'),
])
def test_what_makes_no_sense_is_refused_in_one_line_with_file_and_key(tmp_path, values, message):
    path = written(tmp_path, **values)
    with pytest.raises(ValueError) as error:
        load_arm(path)
    assert str(path) in str(error.value) and message in str(error.value)
    assert '\n' not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match='none.yaml: no such file'):
        load_arm(tmp_path / 'none.yaml')


# The gripper

HAND = GripperConfig(command_open=0.08, command_closed=0.0, state_open=0.08, state_closed=0.0)
SWITCH = GripperConfig(type='on_off', command_open=10, command_closed=20, threshold=0.2,
                       hysteresis=0.3)


@pytest.mark.parametrize('effort, width', [(-1, 0.08), (0, 0.04), (1, 0.0), (3, 0.0), (-3, 0.08)])
def test_a_hand_that_follows_in_proportion(effort, width):
    assert HAND.effort_to_command(effort) == pytest.approx(width)


@pytest.mark.parametrize('state, closed', [(0.08, 0), (0.02, 0.75), (0.0, 1), (-0.01, 1), (1, 0)])
def test_what_a_hand_reports(state, closed):
    assert HAND.state_to_closed(state) == pytest.approx(closed)


@given(st.floats(-1, 1))
def test_a_hand_that_does_as_told_reports_it(effort):
    closed = HAND.state_to_closed(HAND.effort_to_command(effort))
    assert closed == pytest.approx((effort + 1) / 2, abs=1e-9)


@pytest.mark.parametrize('effort, closed, command', [
    (0.21, None, 20), (0.2, None, 10),
    (0.49, False, 10), (0.51, False, 20),   # must rise above threshold + hysteresis to close
    (-0.09, True, 20), (-0.11, True, 10),   # and fall to threshold - hysteresis to open
])
def test_an_on_off_hand_switches_with_hysteresis(effort, closed, command):
    assert SWITCH.effort_to_command(effort, closed) == command


def test_a_noisy_effort_does_not_make_an_on_off_hand_chatter():
    closed, changes = False, 0
    for effort in 0.2 + 0.25 * np.sin(np.arange(200)):
        now = SWITCH.closes(effort, closed)
        changes += now != closed
        closed = now
    assert changes == 0


@pytest.mark.parametrize('number', [math.nan, math.inf])
def test_a_number_that_is_none_is_refused(number):
    with pytest.raises(ValueError, match='effort is'):
        HAND.effort_to_command(number)
    with pytest.raises(ValueError, match='gripper state is'):
        HAND.state_to_closed(number)


def test_without_a_gripper_there_is_nothing_to_command():
    with pytest.raises(ValueError, match='nothing to command'):
        GripperConfig(type='none').effort_to_command(0.0)
