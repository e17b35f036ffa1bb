"""Observations in, chunks out; what happens between the two is in predictor.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
import time
from typing import Any

from geometry_msgs.msg import PoseStamped
import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.publisher import Publisher
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float64
import torch
from trajectory_msgs.msg import JointTrajectory, MultiDOFJointTrajectory
from visualization_msgs.msg import MarkerArray

from diffusion_policy_ros.control import readings
from diffusion_policy_ros.control.arm import load_arm
from diffusion_policy_ros.datatypes import Chunk, EE_POSE, GRIPPER, Observation, to_ns
from diffusion_policy_ros.nodes import messages
from diffusion_policy_ros.nodes.diagnostics import Diagnostics, ERROR, Latencies, OK, Report, WARN
from diffusion_policy_ros.nodes.guard import Guard
from diffusion_policy_ros.nodes.input_check import InputCheck
from diffusion_policy_ros.nodes.parameters import declare, read
from diffusion_policy_ros.nodes.predictor import check_arm, Predictor, warm_up
from diffusion_policy_ros.nodes.qos import (
    input_qos, INPUT_RELIABILITY, PICTURES, READINGS, RELIABLE,
)
from diffusion_policy_ros.nodes.resources import find
from diffusion_policy_ros.nodes.services import add_trigger
from diffusion_policy_ros.nodes.spin import run
from diffusion_policy_ros.nodes.worker import Worker
from diffusion_policy_ros.policy.checkpoint import load_checkpoint
from diffusion_policy_ros.policy.checkpoint_config import checkpoint_hash
from diffusion_policy_ros.policy.config import CameraSpec, PolicyConfig


READY = ('inactive', 'active')
# Where this process stalls, a second of states at 100 Hz and a third of pictures at 30 Hz wait.
STATE_DEPTH, PICTURE_DEPTH = 100, 10
STUCK_LOOKS = 3
"""So many looks at the inputs, a second apart, without a window are too many."""
LONGEST_INFERENCE_S = 1.0
"""What takes longer comes too late to be of use, or never."""


@dataclass(frozen=True)
class PolicyNodeConfig:
    """Parameters of the policy node; cameras, sizes and rates come from the checkpoint."""

    checkpoint: str = field(default='checkpoints/drawer_open', metadata={
        'description': "Folder of the checkpoint: a path, or one inside the package's config "
                       'folder. Read at configure.', 'read_only': False})
    arm: str = field(default='arms/metaworld.yaml', metadata={
        'description': "The arm's YAML: a path, or one inside the package's config folder. Read "
                       'at configure.', 'read_only': False})
    frame_prefix: str = field(default='', metadata={
        'description': "Put before the arm's base_frame, for a second arm of the same kind."})
    device: str = field(default='cpu', metadata={
        'description': 'Where the network runs, as PyTorch names it: cpu, cuda, cuda:1.'})
    n_threads: int = field(default=1, metadata={
        'description': "CPU threads of the network; 0 for PyTorch's own choice. One is best for a "
                       'small network, and leaves the other cores to the rest.', 'min': 0})
    seed: int = field(default=0, metadata={
        'description': 'Seed of the noise; taken at ~/reset, ~/start or activation.', 'min': 0,
        'read_only': False})
    lockstep: bool = field(default=False, metadata={
        'description': 'The arm waits for each command: inputs are subscribed reliable, whatever '
                       'input_reliability is.'})
    input_reliability: str = field(default='best_effort', metadata={
        'description': 'QoS of the subscriptions to cameras and arm; best_effort reads every '
                       'publisher.', 'choices': INPUT_RELIABILITY})
    tolerance_s: float = field(default=0.0, metadata={
        'description': 'Greatest age of a sample in its place of the observation window, and '
                       'greatest gap in a stream; beyond it an episode begins anew. 0 is 1.5 '
                       'steps of the policy: a late frame is forgiven, a lost one of a camera at '
                       'its own rate is not.',
        'unit': 's', 'min': 0.0, 'max': 1.0})
    image_transport: str = field(default='raw', metadata={
        'description': '<camera>/image_raw, or <camera>/image_raw/compressed.',
        'choices': ('raw', 'compressed')})
    autostart: bool = field(default=True, metadata={
        'description': 'Configure and activate on start; false where a lifecycle manager does.'})


class PolicyNode(LifecycleNode):
    """Loads a checkpoint at configure; predicts, in a thread of its own, while active."""

    def __init__(self) -> None:
        super().__init__('policy')
        settings = declare(self, PolicyNodeConfig)
        self._guard = Guard(self.get_logger().warning)
        self._worker = Worker(lambda function: self.executor.create_task(function))
        self._state, self._problem = 'unconfigured', ''
        self._differences: list[str] | None = None  # not yet compared
        self._latencies, self._ages = Latencies(), Latencies()
        self._warm_up_ms, self._n_chunks = float('nan'), 0
        self._inputs: list[Subscription] = []
        self._lockstep, self._n_not_ready = settings.lockstep, 0
        self._said_slow = False
        self._motion: Publisher | None = None  # whoever has one counts as a leader
        self._gripper: Publisher | None = None
        self._markers = self.create_publisher(MarkerArray, '~/markers', RELIABLE)
        self._inference_ms = self.create_publisher(Float64, '~/inference_ms', RELIABLE)
        self._refuse_impossible_transitions()
        Diagnostics(self, self._report)
        self.create_timer(1.0, self._look_at_inputs, clock=Clock(clock_type=ClockType.STEADY_TIME))
        for name, action in (('start', self._start), ('stop', self._stop), ('reset', self._reset)):
            add_trigger(self, f'~/{name}', action)
        if settings.autostart:
            if self.trigger_configure() != TransitionCallbackReturn.SUCCESS:
                raise ValueError(self._problem)
            self.trigger_activate()

    # Lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load, check against the arm, warm up, subscribe and advertise."""
        try:
            self._load(read(self, PolicyNodeConfig))
        except Exception as error:  # rclpy hides one that a transition raises
            known = isinstance(error, (ValueError, RuntimeError))
            kind = '' if known else f'{type(error).__name__}: '
            self._problem = kind + ' '.join(str(error).split())
            self._leave_topics()
            if self.executor is not None:
                self.get_logger().error(f'configure: {self._problem}')
            return TransitionCallbackReturn.FAILURE
        self._state, self._problem = 'inactive', ''
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin an episode."""
        self._state = 'active'
        self._begin_episode()
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let what is in flight come to nothing, and predict no more."""
        self._begin_episode()
        self._state = 'inactive'
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Leave the topics and forget the policy."""
        self._leave_topics()
        self._policy = self._predictor = None
        self._state = 'unconfigured'
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Predict no more, and leave the topics."""
        if self._state in READY:
            self._begin_episode()  # what is in flight is not published
        self._leave_topics()
        self._state = 'finalized'
        return super().on_shutdown(state)

    def destroy_node(self) -> None:
        """End the worker's thread first."""
        self._worker.close()
        super().destroy_node()

    def _refuse_impossible_transitions(self) -> None:
        """Answer them with a failure; rclpy raises, and the node would end."""
        service, = (service for service in self.services
                    if service.service_name.endswith('/change_state'))
        change = service.callback

        def answer(request: Any, response: Any) -> Any:
            try:
                return change(request, response)
            except RuntimeError as error:
                self.get_logger().error(f'change_state refused: {" ".join(str(error).split())}')
                response.success = False
                return response

        service.callback = answer

    def _advertise(self) -> None:
        self._motion = self.create_publisher(MultiDOFJointTrajectory, 'ee_trajectory', RELIABLE)
        self._gripper = self.create_publisher(JointTrajectory, 'gripper_trajectory', RELIABLE)

    def _leave_topics(self) -> None:
        while self._inputs:
            self.destroy_subscription(self._inputs.pop())
        for publisher in (self._motion, self._gripper):
            if publisher is not None:
                self.destroy_publisher(publisher)
        self._motion = self._gripper = None

    def _load(self, settings: PolicyNodeConfig) -> None:
        self._advertise()  # first, so that the executor has found it before a chunk is sent
        if settings.n_threads:
            torch.set_num_threads(settings.n_threads)
        folder = find(settings.checkpoint)
        self._arm = load_arm(find(settings.arm))
        self._policy = policy = load_checkpoint(folder, settings.device)
        self._checkpoint = f'{settings.checkpoint} sha256 {checkpoint_hash(folder)[:12]}'
        config = policy.config
        check_arm(config, self._arm)
        self._predictor = Predictor(
            policy, self._worker, self._publish, self._refuse,
            to_ns(settings.tolerance_s) or config.dt_ns * 3 // 2,
            self._send if settings.lockstep else None)
        self._warm_up_ms = self._worker.call(lambda: warm_up(policy))
        self._say_latency(config, settings.lockstep)
        self._subscribe(config, settings)

    def _say_latency(self, config: PolicyConfig, lockstep: bool) -> None:
        budget_ms = 1e3 * config.latency_budget_s
        line = (f'{self._checkpoint}: a chunk takes {self._warm_up_ms:.1f} ms (median), '
                f'latency_budget_s leaves {budget_ms:.1f} ms')
        if self._warm_up_ms > budget_ms and not lockstep:
            self.get_logger().warning(f'{line}: at full speed the arm will hold between chunks')
        else:
            self.get_logger().info(line)

    def _subscribe(self, config: PolicyConfig, settings: PolicyNodeConfig) -> None:
        topics = {EE_POSE: 'ee_pose', GRIPPER: 'gripper_state'}
        kinds = {EE_POSE: (PoseStamped, readings.pose_observation),
                 GRIPPER: (JointState, self._gripper_observation)}
        raw = settings.image_transport == 'raw'
        for camera in config.observation.cameras:
            topics[camera.name] = f'{camera.name}/image_raw' + ('' if raw else '/compressed')
            kinds[camera.name] = (Image if raw else CompressedImage,
                                  partial(self._camera_observation, camera))
        # As they are remapped: that name is what a person looks for.
        names = {stream: self.resolve_topic_name(topics[stream]) for stream in config.streams}
        self._check = InputCheck(config, names, settings.frame_prefix + self._arm.base_frame,
                                 settings.lockstep, self._arm.gripper, self._guard.refused)
        self._differences = None
        self._say_needs(config, names)
        for stream, name in names.items():
            kind, convert = kinds[stream]
            callback = self._guard(name, partial(self._on_input, convert))
            is_state = stream in (EE_POSE, GRIPPER)
            qos = input_qos(settings.input_reliability, STATE_DEPTH if is_state else PICTURE_DEPTH)
            if settings.lockstep:
                qos = READINGS if is_state else PICTURES
            self._inputs.append(self.create_subscription(kind, topics[stream], callback, qos))

    def _say_needs(self, config: PolicyConfig, names: dict[str, str]) -> None:
        sizes = {camera.name: f' {camera.source_height}x{camera.source_width} (height x width)'
                 for camera in config.observation.cameras}
        topics = ', '.join(name + sizes.get(stream, '') for stream, name in names.items())
        self.get_logger().info(
            f'needs {topics}; each at {1 / config.dt_s:.1f} Hz or more')

    # Inputs

    def _gripper_observation(self, msg: JointState) -> Observation:
        observation = readings.gripper_observation(msg)
        closed = self._arm.gripper.state_to_closed(observation.value[0])
        self._check.saw_gripper(observation.value[0])
        return replace(observation, value=np.array([closed]))

    def _camera_observation(self, camera: CameraSpec, msg: Image | CompressedImage) -> Observation:
        observation, size = readings.image_observation(msg, camera.name, camera.height,
                                                       camera.width)
        self._check.saw_size(camera.name, *size)
        return observation

    def _on_input(self, convert: Callable[[Any], Observation], msg: Any) -> None:
        if self._state == 'active':
            observation = convert(msg)
            self._check.saw(observation, time.monotonic_ns())
            self._predictor.push(observation)

    # Chunks

    def _send(self, chunk: Chunk) -> None:
        motion, gripper = messages.chunk_messages(chunk)
        if gripper is not None:
            self._gripper.publish(gripper)
        self._motion.publish(motion)

    def _publish(self, chunk: Chunk, milliseconds: float) -> None:
        try:
            self._send(chunk)
        except ValueError as error:
            self._refuse(error)
            return
        self._n_chunks += 1
        self._latencies.add(milliseconds)
        if not self._lockstep:  # whose stamps are no clock's
            self._ages.add(1e-6 * (self.get_clock().now().nanoseconds - chunk.stamp_ns))
        self._inference_ms.publish(Float64(data=milliseconds))
        if self._markers.get_subscription_count():
            self._markers.publish(messages.chunk_markers(chunk))

    def _refuse(self, error: Exception) -> None:
        self._guard.refuse('prediction', f'{type(error).__name__}: {" ".join(str(error).split())}')

    # Services and reports

    def _start(self) -> str:
        self._expect_ready()
        if self._state == 'inactive':
            self.trigger_activate()
        self._begin_episode()
        return 'active, a new episode begins'

    def _stop(self) -> str:
        self._expect_ready()
        if self._state == 'active':
            self.trigger_deactivate()
        return self._state

    def _reset(self) -> str:
        self._expect_ready()
        self._begin_episode()
        return 'a new episode begins'

    def _expect_ready(self) -> None:
        if self._state not in READY:
            raise ValueError(f'the policy is {self._state}, expected inactive or active')

    def _begin_episode(self) -> None:
        self._n_not_ready = 0
        self._check.begin_episode(time.monotonic_ns())
        self._predictor.reset(self.get_parameter('seed').value)

    def _report(self) -> Report:
        values: dict[str, object] = {'state': self._state}
        if self._state not in READY:
            return (ERROR if self._problem else OK), self._problem or self._state, values
        not_ready = self._predictor.not_ready
        values |= {
            'checkpoint': self._checkpoint,
            'chunks': self._n_chunks,
            'chunks_missed': self._predictor.missed,
            'inference_running': self._worker.busy,
            'inferences_dropped': self._worker.dropped,
            'inference_ms_median': f'{self._latencies.percentile(50):.1f}',
            'inference_ms_p99': f'{self._latencies.percentile(99):.1f}',
            'warm_up_ms': f'{self._warm_up_ms:.1f}',
            'latency_budget_ms': f'{1e3 * self._policy.config.latency_budget_s:.1f}',
            'observation_age_ms_median': f'{self._ages.percentile(50):.1f}',
            'not_ready': not_ready,
            'inputs_differ': '; '.join(self._differences or ()),
            **{f'refused {key}': count for key, count in self._guard.refused.items()}}
        slow = self._slow
        warns = self._differences or self._guard.recent or self._is_stuck or slow
        return WARN if warns else OK, slow or not_ready or self._state, values

    @property
    def _is_stuck(self) -> bool:
        """Whether there was no window for seconds; in lockstep a simulator may take its time."""
        return self._n_not_ready >= STUCK_LOOKS and not self._lockstep

    @property
    def _slow(self) -> str:
        """How long an inference has run, where that is too long, or ''; not in lockstep."""
        busy_s = self._worker.busy_s
        if self._lockstep or busy_s <= LONGEST_INFERENCE_S:
            return ''
        return f'an inference has run for {busy_s:.0f} s'

    def _say_slow(self) -> None:
        """Log a slow inference once; late, where another was logged just before."""
        slow = self._slow
        if not slow:
            self._said_slow = False
        elif not self._said_slow:
            self._said_slow = self._guard.say('inference', f'no chunk: {slow}', 1)

    def _look_at_inputs(self) -> None:
        """Log all differences between topics and checkpoint at once, whenever they change."""
        self._say_slow()
        if self._state != 'active':
            return
        not_ready = self._predictor.not_ready
        self._n_not_ready = self._n_not_ready + 1 if not_ready else 0
        if self._is_stuck and not self._differences:
            self._guard.say('not ready', f'no chunk: {not_ready}', 1)
        found = self._check.differences(time.monotonic_ns())
        if found is None or found == self._differences:
            return
        self._differences = found
        if found:
            self.get_logger().error('\n  '.join(
                ['the inputs are not what the checkpoint needs:', *found]))
        else:
            self.get_logger().info('the inputs are what the checkpoint needs')


def main() -> int:
    """Run the node."""
    return run(PolicyNode)
