"""The policy is killed while the arm moves; the executor goes on without it, and then with it."""

from __future__ import annotations

import signal

from geometry_msgs.msg import PoseStamped
import numpy as np
from sensor_msgs.msg import Image, JointState
from tiny_policy import make_policy, SOURCE
import torch
import yaml

from diffusion_policy_ros.control import readings
from diffusion_policy_ros.nodes import messages
from diffusion_policy_ros.policy.checkpoint import save_checkpoint

PERIOD_NS = 25_000_000
ARM = {'base_frame': 'base', 'ee_frame': 'hand', 'limits': {
    'workspace_min': [-1.0, -1.0, -1.0], 'workspace_max': [1.0, 1.0, 1.0], 'max_speed': 0.5,
    'max_acceleration': 5.0, 'max_angular_speed': 1.0, 'max_angular_acceleration': 10.0,
    'max_start_jump': 0.5, 'max_start_turn': 3.0, 'start_speed': 0.5, 'start_angular_speed': 1.0,
    'max_tracking_error': 1.0, 'max_tracking_turn': 3.0}}


class Arm:
    """An arm and a camera at 40 Hz, their stamps regular however late this process is."""

    def __init__(self, probe):
        self._probe = probe
        self._image = probe.publisher(Image, 'wrist/image_raw', readers=0)
        self._pose = probe.publisher(PoseStamped, 'ee_pose', readers=0)
        self._gripper = probe.publisher(JointState, 'gripper_state', readers=0)
        self.targets = probe.collect(PoseStamped, 'target_pose')
        self._next_ns = probe.node.get_clock().now().nanoseconds
        self._picture = np.zeros((SOURCE, SOURCE, 3), np.uint8)
        probe.node.create_timer(0.01, self._publish)

    def _publish(self):
        while self._next_ns <= self._probe.node.get_clock().now().nanoseconds:
            position = [0.0, 0.0, 0.0]
            if self.targets:
                position = readings.command_from(self.targets[-1], None).position
            self._image.publish(messages.image_message(self._picture, self._next_ns, ''))
            self._gripper.publish(messages.gripper_state_message(0.0, self._next_ns))
            self._pose.publish(messages.pose_message(
                position, [0, 0, 0, 1], self._next_ns, 'base'))
            self._next_ns += PERIOD_NS

    def wait_for_status(self, status):
        """Return the number of commands when the executor's newest report has this status."""
        return int(self._probe.report(
            '/chunk_executor', lambda values: values['status'] == status).values['commands'])


def test_the_executor_outlives_the_policy(start, probe, tmp_path):
    save_checkpoint(tmp_path / 'checkpoint', make_policy(), {}, torch.float32)
    (tmp_path / 'arm.yaml').write_text(yaml.safe_dump(ARM))
    common = {'arm': str(tmp_path / 'arm.yaml')}
    policy = {**common, 'checkpoint': str(tmp_path / 'checkpoint'), 'n_threads': 1}
    executor = start('chunk_executor_node', 'chunk_executor', {**common, 'enable_on_start': True})
    first = start('policy_node', 'policy', policy)
    arm = Arm(probe)
    arm.wait_for_status('TRACKING')

    first.signal(signal.SIGKILL)
    first.wait()
    n_commands = arm.wait_for_status('HELD')
    held = readings.command_from(arm.targets[-1], None).position
    probe.wait(lambda: len(arm.targets) > n_commands + 20, 'more commands')
    np.testing.assert_array_equal(readings.command_from(arm.targets[-1], None).position, held)

    start('policy_node', 'policy', policy)
    assert arm.wait_for_status('TRACKING') > n_commands
    assert executor.exit_code is None
    assert 'No new chunk within command_timeout' in executor.log
