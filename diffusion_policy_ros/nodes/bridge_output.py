"""What the simulated arm says: one call a tick, every message stamped with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from geometry_msgs.msg import PoseStamped, Quaternion, Transform, TransformStamped, Vector3
import numpy as np
from rclpy.node import Node
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Bool, Float64MultiArray, Int64MultiArray

from diffusion_policy_ros.control.arm import ArmConfig
from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER
from diffusion_policy_ros.nodes.messages import (
    camera_info_message, floats_message, gripper_state_message, image_message, pose_message,
    to_header, to_stamp,
)
from diffusion_policy_ros.nodes.outcome import NONE, Outcome
from diffusion_policy_ros.nodes.qos import LATCHED, PICTURES, READINGS
from diffusion_policy_ros.sim.arm import MetaWorldArm
from diffusion_policy_ros.sim.arm_loop import Tick
from diffusion_policy_ros.sim.cameras import CameraGeometry, model_camera_geometry
from diffusion_policy_ros.sim.rendering import CAMERAS, check_camera, check_renderer, RENDERERS

try:
    from tf2_msgs.msg import TFMessage
except ImportError:  # it is not among the wheels of PyPI
    TFMessage = None


@dataclass(frozen=True)
class OutputConfig:
    """What is shown of the simulated arm."""

    arm: str = field(default='arms/metaworld.yaml', metadata={
        'description': "The arm's YAML, for its frames: a path, or one inside the package's "
                       'config folder.'})
    cameras: tuple[str, ...] = field(default=('arm',), metadata={
        'description': f'Cameras to publish, of {", ".join(CAMERAS)}.'})
    image_height: int = field(default=224, metadata={
        'description': 'Height of their images.', 'unit': 'pixels', 'min': 1, 'max': 2048})
    image_width: int = field(default=224, metadata={
        'description': 'Width of their images.', 'unit': 'pixels', 'min': 1, 'max': 2048})
    image_every: int = field(default=1, metadata={
        'description': 'Ticks of 12.5 ms from one image to the next.', 'min': 1})
    renderer: str = field(default='plain', metadata={
        'description': 'Picture settings; a policy wants those it was trained with.',
        'choices': tuple(RENDERERS)})
    publish_clock: bool = field(default=True, metadata={
        'description': 'Publish /clock; it has one owner.'})
    frame_prefix: str = field(default='', metadata={
        'description': 'Put before every frame_id, so that two arms can share /tf.'})
    view_camera: str = field(default='', metadata={
        'description': 'Camera of view/image_raw, for people; empty for none.'})
    view_size: int = field(default=360, metadata={
        'description': 'Height and width of view/image_raw.', 'unit': 'pixels', 'min': 1,
        'max': 2048})
    view_every: int = field(default=4, metadata={
        'description': 'Ticks of 12.5 ms from one view image to the next.', 'min': 1})

    def __post_init__(self) -> None:
        for camera in (*self.cameras, *([self.view_camera] if self.view_camera else [])):
            check_camera(camera)
        check_renderer(self.renderer)


class BridgeOutput:
    """
    The bridge's publishers.

    What costs time and nobody listens to is left out: camera_info, sim_state, the view. `ee_pose`
    comes before the pictures, so that the executor answers while the pictures are drawn and sent.
    """

    def __init__(self, node: Node, config: OutputConfig, arm: ArmConfig) -> None:
        self._config = config
        self.base_frame = config.frame_prefix + arm.base_frame
        self._ee_frame = config.frame_prefix + arm.ee_frame

        def publisher(kind: type, topic: str) -> Any:
            qos = PICTURES if kind is Image else READINGS
            return node.create_publisher(kind, topic, qos)

        self._images = {name: publisher(Image, f'{name}/image_raw') for name in config.cameras}
        self._infos = {name: publisher(CameraInfo, f'{name}/camera_info')
                       for name in config.cameras}
        self._view = publisher(Image, 'view/image_raw') if config.view_camera else None
        self._pose = publisher(PoseStamped, 'ee_pose')
        self._gripper = publisher(JointState, 'gripper_state')
        self._clock = publisher(Clock, '/clock') if config.publish_clock else None
        self._episode = node.create_publisher(Int64MultiArray, '~/episode', LATCHED)
        self._success = publisher(Bool, '~/success')
        self._truncated = publisher(Bool, '~/truncated')
        self._sim_state = publisher(Float64MultiArray, '~/sim_state')
        self._tf = None if TFMessage is None else publisher(TFMessage, '/tf')
        self._geometries: dict[str, CameraGeometry] = {}
        self._task = ''
        self._last: Tick | None = None
        self._outcome = Outcome(0)

    def publish(self, tick: Tick, arm: MetaWorldArm) -> None:
        """Publish one tick; the same one again is for those who were not there the first time."""
        if tick is not self._last:
            self._last = tick
            self._say_outcome(tick)
        for publisher, message in self._convert(tick, arm):
            publisher.publish(message)

    def _say_outcome(self, tick: Tick) -> None:
        """Say False once at an episode's start, True once when it comes to it."""
        before = self._outcome
        if tick.first:
            self._outcome = Outcome(tick.stamp_ns)
            self._success.publish(Bool(data=False))
            self._truncated.publish(Bool(data=False))
        if tick.success and self._outcome.success_tick == NONE:
            self._outcome = replace(self._outcome, success_tick=tick.number)
            self._success.publish(Bool(data=True))
        if tick.truncated:
            self._truncated.publish(Bool(data=True))
        if tick.last:
            self._outcome = replace(self._outcome, last_tick=tick.number,
                                    is_truncated=tick.truncated, is_failed=tick.failed)
        if self._outcome != before:
            self._episode.publish(self._outcome.message())

    def _convert(self, tick: Tick, arm: MetaWorldArm) -> Iterator[tuple[Any, Any]]:
        if self._clock is not None:  # first: what is stamped later than now is refused
            yield self._clock, Clock(clock=to_stamp(tick.stamp_ns))
        if not tick.last:
            yield from self._observation(tick, arm)

    def _observation(self, tick: Tick, arm: MetaWorldArm) -> Iterator[tuple[Any, Any]]:
        stamp_ns = tick.stamp_ns
        pose = tick.observation[EE_POSE]
        yield self._pose, pose_message(pose[:3], pose[3:], stamp_ns, self.base_frame)
        if self._sim_state.get_subscription_count():
            yield self._sim_state, floats_message(np.append(stamp_ns, tick.sim_state))
        yield self._gripper, gripper_state_message(float(tick.observation[GRIPPER][0]), stamp_ns)
        if tick.image_fresh:
            yield from self._pictures(tick, arm)
        if (self._view is not None and tick.number % self._config.view_every == 0
                and self._view.get_subscription_count()):
            size = self._config.view_size
            yield self._view, image_message(
                arm.image(self._config.view_camera, size, size), stamp_ns,
                self._optical_frame(self._config.view_camera))

    def _pictures(self, tick: Tick, arm: MetaWorldArm) -> Iterator[tuple[Any, Any]]:
        config = self._config
        for name in config.cameras:
            frame = self._optical_frame(name)
            if self._infos[name].get_subscription_count():
                yield self._infos[name], camera_info_message(
                    self._geometry(name, arm).intrinsics(config.image_height, config.image_width),
                    config.image_height, config.image_width, tick.stamp_ns, frame)
            yield self._images[name], image_message(arm.image(name), tick.stamp_ns, frame)
        if self._tf is not None:
            yield self._tf, TFMessage(transforms=list(self._transforms(tick, arm)))

    def _transforms(self, tick: Tick, arm: MetaWorldArm) -> Iterator[TransformStamped]:
        pose = tick.observation[EE_POSE]
        yield self._transform(tick, self._ee_frame, pose)
        for name in self._config.cameras:
            yield self._transform(tick, self._optical_frame(name),
                                  self._geometry(name, arm).pose(pose))

    def _transform(self, tick: Tick, frame: str, pose: np.ndarray) -> TransformStamped:
        x, y, z, qx, qy, qz, qw = pose.tolist()
        message = TransformStamped(header=to_header(tick.stamp_ns, self.base_frame),
                                   child_frame_id=frame)
        message.transform = Transform(translation=Vector3(x=x, y=y, z=z),
                                      rotation=Quaternion(x=qx, y=qy, z=qz, w=qw))
        return message

    def _optical_frame(self, camera: str) -> str:
        return f'{self._config.frame_prefix}{camera}_optical_frame'

    def _geometry(self, camera: str, arm: MetaWorldArm) -> CameraGeometry:
        if arm.task != self._task:
            self._task = arm.task
            self._geometries.clear()
        if camera not in self._geometries:
            self._geometries[camera] = model_camera_geometry(arm.model, camera)
        return self._geometries[camera]
