"""What sim_runner sees of a run: stamps, chunks, outcomes, and pictures for the video."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import Int64MultiArray
from trajectory_msgs.msg import MultiDOFJointTrajectory

from diffusion_policy_ros.control import readings
from diffusion_policy_ros.datatypes import Chunk
from diffusion_policy_ros.nodes.guard import Guard
from diffusion_policy_ros.nodes.outcome import Outcome, TOPIC
from diffusion_policy_ros.nodes.qos import LATCHED, PICTURES, READINGS
from diffusion_policy_ros.sim.tasks import STEP_NS
from diffusion_policy_ros.sim.video import Frame

KEPT = 32  # poses and pictures, of each topic
MOST_EARLY = 200  # messages that come before the episode's first word


class Watch:
    """
    Listens to one episode at a time.

    What is stamped before the episode's first tick belongs to the last one. Topics come in no
    certain order: what counts is what the bridge says of the episode.

    Args:
        node: that subscribes.
        cameras: shown in the video; none where there is no video.

    Attributes:
        outcome: of the episode; None until it has begun.
        newest_ns: stamp of its newest tick; 0 before the first.
        newest_steady_ns, newest_chunk_steady_ns: when tick and chunk last arrived.
        chunks: those of the episode, oldest first.
        chunk_ms: from an observation's arrival to its chunk's, where both were seen in this order.
        chunk_ages_ns: how far sim time had gone on when each chunk arrived.
        frames: for the video, without chunks yet.
    """

    def __init__(self, node: Node, cameras: Sequence[str]) -> None:
        self._guard = Guard(node.get_logger().warning)
        self._node, self._cameras, self._status = node, cameras, ''
        self.outcome: Outcome | None = None
        self._over_ns = 0  # first tick of the last episode
        self._early: deque[Callable[[], None]] = deque(maxlen=MOST_EARLY)
        self.forget()
        node.create_subscription(Int64MultiArray, TOPIC,
                                 self._guard(TOPIC, self._on_episode), LATCHED)
        self._listen(PoseStamped, 'ee_pose', self._on_pose)
        self._listen(MultiDOFJointTrajectory, 'ee_trajectory', self._on_chunk)
        if cameras:
            self._listen(DiagnosticArray, '/diagnostics', self._on_diagnostics)
            for camera in cameras:
                self._listen(Image, f'{camera}/image_raw', partial(self._on_picture, camera),
                             PICTURES)

    def forget(self) -> None:
        """Be ready for the next episode."""
        if self.outcome is not None:
            self._over_ns = self.outcome.first_ns
        self.outcome = None
        self.newest_ns = 0
        self.newest_steady_ns = self.newest_chunk_steady_ns = time.monotonic_ns()
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
        return (self.newest_ns - self.first_ns) // STEP_NS if self.newest_ns else 0

    @property
    def first_ns(self) -> int:
        """Stamp of the episode's first tick; 0 before it."""
        return self.outcome.first_ns if self.outcome is not None else 0

    def _listen(self, kind: type, topic: str, callback: Callable,
                qos: QoSProfile = READINGS) -> None:
        guarded = self._guard(topic, callback)

        def take(msg: Any) -> None:
            if self.outcome is None:
                self._early.append(partial(guarded, msg))
            else:
                guarded(msg)

        self._node.create_subscription(kind, topic, take, qos)

    def _on_episode(self, msg: Int64MultiArray) -> None:
        said = Outcome.read(msg)
        if said.first_ns <= self._over_ns:
            return
        self.outcome = said
        while self._early:
            self._early.popleft()()

    def _on_pose(self, msg: PoseStamped) -> None:
        stamp_ns = readings.stamp_ns(msg.header)
        if stamp_ns < self.first_ns or stamp_ns <= self.newest_ns:
            return
        self.newest_ns, self.newest_steady_ns = stamp_ns, time.monotonic_ns()
        self._arrival_ns[stamp_ns] = self.newest_steady_ns
        if self._cameras:
            self._poses[stamp_ns] = readings.pose_observation(msg).value
            self._forget_oldest(self._poses)
            self._add_frame(stamp_ns)

    def _on_chunk(self, msg: MultiDOFJointTrajectory) -> None:
        chunk = readings.motion_half(msg)
        last_ns = self.chunks[-1].stamp_ns if self.chunks else self.first_ns - 1
        if chunk.stamp_ns <= last_ns:  # it was sent again
            return
        self.newest_chunk_steady_ns = time.monotonic_ns()
        self.chunks.append(chunk)
        self.chunk_ages_ns.append(max(0, self.newest_ns - chunk.stamp_ns))
        arrival_ns = self._arrival_ns.pop(chunk.stamp_ns, None)
        if arrival_ns is not None:
            self.chunk_ms.append(1e-6 * (self.newest_chunk_steady_ns - arrival_ns))

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
