"""What sim_runner counts."""

from __future__ import annotations

from geometry_msgs.msg import PoseStamped
import numpy as np
import pytest
from rclpy.node import Node
from std_msgs.msg import Bool
from trajectory_msgs.msg import MultiDOFJointTrajectory

from diffusion_policy_ros.datatypes import Chunk
from diffusion_policy_ros.nodes import messages
from diffusion_policy_ros.nodes.qos import RELIABLE
from diffusion_policy_ros.nodes.sim_watch import Watch
from diffusion_policy_ros.sim.rollout import EPISODE_GAP_NS, FIRST_STAMP_NS
from diffusion_policy_ros.sim.tasks import STEP_NS


def chunk_at(stamp_ns):
    return Chunk(stamp_ns, np.arange(3) * STEP_NS, np.zeros((3, 3)), frame_id='base')


class Bridge:
    """What a watch listens to."""

    def __init__(self, probe):
        self.probe = probe
        self.node = probe.add(Node('watching'))
        self.watch = Watch(self.node, [])
        self._flags = [probe.publisher(Bool, f'metaworld_bridge/{name}', RELIABLE)
                       for name in ('success', 'truncated')]
        self._poses = probe.publisher(PoseStamped, 'ee_pose', RELIABLE)

    def begin(self):
        for flag in self._flags:
            flag.publish(Bool(data=False))
        self.probe.wait(lambda: self.watch.under_way, 'the episode')

    def show(self, stamp_ns):
        self._poses.publish(PoseStamped(header=messages.to_header(stamp_ns, 'base')))

    def show_and_wait(self, stamp_ns):
        self.show(stamp_ns)
        self.probe.wait(lambda: self.watch.newest_ns == stamp_ns, 'the tick')


@pytest.fixture()
def bridge(probe):
    result = Bridge(probe)
    yield result
    result.node.destroy_node()


def test_an_episode_has_all_its_ticks_in_whatever_order_its_topics_come(bridge):
    first_ns = FIRST_STAMP_NS
    for _ in range(2):
        bridge.show_and_wait(first_ns)  # before the flags
        bridge.begin()
        bridge.show_and_wait(first_ns + 5 * STEP_NS)
        assert (bridge.watch.first_ns, bridge.watch.ticks) == (first_ns, 5)
        bridge.watch.forget()
        bridge.show(first_ns + 5 * STEP_NS)  # of the last episode, shown again
        first_ns += 6 * STEP_NS + EPISODE_GAP_NS


def test_a_chunk_that_lockstep_sends_again_counts_once(bridge, probe):
    watch = bridge.watch
    chunks = probe.publisher(MultiDOFJointTrajectory, 'ee_trajectory', RELIABLE)
    bridge.begin()
    for tick in (1, 2):
        bridge.show_and_wait(tick * STEP_NS)
    for tick in (1, 1, 2):
        chunks.publish(messages.chunk_messages(chunk_at(tick * STEP_NS))[0])
    probe.wait(lambda: watch.chunks and watch.chunks[-1].stamp_ns == 2 * STEP_NS, 'the last chunk')
    assert [chunk.stamp_ns for chunk in watch.chunks] == [STEP_NS, 2 * STEP_NS]
    assert len(watch.chunk_ms) == len(watch.chunk_ages_ns) == 2
