"""Stands before every callback: a bad message is counted, named in the log, and no more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
import time
from typing import TypeVar

from diffusion_policy_ros.datatypes import NS_PER_S

Message = TypeVar('Message')

LOG_PERIOD_NS = 5 * NS_PER_S
RECENT_NS = 10 * NS_PER_S
"""For so long a refusal is something to warn of."""


class Guard:
    """
    Counts what is refused by topic and reason, and logs each pair at most every 5 s.

    Args:
        log: takes one line.
        steady_ns: the steady clock.

    Attributes:
        refused: '<topic> <reason>' to how often; the reason is a refusal's text up to its colon.
    """

    def __init__(self, log: Callable[[str], None],
                 steady_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._log, self._steady_ns = log, steady_ns
        self._log_again_ns: dict[str, int] = {}
        self._refused_ns: int | None = None
        self.refused: Counter[str] = Counter()

    @property
    def recent(self) -> bool:
        """Whether something was refused within the last 10 s."""
        return self._refused_ns is not None and self._steady_ns() - self._refused_ns < RECENT_NS

    def refuse(self, topic: str, problem: str, times: int | None = None) -> None:
        """
        Count a refusal, and log it if it is time.

        Args:
            topic: of what is refused.
            problem: 'reason: found, expected'.
            times: how often it was refused so far, where another counts that.
        """
        key = f'{topic} {problem.partition(":")[0]}'
        self._refused_ns = self._steady_ns()
        if times is None:
            self.refused[key] += 1
            times = self.refused[key]
        self.say(key, f'{topic} refused: {problem}', times)

    def say(self, key: str, line: str, times: int) -> bool:
        """
        Log a line that stands for `times` events, unless one of its key came 5 s before.

        Returns:
            Whether it was logged.
        """
        due = self.due(key)
        if due:
            self._log(f'{line} ({times} times so far)' if times > 1 else line)
        return due

    def due(self, key: str) -> bool:
        """Return whether it is time to log something about `key`: every 5 s at most."""
        now_ns = self._steady_ns()
        if now_ns < self._log_again_ns.get(key, now_ns):
            return False
        self._log_again_ns[key] = now_ns + LOG_PERIOD_NS
        return True

    def __call__(self, topic: str,
                 callback: Callable[[Message], None]) -> Callable[[Message], None]:
        """Return `callback` with its ValueErrors refused instead of raised."""
        def guarded(message: Message) -> None:
            try:
                callback(message)
            except ValueError as error:
                self.refuse(topic, str(error))
        return guarded
