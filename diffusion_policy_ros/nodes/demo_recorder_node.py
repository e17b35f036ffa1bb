"""Demonstrations into rosbag2 bags, one an episode, every message that was sent."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
import re
import sys
import time

from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_srvs.srv import SetBool

from diffusion_policy_ros.data.bag_writer import is_being_written
from diffusion_policy_ros.data.recording import Arrival, Recording, UNFINISHED
from diffusion_policy_ros.datatypes import NS_PER_S, to_ns
from diffusion_policy_ros.nodes.diagnostics import Diagnostics, ERROR, OK, Report, WARN
from diffusion_policy_ros.nodes.guard import Guard
from diffusion_policy_ros.nodes.jpeg_messages import COMPRESSED_IMAGE, IMAGE, jpeg_converter
from diffusion_policy_ros.nodes.parameters import declare, read
from diffusion_policy_ros.nodes.recorder_topics import RecorderTopics, WatchedTopic, Written
from diffusion_policy_ros.nodes.services import add_service, add_trigger
from diffusion_policy_ros.nodes.spin import run

ARM_TOPICS = ('ee_pose', 'gripper_state', 'target_pose', 'target_gripper', 'teleop_pose',
              'teleop_gripper', 'ee_trajectory', 'gripper_trajectory', 'chunk_executor/status')
TARGETS = ('target_pose', 'target_gripper')
LOOK_PERIOD_S = 0.1
SILENT_S = 2.0  # on the wall clock: an episode in lockstep takes what it takes to begin
EPISODE = re.compile(r'episode_(\d+)(\.|$)')


@dataclass(frozen=True)
class RecorderConfig:
    """What is recorded, how, and where to."""

    folder: str = field(default='bags', metadata={
        'description': 'Folder of the bags; each is <folder>/episode_<number>.'})
    task: str = field(default='', metadata={
        'description': "What is demonstrated, in the words of the policy's text input; kept in "
                       'the bag.', 'read_only': False})
    note: str = field(default='', metadata={
        'description': "The operator's note, kept in the bag.", 'read_only': False})
    tags: tuple[str, ...] = field(default=('recorder=diffusion_policy_ros',), metadata={
        'description': 'More entries for the metadata of the bag, each key=value.',
        'read_only': False})
    cameras: tuple[str, ...] = field(default=('arm',), metadata={
        'description': 'Cameras to record: <camera>/image_raw and <camera>/camera_info.'})
    image_transport: str = field(default='raw', metadata={
        'description': 'Subscribe to <camera>/image_raw, or to <camera>/image_raw/compressed.',
        'choices': ('raw', 'compressed')})
    image_storage: str = field(default='raw', metadata={
        'description': 'Keep raw images as they are, or as JPEG in <camera>/image_raw/compressed.',
        'choices': ('raw', 'jpeg')})
    jpeg_quality: int = field(default=95, metadata={
        'description': 'Of image_storage jpeg.', 'min': 1, 'max': 100})
    required: tuple[str, ...] = field(default=('ee_pose', 'gripper_state'), metadata={
        'description': 'Topics without which ~/start refuses, beside the cameras.'})
    extra_topics: tuple[str, ...] = field(default=('/tf', '/tf_static'), metadata={
        'description': f'Topics to record beside the cameras and {", ".join(ARM_TOPICS)}.'})
    step_s: float = field(default=0.0, metadata={
        'description': "The policy's step: a longer gap in a required topic is warned about; 0 "
                       'for no warning.', 'unit': 's', 'min': 0.0, 'max': 10.0})
    queue_depth: int = field(default=200, metadata={
        'description': 'Messages of a topic that wait in the middleware where this node is kept '
                       'busy.', 'min': 1})
    buffer_mb: int = field(default=512, metadata={
        'description': 'Memory for messages that wait for the disk; what comes beyond it is lost, '
                       'and counted.', 'unit': 'MB', 'min': 1})

    def __post_init__(self) -> None:
        for tag in self.tags:
            if '=' not in tag:
                raise ValueError(f'tags: {tag!r}, expected key=value')


class DemoRecorder(Node):
    """Writes what arrives between ~/start and ~/save."""

    def __init__(self) -> None:
        super().__init__('demo_recorder')
        self._config = config = declare(self, RecorderConfig)
        suffix = '' if config.image_transport == 'raw' else '/compressed'
        images = [f'{camera}/image_raw{suffix}' for camera in config.cameras]
        infos = [f'{camera}/camera_info' for camera in config.cameras]
        resolve = self.resolve_topic_name
        self._required = {resolve(name) for name in (*images, *config.required)}
        self._targets = [resolve(name) for name in TARGETS]
        self._alone = {*self._required, *self._targets}
        self._images = {resolve(name) for name in images}
        self._topics = RecorderTopics(self, [resolve(name) for name in (
            *images, *infos, *ARM_TOPICS, *config.required, *config.extra_topics)],
            config.queue_depth, self._written_as, self._take)
        self._recording: Recording | None = None
        self._saved = 0
        self._heard_s: dict[str, float] = {}
        self._guard = Guard(self.get_logger().warning)
        self._folder = Path(config.folder).expanduser().resolve()
        self._say_unfinished()
        add_trigger(self, '~/start', self._start)
        add_trigger(self, '~/discard', self._discard)
        add_service(self, SetBool, '~/save', self._save)
        self._diagnostics = Diagnostics(self, self._report)
        self.create_timer(LOOK_PERIOD_S, self._look, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def finish(self) -> bool:
        """Close the bag of an episode that nobody saved; its folder stays marked as unfinished."""
        recording = self._end_recording()
        if recording is not None:
            try:
                recording.finish({**self._about(), 'complete': 'false'}, keep_name=True)
                self.get_logger().warning(f'ended while recording: {recording.unfinished} is '
                                          'readable, but no whole episode')
            except OSError as error:
                self.get_logger().error(_cut_off(recording, error))
        return True

    # Topics

    def _look(self) -> None:
        for name, problem in self._topics.look(self._recording is None).items():
            self._guard.refuse(name, f'type: {problem}')
        if self._recording is not None:
            self._see_publishers(self._recording)
        now_s, limit_s = time.monotonic(), max(SILENT_S, self._config.step_s)
        for name in sorted(self._required) if self._recording and self._heard_s else ():
            silent_s = now_s - self._heard_s[name]
            if silent_s > limit_s:
                self._guard.refuse(name, f'silent: {silent_s:.1f} s without a message, expected '
                                         f'at most {limit_s} s')

    def _see_publishers(self, recording: Recording) -> None:
        for name, watched in self._topics.watched.items():
            recording.see_publishers(watched.topic.name, watched.publishers)
            if watched.publishers > 1 and name in self._alone:
                self._guard.refuse(name, f'publishers: {watched.publishers} are mixed in it, '
                                         'expected one; no data set takes such a bag')

    def _written_as(self, name: str, kind: str) -> Written:
        """Return how a topic goes into the bag."""
        config = self._config
        if kind == IMAGE and name in self._images and config.image_storage == 'jpeg':
            return f'{name}/compressed', COMPRESSED_IMAGE, jpeg_converter(config.jpeg_quality)
        return name, kind, None

    def _take(self, name: str, watched: WatchedTopic, arrival: Arrival) -> None:
        if self._recording is None:
            return
        now_s = time.monotonic()
        if not self._heard_s:  # whoever resets the scene takes as long as it takes
            self._heard_s = dict.fromkeys(self._required, now_s)
        self._heard_s[name] = now_s
        gap_ns = self._recording.put(watched.topic, arrival, watched.convert)
        if self._recording.problem:
            self._guard.refuse('bag', f'cut off: {self._recording.problem}, nothing more is kept')
        elif gap_ns is None:
            self._guard.refuse(name, f'dropped: {self._config.buffer_mb} MB wait for the disk, '
                                     'expected less (a faster disk, or more buffer_mb)')
        step_ns = to_ns(self._config.step_s)
        if step_ns and (gap_ns or 0) > step_ns and name in self._required:
            self._guard.refuse(name, f'gap: {gap_ns / NS_PER_S:.3f} s without a message, expected '
                                     f'at most step_s {self._config.step_s} s')

    # Services

    def _start(self) -> str:
        if self._recording is not None:
            raise ValueError(f'{self._recording.folder} is being recorded, expected ~/save or '
                             '~/discard first')
        watched = self._topics.watched
        missing = sorted(name for name in self._required
                         if name not in watched or not watched[name].publishers)
        if missing:
            raise ValueError(f'{", ".join(missing)}: nobody publishes that')
        self._topics.drain()  # what is older than the episode
        try:
            self._recording = Recording(
                self._next_folder(), [topic.topic for topic in watched.values()],
                self._config.buffer_mb << 20)
        except OSError as error:
            raise ValueError(f'{self._folder}: {error}') from error
        self._heard_s = {}
        self._see_publishers(self._recording)
        for topic in watched.values():
            for arrival in topic.latched:
                self._recording.put(topic.topic, replace(arrival, log_ns=time.time_ns()),
                                    topic.convert)
        return '; '.join([f'recording {self._recording.folder}', *(
            f'{name}: nobody publishes that' for name in self._without(self._recording))])

    def _without(self, recording: Recording) -> list[str]:
        """Return the targets that nobody has sent: a data set takes what the arm did instead."""
        said = recording.stats
        return [name for name in self._targets if name not in said or not (
            said[name].publishers or said[name].count)]

    def _save(self, request: SetBool.Request) -> str:
        recording = self._end_recording()
        if recording is None:
            raise ValueError('nothing is recorded, expected ~/start')
        success = str(bool(request.data)).lower()
        try:
            path = recording.finish({**self._about(), 'success': success, 'complete': 'true'})
        except OSError as error:
            raise ValueError(_cut_off(recording, error)) from error
        self._saved += 1
        return '; '.join([f'{path}: success {success}', *(
            f'{name} {stats}' for name, stats in recording.stats.items()), *(
            f'{name}: nobody published that' for name in self._without(recording))])

    def _discard(self) -> str:
        recording = self._end_recording()
        if recording is None:
            raise ValueError('nothing is recorded, expected ~/start')
        try:
            recording.discard()
        except OSError as error:
            raise ValueError(f'{recording.unfinished}: {error}') from error
        return f'{recording.folder} is discarded'

    def _end_recording(self) -> Recording | None:
        if self._recording is not None:
            self._topics.drain()
        recording, self._recording = self._recording, None
        return recording

    def _about(self) -> dict[str, str]:
        config = read(self, RecorderConfig)
        tags = dict(tag.split('=', 1) for tag in config.tags)
        return {**tags, 'task': config.task, 'note': config.note, 'cameras': ' '.join(
            config.cameras), 'namespace': self.get_namespace()}

    def _next_folder(self) -> Path:
        names = [EPISODE.match(path.name) for path in self._folder.glob('episode_*')]
        numbers = [int(name[1]) for name in names if name]
        return self._folder / f'episode_{max(numbers, default=-1) + 1:06d}'

    def _say_unfinished(self) -> None:
        for path in sorted(self._folder.glob(f'*{UNFINISHED}')):
            if any(is_being_written(file) for file in path.glob('*.mcap')):
                continue  # by another recorder
            if (path / 'metadata.yaml').exists():
                self.get_logger().warning(f'{path} was neither saved nor discarded')
            else:
                self.get_logger().warning(f'{path} was cut off: recover_bag {path} saves what can '
                                          'be read')

    def _report(self) -> Report:
        recording = self._recording
        values = {'saved': self._saved, 'recording': recording.folder if recording else '',
                  'topics': ' '.join(self._topics.watched),
                  **{f'refused {key}': count for key, count in self._guard.refused.items()}}
        if recording is None:
            return OK, 'Waiting for ~/start.', values
        values |= {name: str(stats) for name, stats in recording.stats.items()}
        if recording.problem:
            return ERROR, f'Not recording: {recording.problem}', values
        lost = any(stats.lost or stats.dropped for stats in recording.stats.values())
        return (WARN if lost else OK), 'Recording.', values


def _cut_off(recording: Recording, error: OSError) -> str:
    return (f'{recording.unfinished} is cut off: {error}. Where that is mended, recover_bag '
            f'{recording.unfinished} saves what can be read')


def main() -> int:
    """Run the node."""
    # EventsExecutor hands no message info over, which has the publishers' sequence numbers.
    return run(DemoRecorder, make_executor=SingleThreadedExecutor)


if __name__ == '__main__':
    sys.exit(main())
