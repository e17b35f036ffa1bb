"""The two halves of one stamp, motion and gripper, that come as two messages."""

from __future__ import annotations

from typing import Any

MOTION = 'motion'
GRIPPER_HALF = 'gripper'


class StampPairing:
    """
    Join halves by their stamp, in whatever order they come.

    Attributes:
        dropped: halves given up, because newer stamps came or their half was sent twice.
    """

    def __init__(self, limit: int = 4) -> None:
        """Keep at most `limit` stamps that lack a half; the first to arrive is dropped first."""
        if limit < 1:
            raise ValueError(f'limit is {limit}, expected at least 1')
        self._limit = limit
        self._waiting: dict[int, tuple[str, Any]] = {}
        self.dropped = 0

    def push(self, half: str, stamp_ns: int, value: Any) -> tuple[Any, Any] | None:
        """
        Take one half; return (motion, gripper) once both are here.

        Raises:
            ValueError: a half by another name than 'motion' or 'gripper'.
        """
        if half not in (MOTION, GRIPPER_HALF):
            raise ValueError(f'half is {half!r}, expected {MOTION!r} or {GRIPPER_HALF!r}')
        other = self._waiting.pop(stamp_ns, None)
        if other is not None and other[0] != half:
            return (value, other[1]) if half == MOTION else (other[1], value)
        self.dropped += other is not None
        self._waiting[stamp_ns] = (half, value)
        if len(self._waiting) > self._limit:
            # By arrival, not by stamp: halves that a clock set back left behind go first.
            del self._waiting[next(iter(self._waiting))]
            self.dropped += 1
        return None

    def reset(self) -> None:
        """Forget the unpaired halves; `dropped` goes on."""
        self._waiting.clear()
