"""What sim_runner counts."""

from __future__ import annotations

from geometry_msgs.msg import PoseStamped
import numpy as np
from rclpy.node import Node
from std_msgs.msg import Bool
from trajectory_msgs.msg import MultiDOFJointTrajectory

from diffusion_policy_ros.datatypes import Chunk
from diffusion_policy_ros.nodes import messages
from diffusion_policy_ros.nodes.qos import RELIABLE
from diffusion_policy_ros.nodes.sim_watch import Watch
from diffusion_policy_ros.sim.tasks import STEP_NS


def chunk_at(stamp_ns):
    return Chunk(stamp_ns, np.arange(3) * STEP_NS, np.zeros((3, 3)), frame_id='base')


def test_a_chunk_that_lockstep_sends_again_counts_once(probe):
    node = probe.add(Node('watching'))
    watch = Watch(node, [])
    flags = [probe.publisher(Bool, f'metaworld_bridge/{name}', RELIABLE)
             for name in ('success', 'truncated')]
    poses = probe.publisher(PoseStamped, 'ee_pose', RELIABLE)
    chunks = probe.publisher(MultiDOFJointTrajectory, 'ee_trajectory', RELIABLE)
    for flag in flags:
        flag.publish(Bool(data=False))
    probe.wait(lambda: watch.under_way, 'the episode')
    for tick in (1, 2):
        poses.publish(PoseStamped(header=messages.to_header(tick * STEP_NS, 'base')))
        probe.wait(lambda tick=tick: watch.newest_ns == tick * STEP_NS, 'the tick')
    for tick in (1, 1, 2):
        chunks.publish(messages.chunk_messages(chunk_at(tick * STEP_NS))[0])
    probe.wait(lambda: watch.chunks and watch.chunks[-1].stamp_ns == 2 * STEP_NS, 'the last chunk')
    assert [chunk.stamp_ns for chunk in watch.chunks] == [STEP_NS, 2 * STEP_NS]
    assert len(watch.chunk_ms) == len(watch.chunk_ages_ns) == 2
    node.destroy_node()
