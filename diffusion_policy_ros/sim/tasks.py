"""
MetaWorld's 50 tasks by name, and the constants that they share.

Nothing heavy is imported here, so that a wrong task name is refused before MetaWorld is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

STEP_NS = 12_500_000  # one tick: 5 MuJoCo steps of 2.5 ms, 80 Hz
MAX_STEPS = 500  # MetaWorld's own length of an episode
TICKS_AFTER_SUCCESS = 10  # that a demonstration goes on
VIEW_CAMERA = 'corner4'  # the outside view of films
ACTION_SCALE = 0.01  # metres that an action of 1 moves the mocap body in a tick

# How demonstrations were collected whose data set, an older one, does not say.
COLLECTED_BY_DEFAULT = {'start_offset': 0.0, 'ticks_after_success': TICKS_AFTER_SUCCESS,
                        'goal_offset': [0.0, 0.0, 0.0]}

FIRST_COLLECTION_SEED = 1_000_000  # below: evaluation, from here on: demonstrations

TASKS = (
    'assembly-v3', 'basketball-v3', 'bin-picking-v3', 'box-close-v3', 'button-press-topdown-v3',
    'button-press-topdown-wall-v3', 'button-press-v3', 'button-press-wall-v3', 'coffee-button-v3',
    'coffee-pull-v3', 'coffee-push-v3', 'dial-turn-v3', 'disassemble-v3', 'door-close-v3',
    'door-lock-v3', 'door-open-v3', 'door-unlock-v3', 'drawer-close-v3', 'drawer-open-v3',
    'faucet-close-v3', 'faucet-open-v3', 'hammer-v3', 'hand-insert-v3', 'handle-press-side-v3',
    'handle-press-v3', 'handle-pull-side-v3', 'handle-pull-v3', 'lever-pull-v3',
    'peg-insert-side-v3', 'peg-unplug-side-v3', 'pick-out-of-hole-v3', 'pick-place-v3',
    'pick-place-wall-v3', 'plate-slide-back-side-v3', 'plate-slide-back-v3', 'plate-slide-side-v3',
    'plate-slide-v3', 'push-back-v3', 'push-v3', 'push-wall-v3', 'reach-v3', 'reach-wall-v3',
    'shelf-place-v3', 'soccer-v3', 'stick-pull-v3', 'stick-push-v3', 'sweep-into-v3', 'sweep-v3',
    'window-close-v3', 'window-open-v3',
)

_MT10 = ('reach-v3', 'push-v3', 'pick-place-v3', 'door-open-v3', 'drawer-open-v3',
         'drawer-close-v3', 'button-press-topdown-v3', 'peg-insert-side-v3', 'window-open-v3',
         'window-close-v3')
_ML10 = ('reach-v3', 'push-v3', 'pick-place-v3', 'door-open-v3', 'drawer-close-v3',
         'button-press-topdown-v3', 'peg-insert-side-v3', 'window-open-v3', 'sweep-v3',
         'basketball-v3')
_ML10_TEST = ('drawer-open-v3', 'door-close-v3', 'shelf-place-v3', 'sweep-into-v3',
              'lever-pull-v3')
_ML45_TEST = ('bin-picking-v3', 'box-close-v3', 'hand-insert-v3', 'door-lock-v3',
              'door-unlock-v3')
TASK_SETS = {
    'MT10': _MT10, 'MT50': TASKS, 'ML10-train': _ML10, 'ML10-test': _ML10_TEST,
    'ML45-train': tuple(task for task in TASKS if task not in _ML45_TEST),
    'ML45-test': _ML45_TEST,
}
"""MetaWorld's benchmarks (Yu et al. 2019, section 4.3, in version 3 of the tasks)."""


def expand_tasks(names: Iterable[str]) -> tuple[str, ...]:
    """
    Return tasks and the members of task sets, each once, in the order named.

    Raises:
        ValueError: a name is neither; see `check_task`.
    """
    tasks: dict[str, None] = {}
    for name in names:
        tasks |= dict.fromkeys(TASK_SETS.get(name) or (check_task(name),))
    return tuple(tasks)


def data_set_name(task: str) -> str:
    """Return the name of a task's files: `drawer-open-v3` is `drawer_open`."""
    return task.removesuffix('-v3').replace('-', '_')


def check_task(name: str) -> str:
    """
    Return the task's name.

    Raises:
        ValueError: in one line that lists the closest names, when there is no such task.
    """
    if name in TASKS:
        return name
    close = get_close_matches(str(name), TASKS, n=3)
    hint = f'did you mean {" or ".join(close)}?' if close else f'expected one like {TASKS[0]}'
    raise ValueError(f'task {name!r} is none of the {len(TASKS)} MetaWorld tasks: {hint}')


def check_collection_seed(seed: int) -> int:
    """
    Return a seed that a demonstration may use.

    Raises:
        ValueError: when it is one of the evaluation's.
    """
    if seed < FIRST_COLLECTION_SEED:
        raise ValueError(f'seed {seed} belongs to the evaluation, expected at least '
                         f'{FIRST_COLLECTION_SEED} for demonstrations')
    return seed


def check_evaluation_seed(seed: int) -> int:
    """
    Return a seed that an evaluation may use.

    Raises:
        ValueError: when a demonstration may have used it, or it is negative.
    """
    if not 0 <= seed < FIRST_COLLECTION_SEED:
        raise ValueError(f'seed {seed} is no evaluation seed, expected 0 to '
                         f'{FIRST_COLLECTION_SEED - 1} (demonstrations use those above)')
    return seed


def ticks_left(left: int | None, success: bool, ticks_after_success: int) -> int | None:
    """
    Return the ticks that an episode has left after one more; None before its first success.

    Args:
        left: what was left before this tick.
        success: the task's own measure, now.
        ticks_after_success: that it goes on after the first success.
    """
    if left is not None:
        return left - 1
    return ticks_after_success if success else None
