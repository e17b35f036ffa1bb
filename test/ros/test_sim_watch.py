"""What sim_runner counts."""

from __future__ import annotations

from geometry_msgs.msg import PoseStamped
import numpy as np
import pytest
from rclpy.node import Node
from std_msgs.msg import Int64MultiArray
from trajectory_msgs.msg import MultiDOFJointTrajectory

from diffusion_policy_ros.datatypes import Chunk
from diffusion_policy_ros.nodes import messages
from diffusion_policy_ros.nodes.outcome import Outcome, TOPIC
from diffusion_policy_ros.nodes.qos import LATCHED, READINGS
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
        self._episode = probe.publisher(Int64MultiArray, TOPIC, LATCHED)
        self._poses = probe.publisher(PoseStamped, 'ee_pose', READINGS)
        self._chunks = probe.publisher(MultiDOFJointTrajectory, 'ee_trajectory', READINGS)

    def say(self, outcome):
        self._episode.publish(outcome.message())
        self.probe.wait(lambda: self.watch.outcome == outcome, 'the outcome')

    def show(self, stamp_ns):
        self._poses.publish(PoseStamped(header=messages.to_header(stamp_ns, 'base')))

    def wait_for_tick(self, stamp_ns):
        self.probe.wait(lambda: self.watch.newest_ns == stamp_ns, 'the tick')

    def predict(self, stamp_ns):
        self._chunks.publish(messages.chunk_messages(chunk_at(stamp_ns))[0])

    def pass_all_on(self):
        """Wait until all that was published before has been received."""
        for publisher in (self._episode, self._poses, self._chunks):
            assert publisher.wait_for_all_acked()
        received = []
        self.probe.node.create_timer(0.1, lambda: received.append(1))
        self.probe.wait(lambda: len(received) > 3, 'a few spins')


@pytest.fixture()
def bridge(probe):
    result = Bridge(probe)
    yield result
    result.node.destroy_node()


def test_an_episode_has_all_its_ticks_in_whatever_order_its_topics_come(bridge):
    watch, first_ns = bridge.watch, FIRST_STAMP_NS
    for _ in range(2):
        bridge.show(first_ns)
        bridge.predict(first_ns)
        bridge.pass_all_on()
        assert (watch.outcome, watch.newest_ns) == (None, 0)
        bridge.say(Outcome(first_ns))
        bridge.wait_for_tick(first_ns)
        bridge.show(first_ns + 5 * STEP_NS)
        bridge.wait_for_tick(first_ns + 5 * STEP_NS)
        over = Outcome(first_ns, success_tick=6, last_tick=6)
        bridge.say(over)
        assert (watch.ticks, len(watch.chunks), len(watch.chunk_ms)) == (5, 1, 1)
        watch.forget()
        bridge.show(first_ns + 5 * STEP_NS)  # of the last episode, shown again
        bridge.predict(first_ns + 4 * STEP_NS)
        bridge._episode.publish(over.message())
        first_ns += 6 * STEP_NS + EPISODE_GAP_NS


def test_a_word_that_is_none_is_refused_by_name():
    with pytest.raises(ValueError, match='data: 2 values, expected 5'):
        Outcome.read(Int64MultiArray(data=[1, 2]))


def test_a_chunk_that_lockstep_sends_again_counts_once(bridge, probe):
    watch = bridge.watch
    bridge.say(Outcome(STEP_NS))
    for tick in (1, 2):
        bridge.show(tick * STEP_NS)
        bridge.wait_for_tick(tick * STEP_NS)
    for tick in (1, 1, 2):
        bridge.predict(tick * STEP_NS)
    probe.wait(lambda: watch.chunks and watch.chunks[-1].stamp_ns == 2 * STEP_NS, 'the last chunk')
    assert [chunk.stamp_ns for chunk in watch.chunks] == [STEP_NS, 2 * STEP_NS]
    assert len(watch.chunk_ms) == len(watch.chunk_ages_ns) == 2
