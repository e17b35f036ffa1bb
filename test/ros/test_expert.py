"""MetaWorld's experts over the topics: they succeed where they do in the environment."""

from __future__ import annotations

from geometry_msgs.msg import PoseStamped
import numpy as np
import pytest
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray
from std_srvs.srv import Trigger

from diffusion_policy_ros.control import readings
from diffusion_policy_ros.nodes.bringup import ARM
from diffusion_policy_ros.sim.arm import MetaWorldArm
from diffusion_policy_ros.sim.experts import Expert
from diffusion_policy_ros.sim.tasks import MAX_STEPS, STEP_NS, TASKS

NORMAL = ('drawer-open-v3', 'button-press-topdown-v3', 'reach-v3')
EPISODE_LIMIT_S = 200.0
TINY = {'image_height': 8, 'image_width': 8, 'image_every': 10_000}


@pytest.fixture(scope='module')
def nodes(start_once):
    """Start the bridge, the executor and the expert as three processes."""
    return {
        'metaworld_bridge': start_once('metaworld_bridge_node', 'metaworld_bridge',
                                       {'mode': 'lockstep', **TINY}),
        'chunk_executor': start_once('chunk_executor_node', 'chunk_executor',
                                     {'arm': ARM, 'lockstep': True, 'enable_on_start': True}),
        'expert': start_once('expert_node', 'expert', {})}


def in_the_environment(task, seed):
    """Return whether and after how many ticks the expert succeeds without ROS, and its targets."""
    arm, expert, targets = MetaWorldArm(task), Expert(task), []
    _, info = arm.reset(seed=seed)
    while not info['success'] and len(targets) < MAX_STEPS:
        targets.append(np.append(*expert.target(info['sim_state'])))
        _, _, _, _, info = arm.step(targets[-1])
    arm.close()
    return info['success'], targets


def set_task(probe, node, **values):
    request = SetParameters.Request(parameters=[
        Parameter(name, value=value).to_parameter_msg() for name, value in values.items()])
    for result in probe.call(SetParameters, f'{node}/set_parameters', request).results:
        assert result.successful, result.reason


def over_topics(probe, task, seed, n_targets):
    """Return the same for the three nodes, once at least so many targets were seen."""
    success = probe.collect(Bool, 'metaworld_bridge/success')
    truncated = probe.collect(Bool, 'metaworld_bridge/truncated')
    poses = probe.collect(PoseStamped, 'target_pose', 1000)
    grippers = probe.collect(JointState, 'target_gripper', 1000)
    set_task(probe, 'expert', task=task)
    set_task(probe, 'metaworld_bridge', task=task, seed=seed)
    for node in ('chunk_executor', 'metaworld_bridge'):
        assert probe.call(Trigger, f'{node}/reset').success
    probe.wait(lambda: len(success) + len(truncated) == 3, 'the end of the episode',
               EPISODE_LIMIT_S)
    probe.wait(lambda: all(len({readings.stamp_ns(msg.header) for msg in targets}) >= n_targets
                           for targets in (poses, grippers)), 'all targets')
    efforts = {readings.stamp_ns(msg.header): msg.effort[0] for msg in grippers}
    targets = {}
    for msg in poses:
        point, stamp_ns = msg.pose.position, readings.stamp_ns(msg.header)
        targets[stamp_ns] = np.array([point.x, point.y, point.z, efforts[stamp_ns]])
    assert np.all(np.diff(sorted(targets)) == STEP_NS)
    return success[-1].data, [targets[stamp_ns] for stamp_ns in sorted(targets)]


def check(nodes, probe, task, seed):
    expected, targets = in_the_environment(task, seed)
    success, received = over_topics(probe, task, seed, len(targets))
    assert (task, success) == (task, expected)
    np.testing.assert_allclose(received, targets, rtol=0.0, atol=1e-12)
    limited = {key: value for key, value in probe.report('/chunk_executor').values.items()
               if key.startswith(('limited', 'refused'))}
    assert limited == {}
    assert all(process.exit_code is None for process in nodes.values())


@pytest.mark.parametrize('task', NORMAL)
def test_the_expert_succeeds_through_the_topics_as_without_them(nodes, probe, task):
    check(nodes, probe, task, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize('task', [task for task in TASKS if task not in NORMAL])
def test_so_do_all_others(nodes, probe, task):
    check(nodes, probe, task, seed=1)


def test_a_bad_state_is_refused_and_the_next_one_answered(nodes, probe):
    over_topics(probe, 'reach-v3', 0, 0)
    states = probe.publisher(Float64MultiArray, 'metaworld_bridge/sim_state')
    answers = probe.collect(PoseStamped, 'teleop_pose')
    state = [5e9, *np.linspace(0.0, 1.0, 42).tolist()]
    for data in (state[:-1], [*state[:-1], float('nan')], state):
        states.publish(Float64MultiArray(data=data))
    probe.wait(lambda: answers, 'an answer')
    assert readings.stamp_ns(answers[0].header) == 5 * 10**9
    probe.report('/expert', lambda values: values.get(
        'refused metaworld_bridge/sim_state data') == '2')
    assert ('metaworld_bridge/sim_state refused: data: 42 numbers, expected 43'
            in nodes['expert'].log)


def test_an_unknown_task_is_refused_with_the_closest_names(nodes, probe, start):
    request = SetParameters.Request(
        parameters=[Parameter('task', value='drawer-opne-v3').to_parameter_msg()])
    (result,) = probe.call(SetParameters, 'expert/set_parameters', request).results
    assert not result.successful and 'did you mean drawer-open-v3' in result.reason
    process = start('expert_node', 'expert_of_nothing', {'task': 'drawer-opne-v3'})
    assert process.wait() == 1
    assert 'did you mean drawer-open-v3' in process.log and process.log.count('\n') == 1
