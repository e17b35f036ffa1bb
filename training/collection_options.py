"""What collect_demos.py is asked for: its command line, and what the data depend on."""

from __future__ import annotations

import argparse
from pathlib import Path

from expert_episodes import CollectConfig

from diffusion_policy_ros.sim.tasks import (
    expand_tasks, FIRST_COLLECTION_SEED, TASK_SETS, TICKS_AFTER_SUCCESS,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command line takes."""
    parser.add_argument('--task', required=True, nargs='+',
                        help=f'MetaWorld tasks, like drawer-open-v3, or {", ".join(TASK_SETS)}')
    parser.add_argument('--episodes', type=int, default=250,
                        help='successful episodes to keep of each task')
    parser.add_argument('--cameras', nargs='*', default=['arm', 'wrist'])
    parser.add_argument('--source-size', type=int, default=224,
                        help='pixels a side that are drawn')
    parser.add_argument('--size', type=int, default=96, help='pixels a side that are kept')
    parser.add_argument('--renderer', default='plain', help='picture settings')
    parser.add_argument('--seed-start', type=int, default=FIRST_COLLECTION_SEED,
                        help='first seed that is tried')
    parser.add_argument('--ticks-after-success', type=int, default=TICKS_AFTER_SUCCESS,
                        help='ticks that an episode goes on after its first success')
    parser.add_argument('--start-offset', type=float, default=0.0, metavar='METRES',
                        help='by which the hand begins elsewhere along each axis (standard '
                        'deviation), so that its place does not tell that of the goal')
    parser.add_argument('--goal-offset', type=float, nargs=3, default=[0.0, 0.0, 0.0],
                        metavar=('X', 'Y', 'Z'),
                        help='metres from the goal to where the expert believes it to be; that of '
                        'reach-v3 brings the hand there, though the fingertips count, 0.045 lower')
    parser.add_argument('--workers', type=int, default=2, help='simulations in parallel')
    parser.add_argument('--ray', nargs='?', const='auto', metavar='ADDRESS', default=None,
                        help="run the simulations on a Ray cluster, this machine's by default")
    parser.add_argument('-o', '--output', type=Path, required=True,
                        help='zarr folder of one task, or a folder for <task>.zarr of each')


def configs_of(args: argparse.Namespace) -> list[CollectConfig]:
    """
    Return what the data of each task that the command line names depend on.

    Raises:
        ValueError: in one line.
    """
    return [CollectConfig(task, tuple(args.cameras), args.source_size, args.size, args.renderer,
                          args.seed_start, args.ticks_after_success, args.start_offset,
                          tuple(args.goal_offset))
            for task in expand_tasks(args.task)]
