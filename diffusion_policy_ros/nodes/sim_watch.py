"""What sim_runner sees of a run: stamps, chunks, outcomes, and pictures for the video."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
import time

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import Bool
from trajectory_msgs.msg import MultiDOFJointTrajectory

from diffusion_policy_ros.control import readings
from diffusion_policy_ros.datatypes import Chunk
from diffusion_policy_ros.nodes.guard import Guard
from diffusion_policy_ros.nodes.qos import RELIABLE
from diffusion_policy_ros.sim.rollout import EPISODE_GAP_NS
from diffusion_policy_ros.sim.tasks import STEP_NS
from diffusion_policy_ros.sim.video import Frame

KEPT = 32  # poses and pictures, of each topic


class Watch:
    """
    Listens to one episode at a time.

    An episode begins with the bridge's False on ~/success and ~/truncated and with its first
    ee_pose, in no certain order; that is stamped EPISODE_GAP_NS after the last episode's end.

    Args:
        node: that subscribes.
        cameras: shown in the video; none where there is no video.

    Attributes:
        first_ns, newest_ns: stamps of the episode's first and newest tick; 0 before the first.
        newest_steady_ns, newest_chunk_steady_ns: when tick and chunk last arrived.
        success, truncated: of the episode; None until it has begun.
        chunks: those of the episode, oldest first.
        chunk_ms: of each, from its observation's arrival to its own.
        chunk_ages_ns: how far sim time had gone on when it arrived.
        frames: for the video, without chunks yet.
    """

    def __init__(self, node: Node, cameras: Sequence[str]) -> None:
        self._guard = Guard(node.get_logger().warning)
        self._node, self._cameras, self._status = node, cameras, ''
        self._seen_ns = -EPISODE_GAP_NS
        self.forget()
        self._listen(Bool, 'metaworld_bridge/success', self._on_success)
        self._listen(Bool, 'metaworld_bridge/truncated', self._on_truncated)
        self._listen(PoseStamped, 'ee_pose', self._on_pose)
        self._listen(MultiDOFJointTrajectory, 'ee_trajectory', self._on_chunk)
        if cameras:
            self._listen(DiagnosticArray, '/diagnostics', self._on_diagnostics)
            for camera in cameras:
                self._listen(Image, f'{camera}/image_raw', partial(self._on_picture, camera))

    def forget(self) -> None:
        """Be ready for the next episode."""
        self.first_ns = self.newest_ns = 0
        self.newest_steady_ns = self.newest_chunk_steady_ns = time.monotonic_ns()
        self.success: bool | None = None
        self.truncated: bool | None = None
        self.chunks: list[Chunk] = []
        self.chunk_ms: list[float] = []
        self.chunk_ages_ns: list[int] = []
        self.frames: list[Frame] = []
        self._arrival_ns: dict[int, int] = {}
        self._poses: dict[int, np.ndarray] = {}
        self._pictures: dict[str, dict[int, np.ndarray]] = {name: {} for name in self._cameras}

    @property
    def ticks(self) -> int:
        """Ticks since the episode's first."""
        return (self.newest_ns - self.first_ns) // STEP_NS

    @property
    def under_way(self) -> bool:
        """Whether the episode has begun."""
        return self.success is not None and self.truncated is not None

    def _listen(self, kind: type, topic: str, callback: Callable) -> None:
        self._node.create_subscription(kind, topic, self._guard(topic, callback), RELIABLE)

    def _on_success(self, msg: Bool) -> None:
        # True of the last episode may come late; the first False begins this one.
        if self.success is not None or not msg.data:
            self.success = msg.data

    def _on_truncated(self, msg: Bool) -> None:
        if self.truncated is not None or not msg.data:
            self.truncated = msg.data

    def _on_pose(self, msg: PoseStamped) -> None:
        stamp_ns = readings.stamp_ns(msg.header)
        seen_ns, self._seen_ns = self._seen_ns, max(self._seen_ns, stamp_ns)
        if not self.first_ns and stamp_ns - seen_ns >= EPISODE_GAP_NS:
            self.first_ns = stamp_ns
        if not self.first_ns or stamp_ns <= self.newest_ns:
            return
        self.newest_ns, self.newest_steady_ns = stamp_ns, time.monotonic_ns()
        self._arrival_ns[stamp_ns] = self.newest_steady_ns
        if self._cameras:
            self._poses[stamp_ns] = readings.pose_observation(msg).value
            self._forget_oldest(self._poses)
            self._add_frame(stamp_ns)

    def _on_chunk(self, msg: MultiDOFJointTrajectory) -> None:
        chunk = readings.motion_half(msg)
        arrival_ns = self._arrival_ns.pop(chunk.stamp_ns, None)
        if arrival_ns is not None:  # not one that was sent again
            self.newest_chunk_steady_ns = time.monotonic_ns()
            self.chunks.append(chunk)
            self.chunk_ms.append(1e-6 * (self.newest_chunk_steady_ns - arrival_ns))
            self.chunk_ages_ns.append(self.newest_ns - chunk.stamp_ns)

    def _on_picture(self, camera: str, msg: Image) -> None:
        stamp_ns = readings.stamp_ns(msg.header)
        self._pictures[camera][stamp_ns], _ = readings.image_pixels(msg)
        self._forget_oldest(self._pictures[camera])
        if camera == self._cameras[-1]:
            self._add_frame(stamp_ns)

    @staticmethod
    def _forget_oldest(by_stamp: dict[int, np.ndarray]) -> None:
        while len(by_stamp) > KEPT:
            del by_stamp[min(by_stamp)]

    def _on_diagnostics(self, msg: DiagnosticArray) -> None:
        for status in msg.status:
            if status.name == self._executor_name:
                self._status = status.message

    @property
    def _executor_name(self) -> str:
        return f'{self._node.get_namespace().rstrip("/")}/chunk_executor'

    def _add_frame(self, stamp_ns: int) -> None:
        """Put pose and pictures of the outside view's time together; cameras may be slower."""
        ee_pose = self._poses.get(stamp_ns)
        if (ee_pose is None or stamp_ns not in self._pictures[self._cameras[-1]]
                or self.frames and self.frames[-1].stamp_ns >= stamp_ns):
            return
        shown = {}
        for camera, pictures in self._pictures.items():
            stamps = [stamp for stamp in pictures if self.first_ns <= stamp <= stamp_ns]
            if not stamps:
                return
            shown[camera] = pictures[max(stamps)]
        if self.frames:  # what the executor did with a tick is known when the next one comes
            self.frames[-1] = replace(self.frames[-1], status=self._status)
        self.frames.append(Frame(stamp_ns, shown, ee_pose, None, self._status))
