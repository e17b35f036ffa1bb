"""How complete a recorded topic is: count, rate, largest gap, and what was lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusion_policy_ros.datatypes import NS_PER_S


@dataclass
class TopicStats:
    """
    What is known of one topic's messages.

    Attributes:
        count: messages.
        largest_gap_ns: between two stamps on end.
        lost: messages that were sent and are missing; None where nobody numbers them.
        dropped: messages that arrived and could not be kept, of the lost ones where those are
            known.
        backward: stamps that were earlier than the one before.
        publishers: the most that there were at a time; 0 where nobody counts them.
    """

    count: int = 0
    largest_gap_ns: int = 0
    lost: int | None = 0
    dropped: int = 0
    backward: int = 0
    publishers: int = 0
    _first_ns: int = 0
    _last_ns: int = 0
    _number: int = 0

    def add(self, stamp_ns: int, number: int | None) -> int:
        """
        Count a message and return the gap before it in nanoseconds, 0 for the first.

        Args:
            stamp_ns: header.stamp, or the time of arrival of a message without one.
            number: the publisher's own count, None where there is none; one that goes back (a
                second publisher, or one that was started again) makes the loss unknown.
        """
        gap_ns = stamp_ns - self._last_ns if self.count else 0
        self._first_ns = self._first_ns if self.count else stamp_ns
        if number is None or number <= self._number:
            self.lost = None
        elif self.lost is not None and self.count:
            self.lost += number - self._number - 1
        self._last_ns, self._number = stamp_ns, number or 0
        self.largest_gap_ns = max(self.largest_gap_ns, gap_ns)
        self.backward += gap_ns < 0
        self.count += 1
        return max(gap_ns, 0)

    def drop(self, number: int | None) -> None:
        """Count a message that arrived and could not be kept."""
        self.dropped += 1
        if self.lost is not None and number is not None:
            self.lost += number - self._number if self._number else 1
            self._number = number

    @property
    def rate_hz(self) -> float:
        """Messages a second of the stamps' time; 0 for less than two."""
        span_ns = self._last_ns - self._first_ns
        return (self.count - 1) * NS_PER_S / span_ns if span_ns > 0 else 0.0

    def summary(self) -> dict[str, Any]:
        """Return what a bag's metadata say about the topic."""
        return {'count': self.count, 'rate_hz': round(self.rate_hz, 3),
                'largest_gap_s': round(self.largest_gap_ns / NS_PER_S, 6),
                'lost': 'unknown' if self.lost is None else self.lost,
                'dropped': self.dropped, 'backward_stamps': self.backward,
                **({'publishers': self.publishers} if self.publishers else {})}

    def __str__(self) -> str:
        more = (f', {self.dropped} dropped by the recorder' if self.dropped else '') + (
            f', {self.publishers} publishers' if self.publishers > 1 else '')
        if not self.count:
            return f'no message{more}'
        lost = 'loss unknown' if self.lost is None else f'{self.lost} lost'
        return (f'{self.count} at {self.rate_hz:.1f} Hz, largest gap '
                f'{self.largest_gap_ns / NS_PER_S:.3f} s, {lost}{more}')
