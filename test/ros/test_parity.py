"""The nodes over DDS and evaluate.py, without ROS, send the same targets and end alike."""

from __future__ import annotations

from collections.abc import Callable
import json
from pathlib import Path

import evaluate
from geometry_msgs.msg import PoseStamped
import numpy as np
import torch

from diffusion_policy_ros.control import readings
from diffusion_policy_ros.nodes.bringup import metaworld_nodes, SimSettings
from diffusion_policy_ros.policy.checkpoint import load_checkpoint
from diffusion_policy_ros.sim.rollout import EPISODE_GAP_NS, FIRST_STAMP_NS
from diffusion_policy_ros.sim.tasks import STEP_NS

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / 'config/checkpoints/drawer_open'
TASK, SEEDS = 'drawer-open-v3', (300, 301)


def test_same_targets_and_success_as_without_ros(
        start: Callable, probe: object, tmp_path: Path) -> None:
    targets = probe.collect(PoseStamped, 'target_pose', qos=2000)
    nodes = metaworld_nodes(SimSettings(
        TASK, str(CHECKPOINT), episodes=len(SEEDS), seed=SEEDS[0], video=False,
        out=str(tmp_path / 'run')))
    processes = {}
    for spec in nodes:
        if spec.executable == 'sim_runner':
            probe.meet('chunk_executor')
        processes[spec.executable] = start(spec.module, spec.executable, spec.parameters)
    probe.wait(lambda: processes['sim_runner'].exit_code is not None, "the run's end", 180)
    assert processes['sim_runner'].exit_code == 0
    summary = json.loads((tmp_path / 'run/summary.json').read_text())

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        policy = load_checkpoint(CHECKPOINT)
        episodes = evaluate.run(policy, TASK, SEEDS, 1, evaluate.TimedPolicy(policy, noise_seed=0))
    finally:
        torch.set_num_threads(threads)

    sent = {readings.stamp_ns(target.header): target.pose.position for target in targets}
    stamp_ns = FIRST_STAMP_NS
    for episode in episodes:
        expected = np.array(episode.targets)[:, :3]
        stamps = stamp_ns + STEP_NS * np.arange(episode.steps)
        received = np.array([[sent[stamp].x, sent[stamp].y, sent[stamp].z] for stamp in stamps])
        np.testing.assert_allclose(received, expected, atol=1e-6)
        stamp_ns += EPISODE_GAP_NS + STEP_NS * episode.steps
    assert len(sent) == sum(episode.steps for episode in episodes)
    assert summary['success'] == [episode.success for episode in episodes] == [True, True]
    assert summary['seeds'] == list(SEEDS)
