"""How a simulated episode stands, in one message: topics have no order among each other."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from std_msgs.msg import Int64MultiArray

TOPIC = 'metaworld_bridge/episode'
NONE = -1


@dataclass(frozen=True)
class Outcome:
    """
    An episode, so far.

    Attributes:
        first_ns: stamp of its first tick.
        success_tick: the first tick of success, counted from 0; NONE before it.
        last_tick: the tick that ended it; NONE while it goes on.
        is_truncated: whether it ended by its step limit, or was given up.
        is_failed: whether the simulator failed.
    """

    first_ns: int
    success_tick: int = NONE
    last_tick: int = NONE
    is_truncated: bool = False
    is_failed: bool = False

    def message(self) -> Int64MultiArray:
        """Return it as the bridge publishes it: all fields in order."""
        return Int64MultiArray(data=[int(value) for value in astuple(self)])

    @classmethod
    def read(cls, message: Int64MultiArray) -> Outcome:
        """
        Return what a message says.

        Raises:
            ValueError: it has another number of fields.
        """
        if len(message.data) != 5:
            raise ValueError(f'data: {len(message.data)} values, expected 5')
        first_ns, success_tick, last_tick, *flags = message.data
        return cls(first_ns, success_tick, last_tick, *map(bool, flags))
