"""What a policy sees in training, from a bag, is what it saw live while the bag was recorded."""

from __future__ import annotations

import time

import convert_bags
from geometry_msgs.msg import PoseStamped
import numpy as np
import pytest
from rosbags.rosbag2 import Reader
from rosbags.typesys import get_typestore, Stores
from sensor_msgs.msg import Image, JointState
from std_srvs.srv import SetBool, Trigger
from tiny_policy import DT_NS, make_policy, SIZE, SOURCE
import torch
import yaml

from diffusion_policy_ros.control import readings
from diffusion_policy_ros.data.replay_buffer import load_replay_buffer
from diffusion_policy_ros.data.window_data import WindowData
from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER, NS_PER_S, ObservationWindow
from diffusion_policy_ros.nodes import messages
from diffusion_policy_ros.nodes.qos import PICTURES, READINGS
from diffusion_policy_ros.policy.checkpoint import save_checkpoint
from diffusion_policy_ros.policy.diffusion_policy import episode_noise
from diffusion_policy_ros.typed import to_mapping

FRAME = 'base'
SECONDS = 2.0
SLOWER = 4  # than the stamps: the policy's queue holds a third of a second of pictures
LATE_NS = NS_PER_S // 50
STORE = get_typestore(Stores.ROS2_JAZZY)


def sensors(rng, seconds, first_s=10.0):
    """Return (stamp, topic, message) of a camera, poses, a gripper and targets, by stamp."""
    found = []

    def stamps(rng, rate_hz, offset_s):
        count, period = round(seconds * rate_hz), NS_PER_S / rate_hz
        jitter = rng.uniform(0, 0.1 * period, count)
        times = (first_s + offset_s) * NS_PER_S + period * np.arange(count) + jitter
        return times.astype(np.int64).tolist()

    for stamp_ns in stamps(rng, 30, 0.013):
        pixels = rng.integers(0, 256, (SOURCE, SOURCE, 3), np.uint8)
        found.append((stamp_ns, 'wrist/image_raw', messages.image_message(pixels, stamp_ns, 'o')))
    for stamp_ns in stamps(rng, 100, 0.0):
        found.append((stamp_ns, 'ee_pose', messages.pose_message(
            rng.uniform(-0.5, 0.5, 3), [0, 0, 0, 1], stamp_ns, FRAME)))
    for stamp_ns in stamps(rng, 40, 0.004):
        found.append((stamp_ns, 'gripper_state',
                      messages.gripper_state_message(rng.uniform(), stamp_ns)))
    for stamp_ns in stamps(rng, 50, 0.007):
        found.append((stamp_ns, 'target_pose', messages.pose_message(
            rng.uniform(-0.5, 0.5, 3), [0, 0, 0, 1], stamp_ns, FRAME)))
        found.append((stamp_ns, 'target_gripper',
                      messages.gripper_target_message(rng.uniform(-1, 1), stamp_ns)))
    return sorted(found, key=lambda item: item[0])


KINDS = {'wrist/image_raw': Image, 'ee_pose': PoseStamped, 'gripper_state': JointState,
         'target_pose': PoseStamped, 'target_gripper': JointState}


def show(probe, publishers, found):
    """Publish `SLOWER` than the stamps, without a burst, and wait until all is through."""
    began, first_ns = time.monotonic_ns(), found[0][0]

    def elapsed_ns():
        return time.monotonic_ns() - began

    for stamp_ns, name, message in found:
        due_ns = SLOWER * (stamp_ns - first_ns)
        probe.wait(lambda due_ns=due_ns: elapsed_ns() >= due_ns, 'its time')
        publishers[name].publish(message)
        late_ns = elapsed_ns() - due_ns
        began += late_ns * (late_ns > LATE_NS)  # no burst, which would overflow queues
    last_ns = elapsed_ns()
    probe.wait(lambda: elapsed_ns() > last_ns + NS_PER_S, 'the last chunk')


def record(probe, start, tmp_path, checkpoint, arm_yaml):
    """Show the sensors to policy and recorder; return the bag."""
    start('policy_node', 'policy', {'checkpoint': checkpoint, 'arm': arm_yaml, 'seed': 5,
                                    'input_reliability': 'reliable', 'tolerance_s': 0.075})
    start('demo_recorder_node', 'demo_recorder', {
        'folder': str(tmp_path / 'bags'), 'cameras': ['wrist'], 'task': 'anything'})
    publishers = {name: probe.publisher(kind, name, PICTURES if kind is Image else READINGS,
                                        1 if 'target' in name else 2)
                  for name, kind in KINDS.items()}
    for node in ('policy', 'demo_recorder'):
        probe.meet(node)
    show(probe, publishers, sensors(np.random.default_rng(1), 0.5))  # so that all have met
    probe.wait(lambda: probe.call(Trigger, 'demo_recorder/start').success, 'the recorder')
    assert probe.call(Trigger, 'policy/reset').success
    show(probe, publishers, sensors(np.random.default_rng(0), SECONDS, 100.0))
    answer = probe.call(SetBool, 'demo_recorder/save', SetBool.Request(data=True))
    assert answer.success, answer.message
    return tmp_path / 'bags/episode_000000'


def recorded_chunks(bag):
    """Return the chunks that were published, by stamp, motion and gripper joined."""
    halves = {'/ee_trajectory': {}, '/gripper_trajectory': {}}
    read = {'/ee_trajectory': readings.motion_half, '/gripper_trajectory': readings.gripper_half}
    with Reader(bag) as reader:
        for connection, _, data in reader.messages():
            if connection.topic in halves:
                half = read[connection.topic](STORE.deserialize_cdr(data, connection.msgtype))
                halves[connection.topic][half.stamp_ns] = half
    motion, gripper = halves.values()
    return {stamp: readings.join_chunk(motion[stamp], gripper[stamp]) for stamp in motion}


@pytest.fixture()
def arm_yaml(tmp_path):
    path = tmp_path / 'arm.yaml'
    path.write_text(yaml.safe_dump({'base_frame': FRAME, 'ee_frame': 'hand'}))
    return str(path)


def convert(bag, config, arm_yaml, path, images):
    """Convert a bag for a policy; return its windows."""
    values = {'policy': to_mapping(config), 'training': {'steps': 1, 'episodes': 1}}
    path.with_suffix('.yaml').write_text(yaml.safe_dump(values))
    with pytest.raises(SystemExit) as end:
        convert_bags.main([str(bag), '-o', str(path), '-c', str(path.with_suffix('.yaml')),
                           '--arm', arm_yaml, '--images', images, '--workers', '1'])
    assert end.value.code == 0
    return WindowData(load_replay_buffer(path, ('wrist',)), config)


def test_windows_from_a_bag_are_those_of_the_live_policy(probe, start, tmp_path, arm_yaml):
    policy = make_policy()
    save_checkpoint(tmp_path / 'checkpoint', policy, {}, torch.float32)
    bag = record(probe, start, tmp_path, str(tmp_path / 'checkpoint'), arm_yaml)
    chunks = recorded_chunks(bag)
    assert len(chunks) >= SECONDS * NS_PER_S / (4 * DT_NS) - 2

    data = convert(bag, policy.config, arm_yaml, tmp_path / 'exact.zarr', 'png')
    buffer, threads = data.buffer, torch.get_num_threads()
    trained = set(buffer.arrays['stamp_ns'][data.windows.observed[:, -1]].tolist())
    assert len(trained & chunks.keys()) > len(chunks) / 2
    # A message that is late on its way makes other stamps an observation's time, too.
    buffer.arrays['is_observation'][:] = True
    windows = {int(buffer.arrays['stamp_ns'][observed[-1]]): observed
               for observed in WindowData(buffer, policy.config).windows.observed}
    first_ns = int(buffer.arrays['stamp_ns'][0])
    torch.set_num_threads(1)  # as the node
    try:
        for stamp_ns, live in chunks.items():
            rows = windows[stamp_ns]
            window = ObservationWindow(stamp_ns, {
                'wrist': buffer.images('wrist', rows), EE_POSE: buffer.arrays[EE_POSE][rows],
                GRIPPER: buffer.arrays[GRIPPER][rows]}, FRAME)
            noise = episode_noise(5, stamp_ns - first_ns, policy.noise_shape)[None]
            again = policy.predict([window], noise)[0]
            np.testing.assert_array_equal(again.position, live.position)
            np.testing.assert_array_equal(again.gripper, live.gripper)
    finally:
        torch.set_num_threads(threads)

    jpeg = convert(bag, policy.config, arm_yaml, tmp_path / 'jpeg.zarr', 'jpeg').buffer
    assert jpeg.arrays['wrist'].shape == buffer.arrays['wrist'].shape == (
        len(jpeg.arrays['wrist']), SIZE, SIZE, 3)
    apart = np.abs(jpeg.arrays['wrist'].astype(int) - buffer.arrays['wrist'])
    assert 0 < apart.max()
    print(f'JPEG of noise: largest difference of a pixel {apart.max()}, mean {apart.mean():.1f}')
