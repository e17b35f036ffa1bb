"""MetaWorld behind an arm's topics: cameras and state out, `target_*` in, and nothing else in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
import sys

from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState

from diffusion_policy_ros.control.arm import load_arm
from diffusion_policy_ros.control.pairing import StampPairing
from diffusion_policy_ros.control.readings import command_from, stamp_ns
from diffusion_policy_ros.datatypes import NS_PER_S
from diffusion_policy_ros.nodes import spin
from diffusion_policy_ros.nodes.bridge_output import BridgeOutput, OutputConfig
from diffusion_policy_ros.nodes.diagnostics import Diagnostics, ERROR, OK, Report, WARN
from diffusion_policy_ros.nodes.guard import Guard
from diffusion_policy_ros.nodes.parameters import declare, read
from diffusion_policy_ros.nodes.qos import RELIABLE
from diffusion_policy_ros.nodes.resources import find
from diffusion_policy_ros.nodes.services import add_trigger
from diffusion_policy_ros.sim.arm import MetaWorldArm
from diffusion_policy_ros.sim.arm_loop import ArmLoop
from diffusion_policy_ros.sim.tasks import check_task, MAX_STEPS

RATE_TOLERANCE = 0.98


@dataclass(frozen=True)
class BridgeConfig(OutputConfig):
    """What is simulated, and in which time."""

    task: str = field(default='drawer-open-v3', metadata={
        'description': 'MetaWorld task; a change takes effect at the next ~/reset.',
        'read_only': False})
    seed: int = field(default=0, metadata={
        'description': 'Places objects and goal; a change takes effect at the next ~/reset.',
        'min': 0, 'read_only': False})
    mode: str = field(default='realtime', metadata={
        'description': 'In lockstep each tick waits for the target stamped with it; in realtime '
                       'ticks come at real_time_factor and take the newest target.',
        'choices': ('lockstep', 'realtime')})
    real_time_factor: float = field(default=1.0, metadata={
        'description': 'Sim seconds a wall second, in realtime.', 'min': 0.001, 'max': 1000.0,
        'read_only': False})
    max_steps: int = field(default=MAX_STEPS, metadata={
        'description': 'Ticks of an episode before ~/truncated; one that does not end has no '
                       'limit.', 'min': 1})
    ticks_after_success: int = field(default=0, metadata={
        'description': 'Ticks that an episode goes on after its success, as demonstrations do.',
        'min': 0})
    end_episodes: bool = field(default=False, metadata={
        'description': 'End an episode in realtime, too, as each in lockstep ends; else the arm '
                       'goes on until ~/reset.'})
    wait_limit_s: float = field(default=30.0, metadata={
        'description': 'Wall-clock limit of a lockstep tick, after which the episode ends and '
                       'what is missing is named.', 'unit': 's', 'min': 0.1})
    autostart: bool = field(default=False, metadata={
        'description': 'Begin an episode at start, without waiting for ~/reset.'})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_task(self.task)


class MetaWorldBridge(Node):
    """The simulated arm and its cameras."""

    def __init__(self) -> None:
        super().__init__('metaworld_bridge')
        self._config = config = declare(self, BridgeConfig)
        self._lockstep = config.mode == 'lockstep'
        self._ends = self._lockstep or config.end_episodes
        self._output = BridgeOutput(self, config, load_arm(find(config.arm)))
        self._guard = Guard(self.get_logger().warning)
        self._targets = StampPairing()
        self._newest_ns = {'target_pose': 0, 'target_gripper': 0}
        self._problem = ''
        self._loop = ArmLoop(
            self._make_arm, self._output.publish, self._gave_up, lockstep=self._lockstep,
            real_time_factor=config.real_time_factor, wait_limit_s=config.wait_limit_s,
            ticks_after_success=config.ticks_after_success, ends=self._ends)
        self.create_subscription(PoseStamped, 'target_pose',
                                 self._guard('target_pose', self._take_pose), RELIABLE)
        self.create_subscription(JointState, 'target_gripper',
                                 self._guard('target_gripper', self._take_gripper), RELIABLE)
        add_trigger(self, '~/reset', self._reset)
        self.add_post_set_parameters_callback(self._changed)
        self._diagnostics = Diagnostics(self, self._report)
        self._loop.start()
        if config.autostart:
            self.get_logger().info(self._reset())

    def destroy_node(self) -> None:
        """End the simulation's thread first: it publishes."""
        self._loop.stop()
        super().destroy_node()

    def _make_arm(self, task: str) -> MetaWorldArm:
        config = self._config
        arm = MetaWorldArm(  # without cameras: BridgeOutput draws once the pose is on its way
            task, (), config.image_height, config.image_width, config.renderer,
            config.image_every, config.max_steps if self._ends else None)
        arm.reset(seed=0)
        for camera in config.cameras:  # the renderer's start-up, which no episode should wait for
            arm.image(camera)
        return arm

    def _reset(self) -> str:
        config = read(self, BridgeConfig)
        self._problem = ''
        try:
            first_ns = self._loop.reset(config.task, config.seed)
        except (RuntimeError, OSError) as error:
            raise ValueError(f'{config.task} could not be reset: {error}') from error
        return f'{config.task} with seed {config.seed} begins at {first_ns / NS_PER_S} s'

    def _changed(self, parameters: Sequence[Parameter]) -> None:
        for parameter in parameters:
            if parameter.name == 'real_time_factor':
                self._loop.real_time_factor = parameter.value

    def _take_pose(self, msg: PoseStamped) -> None:
        self._pair('target_pose', stamp_ns(msg.header), msg)

    def _take_gripper(self, msg: JointState) -> None:
        self._pair('target_gripper', stamp_ns(msg.header), msg)

    def _pair(self, topic: str, stamp: int, msg: PoseStamped | JointState) -> None:
        self._newest_ns[topic] = stamp
        pair = self._targets.push('motion' if topic == 'target_pose' else 'gripper', stamp, msg)
        if pair is not None:
            command = command_from(*pair)
            if command.frame_id != self._output.base_frame:
                raise ValueError(f'frame_id: {command.frame_id!r}, expected '
                                 f'{self._output.base_frame!r}')
            self._loop.push_target(stamp, command.position, command.gripper)

    def _gave_up(self, problem: str) -> None:
        stamp = self._loop.stamp_ns
        missing = [topic for topic, newest_ns in self._newest_ns.items() if newest_ns != stamp]
        self._problem = f'{problem}: {" and ".join(missing)} missing' if missing else problem
        self.get_logger().error(self._problem)

    def _report(self) -> Report:
        report, config = self._loop.report(), read(self, BridgeConfig)
        refused = {f'refused {key}': count for key, count in self._guard.refused.items()}
        values = {
            'task': config.task, 'seed': config.seed, 'mode': config.mode, 'ticks': report.ticks,
            'achieved_factor': round(report.achieved_factor, 4),
            'real_time_factor': config.real_time_factor, 'slips': report.slips,
            'stale_targets': report.stale_targets, 'waiting_s': round(report.waiting_s, 1),
            'unpaired_targets': self._targets.dropped, **refused}
        if not report.running:
            level = ERROR if self._problem else OK
            return level, self._problem or 'Between episodes: waiting for ~/reset.', values
        if not self._lockstep and (
                report.achieved_factor < RATE_TOLERANCE * config.real_time_factor):
            return WARN, 'Simulating slower than real_time_factor asks for.', values
        return OK, 'Simulating.', values


def main() -> int:
    """Run the node."""
    return spin.run(MetaWorldBridge)


if __name__ == '__main__':
    sys.exit(main())
