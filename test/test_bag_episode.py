"""Recorded streams to rows: which sample is a row's, which target its action."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffusion_policy_ros.control.horizon import Horizon
from diffusion_policy_ros.data.bag_episode import action_source, make_episode
from diffusion_policy_ros.data.bag_reader import Bag, Stream
from diffusion_policy_ros.data.pictures import shown_pictures
from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER, Observation
from diffusion_policy_ros.policy.config import (
    ActionSpec, CameraSpec, ObservationSpec, PolicyConfig, VisionConfig,
)

MS = 1_000_000
CONFIG = PolicyConfig(
    ObservationSpec((CameraSpec('arm', 24, 24, 24, 24),), ('ee_position', 'gripper')), dt_s=0.05,
    vision=VisionConfig(crop_height=24, crop_width=24, pooling='average'))
BLIND = PolicyConfig(ObservationSpec((), ('ee_position',)), dt_s=0.05)
TOLERANCE_NS = 75 * MS


def stream(stamps_ms, value, frame='base', name='x'):
    """Return a stream whose value is made of each stamp in milliseconds."""
    return Stream(f'/{name}', [int(stamp * MS) for stamp in stamps_ms],
                  [value(stamp) for stamp in stamps_ms], {frame})


def poses(stamps_ms, **settings):
    return stream(stamps_ms, lambda ms: np.array([ms, 0, 0, 0, 0, 0, 1.0]), **settings)


def numbers(stamps_ms, **settings):
    return stream(stamps_ms, lambda ms: np.array([ms / 1000.0]), **settings)


def pictures(stamps_ms):
    return stream(stamps_ms, lambda ms: np.full(3, int(ms) % 256, np.uint8), name='arm')


def bag(**streams):
    """Return a camera at 25 Hz, an arm at 100 Hz, and targets at 50 Hz that come 3 ms late."""
    found = {
        'arm': pictures(range(1000, 1400, 40)), EE_POSE: poses(range(1005, 1400, 10)),
        GRIPPER: numbers(range(1005, 1400, 10)),
        'target_pose': poses(range(1003, 1400, 20)),
        'target_gripper': numbers(range(1003, 1400, 20)), **streams}
    return Bag({name: value for name, value in found.items() if value is not None}, {})


def rows(episode):
    """Return the rows' times in milliseconds."""
    return (episode.arrays['stamp_ns'] // MS).tolist()


def test_there_is_a_row_for_each_stamp_from_the_first_complete_one_on():
    episode = make_episode(bag(), CONFIG, TOLERANCE_NS)
    assert rows(episode) == sorted({*range(1005, 1361, 10), *range(1040, 1361, 40)})
    assert episode.notes == ()


def test_observations_are_the_times_that_a_live_horizon_has():
    streams = bag()
    horizon, live = Horizon(('arm', EE_POSE, GRIPPER), 2, 50 * MS, TOLERANCE_NS), []
    samples = [(stamp, name) for name in ('arm', EE_POSE, GRIPPER)
               for stamp in streams.streams[name].stamps_ns]
    for stamp, name in sorted(samples):
        horizon.push(Observation(name, stamp, np.zeros(1)))
        if horizon.stamp_ns not in (None, *live[-1:]):
            live.append(horizon.stamp_ns)
    episode = make_episode(streams, CONFIG, TOLERANCE_NS)
    found = episode.arrays['stamp_ns'][episode.arrays['is_observation']].tolist()
    assert [stamp // MS for stamp in found[:4]] == [1035, 1040, 1075, 1080]
    assert found == live


def test_without_cameras_every_row_is_an_observation():
    episode = make_episode(bag(arm=None), BLIND, TOLERANCE_NS)
    assert rows(episode) == list(range(1005, 1396, 10))
    assert episode.arrays['is_observation'].all()


def test_a_row_holds_the_newest_sample_of_each_stream():
    episode = make_episode(bag(), CONFIG, TOLERANCE_NS)
    newest = [max(ms for ms in range(1005, 1400, 10) if ms <= row) for row in rows(episode)]
    assert episode.arrays[EE_POSE][:, 0].tolist() == newest
    np.testing.assert_allclose(episode.arrays[GRIPPER][:, 0], np.array(newest) / 1000)
    blob, ends = episode.pictures['arm']
    _, shown = shown_pictures(ends)
    frames = blob.reshape(-1, 3)[:, 0]
    assert frames[shown].tolist() == [
        max(ms for ms in range(1000, 1400, 40) if ms <= row) % 256 for row in rows(episode)]


def test_an_action_is_the_first_target_from_the_observation_on():
    episode = make_episode(bag(), CONFIG, TOLERANCE_NS)
    targets = list(range(1003, 1400, 20))
    expected = [min(ms for ms in targets if ms >= row) for row in rows(episode)]
    assert episode.arrays['target_position'][:, 0].tolist() == expected
    np.testing.assert_allclose(episode.arrays['target_gripper'][:, 0], np.array(expected) / 1000)


def test_in_lockstep_the_action_is_stamped_with_its_observation():
    ticks = [1000 + 12.5 * i for i in range(20)]
    config = PolicyConfig(CONFIG.observation, dt_s=0.0125, vision=CONFIG.vision)
    episode = make_episode(bag(
        arm=pictures(ticks), ee_pose=poses(ticks),
        gripper=numbers(ticks), target_pose=poses(ticks), target_gripper=numbers(ticks)),
        config, int(18.75 * MS))
    assert episode.arrays['target_position'][:, 0].tolist() == ticks
    assert episode.arrays['is_observation'].all()


def test_where_no_target_follows_within_a_step_the_last_one_counts_while_they_go_on():
    sparse = [1003, 1303, 1399]
    episode = make_episode(bag(target_pose=poses(sparse), target_gripper=numbers(sparse)),
                           CONFIG, TOLERANCE_NS)
    times, found = rows(episode), episode.arrays['target_position'][:, 0].tolist()
    assert dict(zip(times, found))[1245] == 1003   # the next is 58 ms ahead
    assert dict(zip(times, found))[1255] == 1303   # 48 ms ahead


def test_what_is_before_the_first_target_and_after_the_last_is_no_action():
    targets = range(1203, 1300, 20)
    episode = make_episode(bag(
        arm=pictures(range(1000, 2400, 40)), ee_pose=poses(range(1005, 2400, 10)),
        gripper=numbers(range(1005, 2400, 10)), target_pose=poses(targets),
        target_gripper=numbers(targets)), CONFIG, TOLERANCE_NS)
    times = np.array(rows(episode))
    # The window at the first action shows what was before it; the last target is held for 0.5 s.
    assert (times[0], times[-1]) == (1105, 1775)
    observed = times[episode.arrays['is_observation']]
    assert (observed[0], observed[-1]) == (1155, 1760)


def test_without_targets_the_action_is_the_state_one_step_later():
    episode = make_episode(bag(target_pose=None, target_gripper=None), CONFIG, TOLERANCE_NS)
    poses_ms = list(range(1005, 1400, 10))
    expected = [min(ms for ms in poses_ms if ms >= row + 50) for row in rows(episode)]
    assert episode.arrays['target_position'][:, 0].tolist() == expected
    np.testing.assert_allclose(episode.arrays['target_gripper'][:, 0],
                               2 * np.array(expected) / 1000 - 1)
    assert episode.notes == (
        'target_pose was not recorded: the action is ee_pose one step later',
        'target_gripper was not recorded: the action is the state of the gripper one step later. '
        'A hand that closed on something is told to stay there, not to squeeze: record '
        'target_gripper where it must hold')


def hand(*states):
    """Return a hand at 100 Hz that is closed so far from so many milliseconds on."""
    times = np.array([time for time, _ in states])
    return stream(range(1005, 1400, 10), lambda ms: np.array(
        [states[np.searchsorted(times, ms, 'right') - 1][1]]))


@pytest.mark.parametrize('states, expected', [
    # It closes on something wide and stalls, slips a little, and opens again.
    ([(0, 0.0), (1095, 0.04), (1105, 0.3), (1125, 0.4), (1205, 0.38), (1305, 0.34), (1315, 0.0)],
     [(1005, -1.0), (1105, 1.0), (1305, -1.0)]),
    # It begins with something in it, lets go, and closes from what it opened to.
    ([(0, 0.6), (1105, 0.5), (1155, 0.2), (1255, 0.26)],
     [(1005, 1.0), (1105, -1.0), (1255, 1.0)]),
    # Neither noise nor a hand that never opens all the way is an order.
    ([(0, 0.08), (1105, 0.1), (1155, 0.06)], [(1005, -1.0)]),
    # Slow as it is, it closes.
    ([(0, 0.0), *((1005 + 10 * i, 0.004 * i) for i in range(40))], [(1005, -1.0), (1135, 1.0)]),
])
def test_an_on_off_hand_was_told_what_it_did_last(states, expected):
    found = efforts(make_episode(bag(target_gripper=None, gripper=hand(*states)), CONFIG,
                                 TOLERANCE_NS, on_off=True))
    times = np.array([time for time, _ in expected])
    for time, effort in found.items():  # one step later: the first state from then on
        seen = min(ms for ms in range(1005, 1400, 10) if ms >= time + 50)
        assert effort == expected[np.searchsorted(times, seen, 'right') - 1][1], time


def test_before_its_first_target_an_on_off_hand_was_told_what_it_did_last():
    episode = make_episode(bag(
        gripper=hand((0, 0.0), (1055, 0.4)),
        target_gripper=stream([1303], lambda ms: np.array([-1.0]))),
        CONFIG, TOLERANCE_NS, on_off=True)
    found = efforts(episode)
    assert {time: effort for time, effort in found.items() if time < 1300} == {
        time: -1.0 if time < 1055 or time > 1253 else 1.0 for time in found if time < 1300}
    assert episode.notes == (
        'before the first target_gripper the action is to open or to close, whichever the hand '
        'did last',)


def test_what_actions_are_made_of():
    def source(config=CONFIG, **streams):
        return action_source(bag(**streams), config)

    assert source() == 'target_pose and target_gripper'
    assert source(target_pose=poses([])) == 'ee_pose and target_gripper'
    assert source(target_gripper=None) == 'target_pose and gripper'
    unheld = replace(CONFIG, action=ActionSpec(('ee_position',)))
    assert source(unheld, target_gripper=None) == source(unheld) == 'target_pose'


def test_a_gripper_that_was_not_recorded_is_said():
    episode = make_episode(bag(arm=None, gripper=None), BLIND, TOLERANCE_NS)
    assert not episode.arrays[GRIPPER].any()
    assert episode.notes == ('gripper is 0 in all rows: its state was not recorded',)


def led(episode):
    times = np.array(rows(episode))[episode.arrays['is_teleop']]
    return (times.min(), times.max()) if len(times) else None


def test_a_person_led_where_the_executor_says_so():
    status = stream([1001, 1101, 1205], lambda ms: 'TELEOP' if ms == 1101 else 'TRACKING')
    episode = make_episode(bag(**{'chunk_executor/status': status}), CONFIG, TOLERANCE_NS)
    assert led(episode) == (1105, 1200)


def test_an_approach_is_a_persons_where_their_targets_are():
    status = stream([1001, 1101], lambda ms: 'TELEOP' if ms == 1101 else 'STARTING')
    found = {'chunk_executor/status': status, 'teleop_pose': poses(range(1080, 1400, 20))}
    assert led(make_episode(bag(**found), CONFIG, TOLERANCE_NS)) == (1035, 1360)


def test_without_the_executors_word_a_person_led_where_their_targets_are():
    episode = make_episode(bag(teleop_pose=poses([1100])), CONFIG, TOLERANCE_NS)
    assert led(episode) == (1055, 1345)
    assert led(make_episode(bag(), CONFIG, TOLERANCE_NS)) is None


def without(stamps, first, last):
    return [stamp for stamp in stamps if not first <= stamp <= last]


@pytest.mark.parametrize('changes, expected', [
    ({EE_POSE: poses(without(range(1005, 1400, 10), 1100, 1180), name='ee_pose')},
     '/ee_pose has a gap of 0.090 s after 0.1 s, expected at most 0.075 s'),
    ({'arm': pictures(range(1000, 1400, 90))},
     '/arm comes at 11.1 Hz, slower than the 20.0 Hz of the policy'),
    ({'target_pose': poses(range(1003, 1400, 20), frame='world', name='target_pose')},
     "/target_pose is in ['world'], expected ['base'] as /x"),
    ({'target_pose': poses([500])}, 'no target falls into the time that was observed'),
    ({'arm': pictures([1000, 1005]), 'target_pose': poses([1003])},
     '1 observations have all streams and a target'),
    ({EE_POSE: poses([2000, 2010])}, '/arm ends 0.640 s before /x begins'),
    ({'arm': pictures(range(1000, 1300, 40)),
      'target_pose': poses(range(1003, 1400, 20), name='target_pose')},
     '/arm ends 0.103 s before the last /target_pose, expected at most 0.075 s'),
    ({GRIPPER: numbers(range(1005, 1100, 10), name='gripper_state'), 'target_gripper': None},
     '/gripper_state ends 0.288 s before the last /x, expected at most 0.075 s'),
    ({GRIPPER: None, 'target_gripper': None, 'arm': None}, 'target_gripper and the state'),
])
def test_what_is_wrong_is_one_line(changes, expected):
    with pytest.raises(ValueError) as error:
        make_episode(bag(**changes), BLIND if changes.get('arm', 0) is None else CONFIG,
                     TOLERANCE_NS)
    assert str(error.value).startswith(expected), str(error.value)


def test_a_pose_in_two_frames_is_refused():
    found = bag()
    found.streams[EE_POSE].frames.add('world')
    found.streams['target_pose'].frames.add('world')
    with pytest.raises(ValueError, match=r"^/x is in \['base', 'world'\], expected one frame$"):
        make_episode(found, CONFIG, TOLERANCE_NS)


def test_targets_that_stop_in_between_are_refused():
    long = {'arm': pictures(range(1000, 3000, 40)), EE_POSE: poses(range(1005, 3000, 10)),
            GRIPPER: numbers(range(1005, 3000, 10))}
    targets = without(range(1003, 3000, 20), 1500, 2200)
    with pytest.raises(ValueError, match=r'targets stop after 1.0 s and come again, .* 0.5 s'):
        make_episode(bag(**long, target_pose=poses(targets), target_gripper=numbers(targets)),
                     CONFIG, TOLERANCE_NS)


def test_what_was_late_on_its_way_when_the_recording_ended_has_not_died():
    found = bag(arm=pictures(range(1000, 1300, 40)))
    found.streams['target_pose'].arrived_ns = 1390 * MS
    found.streams['arm'].arrived_ns = 1360 * MS
    assert rows(make_episode(found, CONFIG, TOLERANCE_NS))[-1] == 1280
    found.streams['arm'].arrived_ns = 1300 * MS
    with pytest.raises(ValueError, match='/arm ends 0.090 s before the last /x'):
        make_episode(found, CONFIG, TOLERANCE_NS)


def on_change(**streams):
    """Return 3 s of a hand that gets a target only when it changes, at 1.5 s and at 2.5 s."""
    return bag(**{'arm': pictures(range(1000, 4000, 40)), EE_POSE: poses(range(1005, 4000, 10)),
                  GRIPPER: numbers(range(1005, 4000, 10)),
                  'target_pose': poses(range(1003, 4000, 20)),
                  'target_gripper': stream([1503, 2503], lambda ms: np.array([
                      1.0 if ms == 1503 else -1.0])), **streams})


def efforts(episode):
    """Return each row's closing effort by its time in milliseconds."""
    return dict(zip(rows(episode), episode.arrays['target_gripper'][:, 0].tolist(), strict=True))


def test_a_hand_that_is_told_only_what_is_new_keeps_its_last_target():
    episode = make_episode(on_change(), CONFIG, TOLERANCE_NS)
    found = efforts(episode)
    assert (min(found), max(found)) == (1005, 3960)
    assert {effort for time, effort in found.items() if 1455 <= time <= 2445} == {1.0}
    assert {effort for time, effort in found.items() if time >= 2455} == {-1.0}
    # Before its first target the hand is where its state says, 1.445 of it at 1.445 s.
    assert found[1445] == pytest.approx(2 * 1.445 - 1)
    assert episode.notes == (
        'before the first target_gripper the action is the state of the gripper',)


def test_without_a_state_the_first_target_of_the_hand_is_what_it_did_before():
    episode = make_episode(on_change(arm=None, gripper=None), BLIND, TOLERANCE_NS)
    assert efforts(episode)[1005] == 1.0
    assert episode.notes[0] == ('before the first target_gripper the action is that one: the '
                                'state of the gripper was not recorded')


def test_a_hand_that_has_a_target_from_the_first_on_is_no_note():
    at_first = stream([1003, 2503], lambda ms: np.array([0.5]))
    assert make_episode(on_change(target_gripper=at_first), CONFIG, TOLERANCE_NS).notes == ()


def test_without_target_poses_too_the_last_target_of_the_hand_holds():
    episode = make_episode(on_change(target_pose=None), CONFIG, TOLERANCE_NS)
    assert rows(episode)[0] == 1005 and rows(episode)[-1] >= 3900
    with_poses = efforts(make_episode(on_change(), CONFIG, TOLERANCE_NS))
    assert efforts(episode) == {stamp: with_poses[stamp] for stamp in efforts(episode)}


def test_a_hand_that_the_action_does_not_hold_need_not_be_recorded():
    config = replace(CONFIG, observation=replace(CONFIG.observation, state=('ee_position',)))
    unheld = bag(target_gripper=None, **{GRIPPER: None})
    with pytest.raises(ValueError, match='target_gripper and the state of the gripper are missin'):
        make_episode(unheld, config, TOLERANCE_NS)
    config = replace(config, action=ActionSpec(('ee_position',)))
    episode = make_episode(unheld, config, TOLERANCE_NS)
    assert not episode.arrays['target_gripper'].any()


def turning(stamps_ms):
    """Return poses whose hand turns about z by 1 rad a second."""
    return stream(stamps_ms, lambda ms: np.array(
        [ms, 0, 0, 0, 0, np.sin(ms / 2000), np.cos(ms / 2000)]))


@pytest.mark.parametrize('recorded', [True, False])
def test_the_hands_rotation_is_kept_and_said_where_no_policy_will_learn_it(recorded):
    targets = {'target_pose': turning(range(1003, 1400, 20))} if recorded else {
        'target_pose': None, EE_POSE: turning(range(1005, 1400, 10))}
    note = 'the targets turn the hand, but action.parts has no ee_rotation: a policy will not'
    episode = make_episode(bag(**targets), CONFIG, TOLERANCE_NS)
    times, turned = episode.arrays['target_position'][:, 0], episode.arrays['target_quaternion']
    np.testing.assert_allclose(turned[:, 2:], np.stack(
        [np.sin(times / 2000), np.cos(times / 2000)], axis=1))
    assert note in episode.notes
    config = replace(CONFIG, action=ActionSpec(('ee_position', 'ee_rotation', 'gripper')))
    assert note not in make_episode(bag(**targets), config, TOLERANCE_NS).notes
    assert note not in make_episode(bag(), CONFIG, TOLERANCE_NS).notes


def test_what_was_done_before_a_camera_came_is_said():
    late = {'arm': pictures(range(2500, 3000, 40)), EE_POSE: poses(range(1005, 3000, 10)),
            GRIPPER: numbers(range(1005, 3000, 10)),
            'target_pose': poses(range(1003, 3000, 20)),
            'target_gripper': numbers(range(1003, 3000, 20))}
    assert make_episode(bag(**late), CONFIG, TOLERANCE_NS).notes == (
        '/x was there over 1 s before /arm: what was done by then is left out',)
    late['arm'] = pictures(range(1900, 3000, 40))
    assert make_episode(bag(**late), CONFIG, TOLERANCE_NS).notes == ()
