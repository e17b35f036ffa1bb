#!/usr/bin/env python3
"""
Count what the demo recorder loses: `benchmark_recording.py --seconds 600`.

Publishes raw cameras and arm topics, records them with the node as a process of its own, and
compares the bag with what was published: every message, in order, bit for bit. Needs ROS 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
import hashlib
from importlib.metadata import version
import os
from pathlib import Path
import platform
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from rich.progress import track
from whole_output import check_writable, write_json

from diffusion_policy_ros.datatypes import NS_PER_S, to_ns
from diffusion_policy_ros.nodes.supervisor import own_domain

ARM = {'ee_pose': 'PoseStamped', 'target_pose': 'PoseStamped', 'gripper_state': 'JointState',
       'target_gripper': 'JointState'}
READY_S, ANSWER_S = 30.0, 60.0
LATEST_S = 0.1
PACKAGES = ('mcap', 'rclpy', 'rosbags')


@dataclass(frozen=True)
class Load:
    """
    What is published.

    Attributes:
        seconds: how long.
        cameras: how many, each with raw rgb8 images.
        height, width: of their images.
        camera_hz, arm_hz: rates of each camera and of each of the four arm topics.
    """

    seconds: float = 60.0
    cameras: int = 2
    height: int = 480
    width: int = 640
    camera_hz: float = 30.0
    arm_hz: float = 100.0

    @property
    def messages(self) -> int:
        """How many messages that is."""
        return round(self.seconds * self.camera_hz) * self.cameras + round(
            self.seconds * self.arm_hz) * len(ARM)


def digest(data: bytes) -> bytes:
    """Return what tells a message from all others."""
    return hashlib.blake2b(data, digest_size=16).digest()


class Source:
    """
    Publishes a load from one process, and remembers a digest of every message.

    Each camera and the arm are participants of their own, as their drivers are.

    Attributes:
        node: that calls the recorder.
        sent: topic to its messages' digests.
    """

    def __init__(self, load: Load) -> None:
        from geometry_msgs.msg import PoseStamped
        from rclpy.context import Context
        from rclpy.node import Node
        from sensor_msgs.msg import Image, JointState

        from diffusion_policy_ros.nodes import messages
        from diffusion_policy_ros.nodes.qos import RELIABLE

        self.node, self._load, self._messages = Node('source'), load, messages
        self._picture = np.random.default_rng(0).integers(
            0, 256, (load.height, load.width, 3), np.uint8)
        kinds = {'PoseStamped': PoseStamped, 'JointState': JointState}
        self._contexts = [Context() for _ in range(load.cameras + 1)]
        for context in self._contexts:
            context.init()
        arm, *cameras = [Node(f'driver_{i}', context=context)
                         for i, context in enumerate(self._contexts)]
        self._cameras = [camera.create_publisher(Image, f'/camera_{i}/image_raw', RELIABLE)
                         for i, camera in enumerate(cameras)]
        self._arm = {name: arm.create_publisher(kinds[kind], f'/{name}', RELIABLE)
                     for name, kind in ARM.items()}
        self.sent = {publisher.topic: [] for publisher in (*self._cameras, *self._arm.values())}

    def close(self) -> None:
        """End all participants."""
        self.node.destroy_node()
        for context in self._contexts:
            context.shutdown()

    @property
    def readers(self) -> int:
        """The fewest subscriptions that any topic has."""
        return min(publisher.get_subscription_count()
                   for publisher in (*self._cameras, *self._arm.values()))

    def run(self) -> float:
        """
        Publish it all at its rates; return the largest lateness in seconds.

        What is more than `LATEST_S` late is left out, as by a sensor: it makes up for nothing.
        """
        load, start, late_s = self._load, time.monotonic(), 0.0
        due = sorted(((i / rate, publish) for rate, publish in (
            (load.camera_hz, self._show), (load.arm_hz, self._move))
            for i in range(round(load.seconds * rate))), key=lambda item: item[0])
        for at_s, publish in track(due, 'publishing'):
            wait_s = start + at_s - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            late_s = max(late_s, -wait_s)
            if wait_s > -LATEST_S:
                publish(NS_PER_S + to_ns(at_s))
        return late_s

    def _show(self, stamp_ns: int) -> None:
        self._picture[0, :8] = np.frombuffer(stamp_ns.to_bytes(24, 'big'), np.uint8).reshape(8, 3)
        self._send(self._messages.image_message(self._picture, stamp_ns, 'optical'),
                   *self._cameras)

    def _move(self, stamp_ns: int) -> None:
        make = self._messages
        pose = make.pose_message(np.array([stamp_ns / NS_PER_S, 0, 0]), np.array([0, 0, 0, 1]),
                                 stamp_ns, 'base')
        self._send(pose, self._arm['ee_pose'], self._arm['target_pose'])
        self._send(make.gripper_state_message(0.5, stamp_ns), self._arm['gripper_state'])
        self._send(make.gripper_target_message(0.5, stamp_ns), self._arm['target_gripper'])

    def _send(self, message: Any, *publishers: Any) -> None:
        from rclpy.serialization import serialize_message

        data = serialize_message(message)
        found = digest(data)
        for publisher in publishers:
            self.sent[publisher.topic].append(found)
            publisher.publish(data)


def record(load: Load, folder: Path, **parameters: Any) -> tuple[Path, dict[str, Any]]:
    """
    Record a load; return the bag and what was measured.

    Raises:
        RuntimeError: the recorder did not come up, or refused.
    """
    from rcl_interfaces.srv import ListParameters
    import rclpy
    from rclpy.client import Client
    from std_srvs.srv import SetBool, Trigger
    import yaml

    from diffusion_policy_ros.nodes.self_spinning import AGAIN_S, asking

    settings = {'folder': str(folder / 'bags'), 'task': 'load',
                'cameras': [f'camera_{i}' for i in range(load.cameras)], **parameters}
    path = folder / 'demo_recorder.yaml'
    path.write_text(yaml.safe_dump({'/**': {'ros__parameters': settings}}))
    source = Source(load)
    process = subprocess.Popen(
        [sys.executable, '-m', 'diffusion_policy_ros.nodes.demo_recorder_node', '--ros-args',
         '--params-file', str(path)])
    try:
        deadline = time.monotonic() + READY_S

        def wait(predicate: Callable[[], Any]) -> None:
            while not predicate():
                if time.monotonic() > deadline or process.poll() is not None:
                    raise RuntimeError(f'no demo_recorder within {READY_S} s')
                rclpy.spin_once(source.node, timeout_sec=0.1)

        start, save, parameters_of = (
            source.node.create_client(kind, f'/demo_recorder/{name}') for kind, name in (
                (Trigger, 'start'), (SetBool, 'save'), (ListParameters, 'list_parameters')))
        wait(lambda: source.readers and parameters_of.service_is_ready())
        # Its answer shows that the recorder has found those before it, too: they are asked once.
        wait(asking(parameters_of, ListParameters.Request(), AGAIN_S))

        def call(client: Client, request: Any) -> str:
            future = client.call_async(request)
            rclpy.spin_until_future_complete(source.node, future, timeout_sec=ANSWER_S)
            if not future.done() or not future.result().success:
                raise RuntimeError(f'{client.srv_name}: {future.result()}')
            return future.result().message

        while True:  # until the recorder, too, has found every publisher
            try:
                call(start, Trigger.Request())
                break
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                rclpy.spin_once(source.node, timeout_sec=0.1)
        late_s = source.run()
        memory_mb = _peak_mb(process.pid)
        began = time.monotonic()
        call(save, SetBool.Request(data=True))
        facts = {'largest_lateness_s': round(late_s, 3), 'peak_memory_mb': memory_mb,
                 'save_s': round(time.monotonic() - began, 2)}
    finally:
        process.terminate()
        process.wait(ANSWER_S)
        source.close()
    bag, = (folder / 'bags').iterdir()
    found = compare(bag, source.sent)
    return bag, {**facts, 'left_out': load.messages - found['sent'], **found}


def compare(bag: Path, sent: dict[str, list[bytes]]) -> dict[str, Any]:
    """Return how many messages of each topic were sent, and how many are missing in the bag."""
    from rosbags.rosbag2 import Reader

    found: dict[str, list[bytes]] = {name: [] for name in sent}
    with Reader(bag) as reader:
        for connection, _, data in reader.messages():
            if connection.topic in found:
                found[connection.topic].append(digest(data))
    kept = {name: set(digests) for name, digests in found.items()}
    missing = {name: len(digests) - len(kept[name].intersection(digests))
               for name, digests in sent.items()}
    in_order = all(found[name] == [one for one in digests if one in kept[name]]
                   for name, digests in sent.items())
    return {'sent': sum(map(len, sent.values())), 'missing': sum(missing.values()),
            'missing_by_topic': {name: n for name, n in missing.items() if n},
            'in_order': in_order}


def _peak_mb(pid: int) -> int:
    for line in Path(f'/proc/{pid}/status').read_text().splitlines():
        if line.startswith('VmHWM:'):
            return int(line.split()[1]) // 1024
    return 0


def measure(load: Load, storage: str, output: Path | None) -> dict[str, Any]:
    """Record a load in a ROS domain of its own; print, write and return what was measured."""
    if output:
        check_writable(output)
    domain_id, lock = own_domain()
    os.environ['ROS_DOMAIN_ID'] = str(domain_id)
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    import rclpy

    from diffusion_policy_ros.nodes import spin

    spin.init([])
    with tempfile.TemporaryDirectory(dir='.') as folder:
        bag, facts = record(load, Path(folder), image_storage=storage)
        size = sum(path.stat().st_size for path in bag.iterdir())
    facts['bag_mb'] = size >> 20
    for name, value in facts.items():
        print(f'{name}: {value}')
    if output:
        write_json(output, {
            'cores': os.cpu_count(), 'platform': platform.platform(),
            'rmw': rclpy.get_rmw_implementation_identifier(),
            'versions': {name: version(name) for name in PACKAGES}, **asdict(load),
            'storage': storage, **facts})
    rclpy.try_shutdown()
    lock.close()
    return facts


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.strip().split('\n\n')[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, value, text in (
            ('seconds', 60.0, 'how long to publish'), ('cameras', 2, 'raw cameras'),
            ('height', 480, 'pixels'), ('width', 640, 'pixels'),
            ('camera-hz', 30.0, 'rate of each camera'),
            ('arm-hz', 100.0, 'rate of each of the four arm topics')):
        parser.add_argument(f'--{name}', type=type(value), default=value, help=text)
    parser.add_argument('--storage', choices=('raw', 'jpeg'), default='raw',
                        help='how the recorder keeps images; jpeg is not compared')
    parser.add_argument('-o', '--output', type=Path, help='JSON file to write')
    options = vars(parser.parse_args(arguments))
    storage, output = options.pop('storage'), options.pop('output')
    try:
        facts = measure(Load(**options), storage, output)
    except (ValueError, OSError) as error:
        sys.exit(f'benchmark_recording: {error}')
    sys.exit(1 if facts['missing'] and storage == 'raw' else 0)


if __name__ == '__main__':
    main()
