"""How fast a simulated arm may go in real time, so that the policy keeps up with it."""

from __future__ import annotations

from collections.abc import Callable

SLOWEST, FASTEST = 1 / 32, 16.0  # slower, and a tick takes as long as ee_pose may be silent
RESOLUTION = 1.1  # the answer is at most this much too small


def largest_factor(holds: Callable[[float], bool], start: float = 1.0) -> float | None:
    """
    Return the largest real-time factor that is held, within `RESOLUTION`; None if none is.

    From `start` it halves or doubles until one factor holds and one does not, then closes in:

        holds up to 0.4:   1 no, 0.5 no, 0.25 yes, 0.354 yes, 0.42 no, 0.386 yes -> 0.386

    Args:
        holds: tries a factor on the machine; assumed to hold for every smaller one, too.
        start: the first factor to try.
    """
    held, missed, factor = None, None, start
    while held is None or missed is None:
        if holds(factor):
            held = factor
            if factor >= FASTEST:
                return held
            factor *= 2
        else:
            missed = factor
            if factor <= SLOWEST:
                return None
            factor /= 2
    while missed / held > RESOLUTION:
        factor = (held * missed) ** 0.5
        if holds(factor):
            held = factor
        else:
            missed = factor
    return held


def keeps_up(stamps_ns: list[int], ages_ns: list[int], period_ns: int, budget_ns: int,
             tolerance_ns: int) -> bool:
    """
    Return whether no chunk was late.

    Args:
        stamps_ns: of the chunks, in order.
        ages_ns: of each when it arrived, in sim time.
        period_ns: time between two chunks.
        budget_ns: greatest age, after which the plan before it and its reserve are used up.
        tolerance_ns: added to the period, since a chunk is due at the first tick after its time.
    """
    gaps = [later - sooner for sooner, later in zip(stamps_ns, stamps_ns[1:])]
    return max(ages_ns) <= budget_ns and max(gaps) <= period_ns + tolerance_ns
