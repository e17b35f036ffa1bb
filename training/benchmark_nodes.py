#!/usr/bin/env python3
"""
Measure what the nodes cost: `benchmark_nodes.py -o results/benchmark_nodes.json`.

The same episodes run over topics (three processes, no video) and by evaluate.py's loop at batch 1
with every image drawn, in turn, several times, and the ratio is taken pair by pair. Then the
policy process's memory over many chunks, and how soon the executor and the bridge answer their
services. Use a quiet machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import json
import os
from pathlib import Path
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import evaluate
import numpy as np
from result_files import read_json
import torch
from whole_output import check_writable, write_json

from diffusion_policy_ros.policy.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
NODES = ('chunk_executor', 'metaworld_bridge')
NO_SUCCESS_TASK = 'reach-wall-v3'  # episodes of full length, for as many chunks as possible
CHUNKS_AN_EPISODE = 32
START_UPS = 11


def over_topics(checkpoint: Path, task: str, seeds: range, folder: Path) -> dict[str, Any]:
    """Run episodes as three processes; return the run's summary and the policy's memory in MB."""
    process = subprocess.Popen(
        [sys.executable, '-m', 'diffusion_policy_ros.nodes.supervisor', '--checkpoint', checkpoint,
         '--task', task, '--episodes', str(len(seeds)), '--seed', str(seeds.start), '--no-video',
         '--out', folder], stdout=subprocess.DEVNULL)
    memory: list[float] = []
    watcher = threading.Thread(target=_watch_memory, args=(process, memory), daemon=True)
    watcher.start()
    if process.wait() != 0:
        raise RuntimeError(f'the run over topics ended with exit code {process.returncode}, '
                           f'its logs are in {folder}/log')
    watcher.join()
    return {**json.loads((folder / 'summary.json').read_text()), 'memory_mb': memory}


def _watch_memory(supervisor: subprocess.Popen, memory: list[float]) -> None:
    while supervisor.poll() is None:
        children = Path(f'/proc/{supervisor.pid}/task/{supervisor.pid}/children')
        try:
            for child in children.read_text().split():
                if 'policy_node' in Path(f'/proc/{child}/cmdline').read_text():
                    status = Path(f'/proc/{child}/status').read_text()
                    memory.append(int(re.search(r'VmRSS:\s+(\d+)', status)[1]) / 1024)
        except (OSError, TypeError):
            pass  # the process ended while it was looked at
        time.sleep(0.5)


def without_ros(checkpoint: Path, task: str, seeds: range) -> float:
    """Run the same episodes by evaluate.py's loop at batch 1; return the seconds of all."""
    policy = load_checkpoint(checkpoint)
    torch.set_num_threads(1)  # as the policy node
    predict = evaluate.TimedPolicy(policy, noise_seed=0)
    marks = [0.0]

    def on_episode(episode: object) -> None:
        marks.append(time.perf_counter())

    # The first episode's start-up (simulator, first pictures) is not counted on either side.
    # Who watches sees every image, as who listens to the bridge does.
    evaluate.run(policy, task, range(seeds.start, seeds.stop), 1, predict, on_episode=on_episode,
                 on_tick=lambda *_: None)
    return marks[-1] - marks[1]


def start_up_s(name: str, service: str, folder: Path) -> float:
    """Return the seconds from a node's start until its service answers in the graph."""
    import rclpy
    from std_srvs.srv import Trigger

    from diffusion_policy_ros.nodes import spin
    from diffusion_policy_ros.nodes.bringup import ARM
    spin.init([])
    node = rclpy.create_node('benchmark')
    client = node.create_client(Trigger, service)
    start = time.perf_counter()
    with (folder / f'{name}.log').open('w') as log:
        process = subprocess.Popen(
            [sys.executable, '-m', 'diffusion_policy_ros.nodes.child', f'{name}_node',
             '--ros-args', '-r', f'__node:={name}', '-p', f'arm:={ARM}'], stdout=log, stderr=log)
    try:
        if not client.wait_for_service(timeout_sec=60):
            raise RuntimeError(f'{name}: {service} did not come up in 60 s')
        return time.perf_counter() - start
    finally:
        process.terminate()
        process.wait()
        node.destroy_node()
        rclpy.try_shutdown()


def imports_torch(name: str) -> bool:
    """Return whether a node's module imports PyTorch."""
    code = (f'import sys, diffusion_policy_ros.nodes.{name}_node; '
            'raise SystemExit("torch" in sys.modules)')
    return subprocess.run([sys.executable, '-c', code], check=False).returncode != 0


def compare(checkpoint: Path, pairs: int, seeds: range, folder: Path) -> dict[str, Any]:
    """Run the same episodes over topics and without ROS, in turn."""
    ratios, task = [], 'drawer-open-v3'
    for pair in range(pairs):
        summary = over_topics(checkpoint, task, seeds, folder / f'pair{pair}')
        topics_s = sum(episode['wall_s'] for episode in summary['episodes'][1:])
        alone_s = without_ros(checkpoint, task, seeds)
        ratios.append(topics_s / alone_s)
        print(f'pair {pair + 1}: over topics {topics_s:.2f} s, without ROS {alone_s:.2f} s, '
              f'ratio {ratios[-1]:.3f}; chunk {summary["chunk_ms"]["median"]:.1f} ms', flush=True)
    median = float(np.median(ratios))
    print(f'wall time over topics / without ROS: {median:.3f} (median of {pairs}, {len(seeds)} '
          'episodes each, the first left out)')
    return {'task': task, 'episodes': len(seeds), 'ratios': ratios, 'ratio_median': median}


def watch_memory(checkpoint: Path, chunks: int, folder: Path) -> dict[str, Any]:
    """Let the policy predict that many chunks, and watch its memory."""
    episodes = -(-chunks // CHUNKS_AN_EPISODE)
    summary = over_topics(checkpoint, NO_SUCCESS_TASK, range(episodes), folder / 'memory')
    memory, count = summary['memory_mb'], summary['chunk_ms']['n']
    growth = memory[-2] - memory[len(memory) // 4]
    print(f'policy process: {max(memory):.0f} MB at most over {count} chunks, growth '
          f'{growth:+.1f} MB over the last three quarters')
    return {'chunks': count, 'memory_mb_max': max(memory), 'memory_mb_growth': growth}


def time_start_up(folder: Path) -> dict[str, Any]:
    """Start the light nodes several times each."""
    result: dict[str, Any] = {}
    for name in NODES:
        seconds = [start_up_s(name, f'{name}/reset', folder) for _ in range(START_UPS)]
        result |= {f'{name}_start_s': seconds, f'{name}_imports_torch': imports_torch(name)}
        print(f'{name}: answers after {np.median(seconds):.2f} s (median of {START_UPS}, '
              f'{max(seconds):.2f} s at most), '
              f'imports torch: {result[f"{name}_imports_torch"]}')
    return result


def measure(options: argparse.Namespace) -> None:
    """Measure, print and write what the command line asks for."""
    result: dict[str, Any] = {'cores': os.cpu_count(), 'platform': platform.platform()}
    if options.output:
        check_writable(options.output)
        if options.output.exists():
            result = {**read_json(options.output), **result}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options.pairs:
            result |= compare(options.checkpoint, options.pairs, range(options.episodes), folder)
        if options.chunks:
            result |= watch_memory(options.checkpoint, options.chunks, folder)
        result |= time_start_up(folder)
    if options.output:
        write_json(options.output, result)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.strip().split('\n\n')[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--checkpoint', type=Path,
                        default=ROOT / 'config/checkpoints/drawer_open')
    parser.add_argument('--episodes', type=int, default=10, help='episodes of one run')
    parser.add_argument('--pairs', type=int, default=3,
                        help='runs over topics and without ROS; 0 for none')
    parser.add_argument('--chunks', type=int, default=1000,
                        help='chunks for the memory; 0 for none')
    parser.add_argument('-o', '--output', type=Path,
                        help='JSON file to write; what is there of parts left out stays')
    options = parser.parse_args(arguments)
    try:
        measure(options)
    except (ValueError, OSError) as error:
        sys.exit(f'benchmark_nodes: {error}')


if __name__ == '__main__':
    main()
