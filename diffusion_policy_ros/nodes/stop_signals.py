"""The signals that end a process in good order; rclpy is not needed."""

from __future__ import annotations

from collections.abc import Callable
import signal

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def on_stop_signals(handler: Callable[[int, object], None]) -> None:
    """
    Give SIGINT, SIGTERM and SIGHUP a handler.

    SIGHUP comes when the terminal is closed or SSH drops; `nohup` has it ignored, and it stays so.

    Raises:
        ValueError: this is not the main thread, which alone may do that.
    """
    for number in ENDING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)
