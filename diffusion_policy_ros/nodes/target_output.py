"""The two topics that move the arm, and who else publishes on a topic."""

from __future__ import annotations

from geometry_msgs.msg import PoseStamped
from rclpy.duration import Duration
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.node import Node
from sensor_msgs.msg import JointState

from diffusion_policy_ros.control.arm import CLOSED, GripperConfig, OPEN
from diffusion_policy_ros.datatypes import Command
from diffusion_policy_ros.nodes.messages import gripper_target_message, pose_message
from diffusion_policy_ros.nodes.qos import LATCHED, RELIABLE

FLUSH = Duration(seconds=0.3)


def other_publishers(node: Node, topic: str) -> list[str]:
    """Return the full names of other nodes that publish a topic, each once."""
    topic = node.resolve_topic_name(topic)
    n_own = sum(publisher.topic_name == topic for publisher in node.publishers)
    if node.count_publishers(topic) < 2:  # cheap, unlike who they are; one alone is no rival
        return []
    names = [f'{info.node_namespace.rstrip("/")}/{info.node_name}'
             for info in node.get_publishers_info_by_topic(topic)]
    for _ in range(n_own):
        if node.get_fully_qualified_name() in names:
            names.remove(node.get_fully_qualified_name())
    return sorted(set(names))


class TargetOutput:
    """
    Publishes commands: the gripper's half first, then the pose, of one stamp.

    Attributes:
        n_sent: commands so far.
    """

    def __init__(self, node: Node, gripper: GripperConfig) -> None:
        self._config = gripper
        self._pose = node.create_publisher(PoseStamped, 'target_pose', RELIABLE)
        # A hand that is told only once hears it also where it joins late, or was started again.
        # joy_teleop asks for what is kept of either, and it is no fault where nothing is.
        self._gripper = node.create_publisher(JointState, 'target_gripper',
                                              LATCHED if gripper.send_on_change else RELIABLE,
                                              event_callbacks=PublisherEventCallbacks(
                                                  use_default_callbacks=False))
        self.n_sent = 0
        self._closed: bool | None = None  # outlives `forget`: a hand that holds is not opened
        self.forget()

    def forget(self) -> None:
        """Send the gripper's next target even if it is the last one again."""
        self._hand_command: float | None = None

    def send(self, command: Command) -> None:
        """
        Publish a command.

        Raises:
            ValueError: it is not finite, or its quaternion is not of length 1; nothing is sent.
        """
        pose = pose_message(command.position, command.quaternion, command.stamp_ns,
                            command.frame_id)
        if command.gripper is not None:
            self._send_gripper(command.gripper, command.stamp_ns)
        self._pose.publish(pose)
        self.n_sent += 1

    def flush(self) -> None:
        """Wait for a moment until what was sent has arrived: a process that ends sends no more."""
        for publisher in (self._gripper, self._pose):
            publisher.wait_for_all_acked(FLUSH)

    def _send_gripper(self, effort: float, stamp_ns: int) -> None:
        config = self._config
        command = config.effort_to_command(effort, self._closed)
        if config.type == 'on_off':
            self._closed = config.closes(effort, self._closed)
            effort = CLOSED if self._closed else OPEN
        if config.send_on_change and command == self._hand_command:
            return
        self._hand_command = command
        self._gripper.publish(gripper_target_message(effort, stamp_ns, command))
