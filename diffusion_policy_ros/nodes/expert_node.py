"""MetaWorld's scripted expert, who moves the arm as a person at a teleoperator would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
import sys

from geometry_msgs.msg import PoseStamped
import numpy as np
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from diffusion_policy_ros.control.readings import floats, pose_observation
from diffusion_policy_ros.datatypes import Observation
from diffusion_policy_ros.nodes import spin
from diffusion_policy_ros.nodes.diagnostics import Diagnostics, OK, Report, WARN
from diffusion_policy_ros.nodes.guard import Guard
from diffusion_policy_ros.nodes.messages import gripper_target_message, pose_message
from diffusion_policy_ros.nodes.parameters import declare
from diffusion_policy_ros.nodes.qos import READINGS, RELIABLE
from diffusion_policy_ros.sim.experts import Expert
from diffusion_policy_ros.sim.tasks import check_task

SIM_STATE = 'metaworld_bridge/sim_state'  # the stamp in nanoseconds, then the state
SIM_STATE_SIZE = 42


@dataclass(frozen=True)
class ExpertConfig:
    """Which expert."""

    task: str = field(default='drawer-open-v3', metadata={
        'description': "MetaWorld task, the same as the bridge's.", 'read_only': False})

    def __post_init__(self) -> None:
        check_task(self.task)


class ExpertNode(Node):
    """Answers each state of the simulator with a teleoperator's target of the same stamp."""

    def __init__(self) -> None:
        super().__init__('expert')
        self._task = declare(self, ExpertConfig).task
        self._expert = Expert(self._task)
        self._pose: Observation | None = None
        self._state: Float64MultiArray | None = None
        self._n_targets = 0
        self._guard = Guard(self.get_logger().warning)
        self._motion = self.create_publisher(PoseStamped, 'teleop_pose', RELIABLE)
        self._gripper = self.create_publisher(JointState, 'teleop_gripper', RELIABLE)
        self.create_subscription(PoseStamped, 'ee_pose',
                                 self._guard('ee_pose', self._on_pose), READINGS)
        self.create_subscription(Float64MultiArray, SIM_STATE,
                                 self._guard(SIM_STATE, self._on_state), READINGS)
        self.add_post_set_parameters_callback(self._changed)
        self._diagnostics = Diagnostics(self, self._report)

    def _on_pose(self, msg: PoseStamped) -> None:
        if self._pose is None:
            self._pose = pose_observation(msg)
            if self._state is not None:
                self._on_state(self._state)

    def _on_state(self, msg: Float64MultiArray) -> None:
        """Name a target; the expert names no rotation, so the hand keeps its first one."""
        self._state = msg
        if self._pose is None:
            return
        stamp_ns, *state = floats(msg, 1 + SIM_STATE_SIZE)
        position, effort = self._expert.target(np.array(state))
        self._gripper.publish(gripper_target_message(effort, int(stamp_ns)))
        self._motion.publish(pose_message(position, self._pose.value[3:], int(stamp_ns),
                                          self._pose.frame_id))
        self._n_targets += 1

    def _changed(self, parameters: Sequence[Parameter]) -> None:
        for parameter in parameters:
            if parameter.name == 'task' and parameter.value != self._task:
                self._task, self._expert = parameter.value, Expert(parameter.value)

    def _report(self) -> Report:
        refused = {f'refused {key}': count for key, count in self._guard.refused.items()}
        values = {'task': self._task, 'targets': self._n_targets, **refused}
        if not self._n_targets:
            return WARN, f'Waiting for {SIM_STATE}.', values
        return OK, 'Playing.', values


def main() -> int:
    """Run the node."""
    return spin.run(ExpertNode)


if __name__ == '__main__':
    sys.exit(main())
