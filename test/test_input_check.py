"""What the topics carry, compared with what the checkpoint was trained on."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_policy_ros.control.arm import GripperConfig
from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER, NS_PER_S, Observation
from diffusion_policy_ros.nodes.input_check import InputCheck
from diffusion_policy_ros.policy.config import CameraSpec, ObservationSpec, PolicyConfig

CONFIG = PolicyConfig(observation=ObservationSpec((CameraSpec('wrist', 480, 640, 96, 96),)))
TOPICS = {'wrist': 'wrist/image_raw', EE_POSE: 'ee_pose', GRIPPER: 'gripper_state'}
PERIOD_NS = CONFIG.dt_ns


def make_check():
    return InputCheck(CONFIG, TOPICS, 'base')


def see(check, streams=tuple(TOPICS), period_ns=PERIOD_NS, size=(480, 640), frame_id='base',
        start_ns=NS_PER_S, n=8):
    """Let `n` messages of each stream come in; the steady clock runs along with the stamps."""
    for i in range(n):
        for stream in streams:
            stamp_ns = start_ns + i * period_ns
            if stream == 'wrist':
                check.saw_size('wrist', *size)
            check.saw(Observation(stream, stamp_ns, np.zeros(0), frame_id), stamp_ns)


def test_nothing_is_said_before_the_inputs_have_settled():
    check = make_check()
    assert check.differences(100 * NS_PER_S) is None
    see(check)
    assert check.differences(3 * NS_PER_S - 1) is None
    see(check, start_ns=2 * NS_PER_S)
    assert check.differences(3 * NS_PER_S) == []


def test_where_nothing_comes_at_all_every_topic_is_named():
    check = make_check()
    check.begin_episode(NS_PER_S)
    assert check.differences(6 * NS_PER_S - 1) is None
    assert check.differences(6 * NS_PER_S) == [
        f'{topic}: no message that can be used, expected one' for topic in TOPICS.values()]
    check = InputCheck(CONFIG, TOPICS, 'base', lockstep=True)
    check.begin_episode(NS_PER_S)
    assert check.differences(100 * NS_PER_S) is None


def test_what_was_refused_is_told_by_its_reason():
    refused = {}
    check = InputCheck(CONFIG, TOPICS, 'base', refused=refused)
    refused |= {'wrist/image_raw encoding': 40, 'wrist/image_raw data': 1, 'ee_pose2 data': 3}
    see(check, (EE_POSE, GRIPPER))
    see(check, (EE_POSE,), start_ns=2 * NS_PER_S, n=40)
    refused['gripper_state position'] = 1
    assert check.differences(4 * NS_PER_S) == [
        'wrist/image_raw: no message that can be used (refused: encoding, data), expected one',
        'gripper_state: silent for over 1 s (refused: position), expected 20.0 Hz']


def test_a_hand_that_reports_in_another_unit_is_named():
    check = InputCheck(CONFIG, TOPICS, 'base',
                       gripper=GripperConfig(state_open=0.08, state_closed=0.0))
    see(check)
    for state in (0.08, 0.0, 0.085, -0.01):
        check.saw_gripper(state)
        assert check.differences(3 * NS_PER_S - 1) is None
        see(check, start_ns=2 * NS_PER_S)
        assert check.differences(3 * NS_PER_S) == []
    check.saw_gripper(80.0)
    assert check.differences(3 * NS_PER_S) == [
        "gripper_state: 80, expected 0.08 (open) to 0 (closed) as in the arm's YAML"]


@pytest.mark.parametrize('changes, expected', [
    ({'streams': (EE_POSE, GRIPPER)},
     ['wrist/image_raw: no message that can be used, expected one']),
    ({'size': (224, 224)}, ['wrist/image_raw: 224x224 pixels (height x width), expected 480x640 '
                            'as in training']),
    ({'frame_id': 'tool'}, ["ee_pose: frame_id tool, expected base, the arm's base_frame"]),
    ({'period_ns': 2 * PERIOD_NS}, [f'{topic}: 10.0 Hz, expected at least 20.0 Hz, the rate of '
                                    'the policy' for topic in TOPICS.values()]),
    ({'period_ns': PERIOD_NS // 3}, []),
    ({'period_ns': PERIOD_NS * 6 // 5}, []),
])
def test_every_difference_is_named(changes, expected):
    check = make_check()
    see(check, **changes)
    period_ns = changes.get('period_ns', PERIOD_NS)
    see(check, **{**changes, 'start_ns': NS_PER_S + 8 * period_ns, 'n': 200})
    assert check.differences(NS_PER_S + 208 * period_ns) == expected


def test_a_lost_message_or_a_new_episode_is_no_slow_rate():
    check = make_check()
    see(check)
    see(check, start_ns=10 * NS_PER_S)
    assert check.differences(11 * NS_PER_S) == []


def test_a_stream_that_falls_silent_is_named():
    check = make_check()
    see(check)
    see(check, (EE_POSE, GRIPPER), start_ns=2 * NS_PER_S, n=40)
    assert check.differences(4 * NS_PER_S) == [
        'wrist/image_raw: silent for over 1 s, expected 20.0 Hz']
    see(check, start_ns=4 * NS_PER_S)
    assert check.differences(5 * NS_PER_S) == []
    check.begin_episode(9 * NS_PER_S)
    assert check.differences(9 * NS_PER_S) == []
    assert len(check.differences(11 * NS_PER_S)) == len(TOPICS)


def test_in_lockstep_silence_means_nothing():
    check = InputCheck(CONFIG, TOPICS, 'base', lockstep=True)
    see(check)
    assert check.differences(100 * NS_PER_S) == []


def test_the_step_from_one_episode_to_the_next_is_no_period():
    check = make_check()
    for episode in range(10):
        see(check, start_ns=(1 + 3 * episode) * NS_PER_S, n=1)
        check.begin_episode(99 * NS_PER_S)
    assert check.differences(100 * NS_PER_S) == []
