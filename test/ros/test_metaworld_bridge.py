"""The bridge as a process of its own, over DDS, on the real simulator."""

from __future__ import annotations

from dataclasses import fields
import math
import re
import signal

from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
import numpy as np
import pytest
from rcl_interfaces.msg import ParameterType
from rcl_interfaces.srv import DescribeParameters, SetParameters
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Bool, Float64MultiArray, Header, Int64MultiArray
from std_srvs.srv import Trigger

from diffusion_policy_ros.control import readings
from diffusion_policy_ros.control.arm import load_arm
from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER, NS_PER_S
from diffusion_policy_ros.nodes import messages
from diffusion_policy_ros.nodes.bringup import node_parameters
from diffusion_policy_ros.nodes.expert_node import ExpertConfig
from diffusion_policy_ros.nodes.metaworld_bridge_node import BridgeConfig
from diffusion_policy_ros.nodes.outcome import Outcome
from diffusion_policy_ros.nodes.resources import find
from diffusion_policy_ros.nodes.sim_runner import RunnerConfig
from diffusion_policy_ros.sim.arm import MetaWorldArm
from diffusion_policy_ros.sim.cameras import camera_geometry
from diffusion_policy_ros.sim.experts import Expert
from diffusion_policy_ros.sim.tasks import STEP_NS

NAME, TASK = 'metaworld_bridge', 'drawer-close-v3'
FRAME = load_arm(find('arms/metaworld.yaml')).base_frame
DOWN = np.array([0.0, math.sqrt(0.5), 0.0, math.sqrt(0.5)])
SIZE = 64


class Bridge:
    """The bridge's topics, seen from outside."""

    def __init__(self, process, probe, namespace='') -> None:
        self.process, self.probe, self.name = process, probe, f'{namespace}/{NAME}'
        self._begins_ns = self._shown_ns = 0
        self.poses = probe.collect(PoseStamped, f'{namespace}/ee_pose')
        self.grippers = probe.collect(JointState, f'{namespace}/gripper_state')
        self.images = probe.collect(Image, f'{namespace}/arm/image_raw')
        self.success = probe.collect(Bool, f'{self.name}/success')
        self.truncated = probe.collect(Bool, f'{self.name}/truncated')
        self._pose = probe.publisher(PoseStamped, f'{namespace}/target_pose')
        self._gripper = probe.publisher(JointState, f'{namespace}/target_gripper')

    def reset(self) -> Trigger.Response:
        answer = self.probe.call(Trigger, f'{self.name}/reset')
        begins = re.search(r' begins at ([\d.]+) s$', answer.message)
        self._begins_ns = round(float(begins[1]) * NS_PER_S) if begins else 0
        self._shown_ns = 0
        return answer

    def set(self, **values) -> list:
        request = SetParameters.Request(parameters=[
            Parameter(name, value=value).to_parameter_msg() for name, value in values.items()])
        return self.probe.call(SetParameters, f'{self.name}/set_parameters', request).results

    def next_pose(self) -> PoseStamped:
        """Return the next tick's pose; a tick that is waited for is shown again."""
        def later() -> list:
            return [msg for msg in self.of_the_episode(self.poses) if stamp(msg) > self._shown_ns]

        pose = self.probe.wait(later, 'ee_pose')[0]
        self._shown_ns = stamp(pose)
        self.poses[:] = later()
        return pose

    def of_the_episode(self, received: list) -> list:
        """Return what was received, without ticks of the last episode that were shown again."""
        received[:] = [msg for msg in received if stamp(msg) >= self._begins_ns]
        return received

    def send(self, stamp_ns, position=(0.0, 0.6, 0.2), effort=-1.0, frame=FRAME) -> None:
        self.send_gripper(stamp_ns, effort)
        self.send_pose(stamp_ns, position, frame)

    def send_gripper(self, stamp_ns, effort=-1.0) -> None:
        self._gripper.publish(messages.gripper_target_message(effort, stamp_ns))

    def send_pose(self, stamp_ns, position=(0.0, 0.6, 0.2), frame=FRAME) -> None:
        message = messages.pose_message(np.zeros(3), DOWN, stamp_ns, frame)
        x, y, z = position
        message.pose.position.x, message.pose.position.y, message.pose.position.z = x, y, z
        self._pose.publish(message)

    def publishers(self, topic) -> list[str]:
        """Return the namespaces of the nodes that publish a topic."""
        return [info.node_namespace
                for info in self.probe.node.get_publishers_info_by_topic(topic)]

    def report(self) -> tuple[bytes, str, dict[str, str]]:
        """Return the next report on /diagnostics."""
        return self.probe.report(self.name)

    def wait_for_report(self, **expected) -> dict[str, str]:
        """Return the first report with these values."""
        return self.probe.report(self.name, lambda values: all(
            values.get(key) == value for key, value in expected.items())).values

    def wait_for_factor(self, most) -> None:
        self.probe.report(self.name, lambda values: 0 < float(values['achieved_factor']) <= most)


PARAMETERS = {'task': TASK, 'mode': 'lockstep', 'image_height': SIZE, 'image_width': SIZE,
              'image_every': 2, 'view_camera': 'corner4', 'view_size': 80, 'view_every': 4}


@pytest.fixture(scope='module')
def process(start_once):
    """Return a bridge in lockstep, which most tests share."""
    return start_once('metaworld_bridge_node', NAME, PARAMETERS)


@pytest.fixture()
def arm(process, probe):
    result = Bridge(process, probe)
    result.set(task=TASK, seed=0)
    yield result
    assert process.exit_code is None


@pytest.fixture()
def another(start, probe):
    """Return a function that starts a bridge of its own beside the shared one."""
    def start_another(**parameters) -> Bridge:
        return Bridge(start('metaworld_bridge_node', NAME, PARAMETERS | parameters,
                            ('-r', '__ns:=/other')), probe, '/other')
    return start_another


def stamp(msg) -> int:
    return readings.stamp_ns(msg.header)


def test_lockstep_is_the_environment_to_the_last_bit(arm):
    arm.set(seed=3)
    plain = MetaWorldArm(TASK, ('arm',), SIZE, SIZE, image_every=2)
    observation, info = plain.reset(seed=3)
    assert arm.reset().success
    expert, stamps = Expert(TASK), []
    for _ in range(12):
        pose = arm.next_pose()
        assert pose.header.frame_id == FRAME
        stamps.append(stamp(pose))
        np.testing.assert_array_equal(readings.pose_observation(pose).value, observation[EE_POSE])
        position, effort = expert.target(info['sim_state'])
        arm.send(stamps[-1], position, effort)
        observation, _, _, _, info = plain.step(np.append(position, effort))
    assert np.all(np.diff(stamps) == STEP_NS)
    arm.probe.wait(lambda: len(arm.of_the_episode(arm.grippers)) >= 12
                   and len(arm.of_the_episode(arm.images)) >= 6, 'the other streams')
    # A tick that is waited for is shown again, so a stamp may come twice.
    stamps.append(stamps[-1] + STEP_NS)
    assert sorted({stamp(msg) for msg in arm.images}) in (stamps[:12:2], stamps[::2])
    assert sorted({stamp(msg) for msg in arm.grippers}) in (stamps[:12], stamps)
    observation, _ = plain.reset(seed=3)
    plain.close()
    assert arm.grippers[0].position[0] == observation[GRIPPER][0]
    np.testing.assert_array_equal(readings.image_pixels(arm.images[0])[0], observation['arm'])


def test_an_episode_says_false_once_and_true_once(arm):
    expert = Expert(TASK)
    states = arm.probe.collect(Float64MultiArray, f'{NAME}/sim_state')
    episodes = arm.probe.collect(Int64MultiArray, f'{NAME}/episode')
    for seed in range(2):
        arm.set(seed=seed)
        arm.success.clear()
        arm.truncated.clear()
        episodes.clear()
        assert arm.reset().success
        while len(arm.success) < 2:
            arm.probe.wait(lambda: states or len(arm.success) == 2, 'sim_state or success')
            if states:
                stamp_ns, *state = states.pop(0).data
                arm.send(int(stamp_ns), *expert.target(np.array(state)))
        assert [msg.data for msg in arm.success] == [False, True]
        assert [msg.data for msg in arm.truncated] == [False]
        arm.probe.wait(lambda: len(episodes) == 2, 'begin and end of the episode')
        began, ended = (Outcome.read(msg) for msg in episodes)
        ticks = (int(stamp_ns) - began.first_ns) // STEP_NS + 1  # the last has no state
        assert began == Outcome(began.first_ns)
        assert ended == Outcome(began.first_ns, success_tick=ticks, last_tick=ticks)
    level, sentence, values = arm.report()
    assert level == DiagnosticStatus.OK and sentence == 'Between episodes: waiting for ~/reset.'
    assert values['seed'] == '1'


def test_the_clock_comes_before_what_is_stamped_with_it(arm):
    sent = {}

    def note(name, stamp_ns, info):
        sent.setdefault(stamp_ns, {}).setdefault(name, info['source_timestamp'])

    for kind, topic, stamp_of in (
            (PoseStamped, 'ee_pose', stamp), (Image, 'arm/image_raw', stamp),
            (Clock, '/clock', lambda msg: readings.stamp_ns(Header(stamp=msg.clock)))):
        arm.probe.node.create_subscription(
            kind, topic, lambda msg, info, topic=topic, stamp_of=stamp_of: note(
                topic, stamp_of(msg), info), 10)
    arm.reset()
    arm.probe.wait(lambda: any(len(seen) == 3 for seen in sent.values()), 'a whole tick')
    seen = next(seen for seen in sent.values() if len(seen) == 3)
    assert seen['/clock'] < seen['ee_pose'] < seen['arm/image_raw']


def test_bad_targets_are_counted_and_the_next_good_one_steps(arm):
    arm.reset()
    now_ns = stamp(arm.next_pose())
    arm.send(now_ns, position=(math.nan, 0.6, 0.2))
    arm.send(now_ns, frame='table')
    arm.send(0)
    values = arm.wait_for_report(**{
        'refused target_pose position': '1', 'refused target_pose frame_id': '1',
        'refused target_pose header.stamp': '1', 'refused target_gripper header.stamp': '1'})
    assert values['ticks'] == '0'
    # The tick that is waited for is shown again meanwhile.
    arm.send(now_ns)
    arm.probe.wait(lambda: any(stamp(pose) > now_ns for pose in arm.poses), 'the next tick')
    assert "target_pose refused: frame_id: 'table', expected" in arm.process.log


def test_task_and_seed_are_taken_at_reset(arm):
    arm.reset()
    first = arm.next_pose()
    (refused,) = arm.set(task='drawer-opne-v3')
    assert not refused.successful and 'did you mean drawer-open-v3' in refused.reason
    assert all(result.successful for result in arm.set(task='reach-v3', seed=4))
    said = arm.reset().message
    second = arm.next_pose()
    assert said == f'reach-v3 with seed 4 begins at {stamp(second) / NS_PER_S} s'
    assert stamp(second) - stamp(first) == 2 * NS_PER_S
    plain = MetaWorldArm('reach-v3')
    observation, _ = plain.reset(seed=4)
    plain.close()
    np.testing.assert_array_equal(readings.pose_observation(second).value, observation[EE_POSE])


def test_camera_info_and_the_outside_view_are_there_for_those_who_listen(arm):
    arm.reset()
    arm.next_pose()
    # The tick is waited for, so it is shown again to those who come late.
    infos = arm.probe.collect(CameraInfo, 'arm/camera_info')
    views = arm.probe.collect(Image, 'view/image_raw')
    clocks = arm.probe.collect(Clock, '/clock')
    arm.probe.wait(lambda: infos and views and clocks, 'camera_info, view and clock')
    intrinsics = camera_geometry(TASK, 'arm').intrinsics(SIZE, SIZE)
    np.testing.assert_allclose(np.reshape(infos[0].k, (3, 3)), intrinsics)
    assert (infos[0].height, infos[0].width) == (SIZE, SIZE)
    assert any(infos[0].header == image.header for image in arm.images)
    assert infos[0].header.frame_id == 'arm_optical_frame'
    assert (views[0].height, views[0].width) == (80, 80)
    assert readings.image_pixels(views[0])[0].std() > 10
    assert messages.to_stamp(stamp(views[0])) == clocks[0].clock


def test_each_parameter_is_described(arm):
    names = [field.name for field in fields(BridgeConfig)]
    answer = arm.probe.call(DescribeParameters, f'{NAME}/describe_parameters',
                            DescribeParameters.Request(names=names))
    for description in answer.descriptors:
        assert re.fullmatch(r'[A-Z].+\.( \[\w+\])?', description.description), description.name
        assert description.type != ParameterType.PARAMETER_NOT_SET
    by_name = {description.name: description for description in answer.descriptors}
    assert by_name['wait_limit_s'].description.endswith('[s]')
    assert by_name['mode'].additional_constraints == 'one of: lockstep, realtime'
    assert not by_name['task'].read_only and by_name['mode'].read_only


@pytest.mark.slow
def test_a_wait_without_end_names_what_is_missing(another):
    arm = another(wait_limit_s=1.5)
    for half, missing in (('pose', 'target_gripper'), ('gripper', 'target_pose'),
                          (None, 'target_pose and target_gripper')):
        arm.truncated.clear()
        assert arm.reset().success
        now_ns = stamp(arm.next_pose())
        if half is not None:
            getattr(arm, f'send_{half}')(now_ns)
        arm.probe.wait(lambda: len(arm.truncated) == 2, 'truncated')
        level, sentence, _ = arm.report()
        assert level == DiagnosticStatus.ERROR
        assert sentence == (f'no target stamped {now_ns / NS_PER_S} s within 1.5 s: {missing} '
                            'missing')
        assert sentence in arm.process.log


def test_step_limit_prefix_and_a_clock_that_is_not_its_own(another):
    arm = another(max_steps=3, publish_clock=False, frame_prefix='left/')
    arm.reset()
    for _ in range(3):
        pose = arm.next_pose()
        assert pose.header.frame_id == f'left/{FRAME}'
        arm.send(stamp(pose), frame=f'left/{FRAME}')
    arm.probe.wait(lambda: len(arm.truncated) == 2, 'truncated')
    assert [msg.data for msg in arm.truncated] == [False, True]
    assert [msg.data for msg in arm.success] == [False]
    arm.probe.wait(lambda: arm.images, 'an image')
    assert arm.images[0].header.frame_id == 'left/arm_optical_frame'
    assert '/other' not in arm.publishers('/clock')
    assert '/other' in arm.publishers('/other/ee_pose')
    arm.process.signal(signal.SIGTERM)
    assert arm.process.wait() == 0


def test_where_nothing_can_be_drawn_reset_says_what_to_type(another, monkeypatch):
    monkeypatch.setenv('MUJOCO_GL', 'disabled')
    arm = another()
    answer = arm.reset()
    assert not answer.success
    assert 'MUJOCO_GL is disabled, expected osmesa or egl' in answer.message
    assert '\n' not in answer.message
    assert arm.process.exit_code is None


def test_real_time_takes_the_newest_target_and_reports_its_rate(another):
    arm = another(mode='realtime', real_time_factor=0.2, autostart=True, image_every=8,
                  view_camera='')
    first = arm.next_pose()
    arm.send(stamp(first), position=(first.pose.position.x + 0.05, 0.6, 0.2))
    arm.probe.wait(lambda: arm.poses and arm.poses[-1].pose.position.x
                   > first.pose.position.x + 0.03, 'the hand follows')
    stamps = [stamp(pose) for pose in (first, *arm.poses)]
    assert np.all(np.diff(stamps) == STEP_NS)
    arm.wait_for_factor(0.25)
    assert arm.set(real_time_factor=0.05)[0].successful
    # A report may cover time before the change, or come late on a busy machine.
    arm.wait_for_factor(0.06)
    assert not arm.set(real_time_factor=0.0)[0].successful


def test_a_wrong_parameter_is_one_line(start):
    process = start('metaworld_bridge_node', NAME, {'sed': 3})
    assert process.wait() == 1
    assert process.log == (
        '/metaworld_bridge: parameter sed: metaworld_bridge has no such parameter, expected '
        'seed\n')


@pytest.mark.parametrize('values, said', [
    ({'task': 'drawer-opne-v3'}, 'did you mean drawer-open-v3'),
    ({'renderer': 'shiny'}, "renderer 'shiny' is unknown"),
    ({'view_camera': 'elbow'}, "camera 'elbow' is unknown"),
    ({'cameras': ('arm', 'knee')}, "camera 'knee' is unknown"),
])
def test_settings_that_cannot_be_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        BridgeConfig(**values)


@pytest.mark.parametrize('name, cls', [
    ('metaworld_bridge', BridgeConfig), ('expert', ExpertConfig), ('sim_runner', RunnerConfig)])
def test_each_parameter_has_its_line_in_the_yaml(name, cls):
    expected = {field.name: field.default for field in fields(cls)}
    given = {key: tuple(value) if isinstance(value, list) else value
             for key, value in node_parameters(name).items()}
    assert given == expected
