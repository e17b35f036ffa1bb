"""Start a node, spin it, and end it in good order; the same for every node of the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import contextlib
import os
import signal
import sys
import time
from typing import Protocol

import rclpy
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from diffusion_policy_ros.nodes.parameters import refuse_unknown
from diffusion_policy_ros.nodes.resources import config_folder
from diffusion_policy_ros.nodes.stop_signals import on_stop_signals

try:
    # A third of SingleThreadedExecutor's CPU time; Jazzy's first releases lack it.
    from rclpy.experimental import EventsExecutor
except ImportError:
    EventsExecutor = SingleThreadedExecutor

SPIN_TIMEOUT_S = 0.2  # how late a signal may be noticed where nothing arrives
FINISH_TIMEOUT_S = 2.0  # longest time that a node may take for its last commands, beside braking
PROFILES = ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE')  # Fast DDS 2, 3
TRANSPORTS = 'FASTDDS_BUILTIN_TRANSPORTS'  # which profiles with transports of their own override


class Finishing(Protocol):
    """
    A node that has something to send before it goes, a hold for example.

    Attributes:
        longest_stop_s: time that this may take, beside FINISH_TIMEOUT_S.
    """

    longest_stop_s: float

    def finish(self) -> bool:
        """Return whether all is sent; called between spins until it is, or time is up."""


def init(args: Sequence[str] | None = None) -> None:
    """
    Initialise rclpy without its signal handlers.

    Its SIGINT handler shuts the context down before a node can send its last command. The wheels
    of PyPI have no setup file to source, and find their resources through AMENT_PREFIX_PATH.
    Fast DDS is given room for raw images, unless the user has chosen profiles or transports.
    """
    os.environ.setdefault('AMENT_PREFIX_PATH', sys.prefix)
    if not any(name in os.environ for name in (*PROFILES, TRANSPORTS)):
        os.environ.update(dict.fromkeys(PROFILES, str(config_folder() / 'fastdds.xml')))
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)


def run(make_node: Callable[[], Node], args: Sequence[str] | None = None,
        make_executor: Callable[[], Executor] = EventsExecutor) -> int:
    """
    Run one node until SIGINT, SIGTERM or SIGHUP, and return the process's exit code.

    A node that has a `finish` method (see `Finishing`) is spun until that returns True.
    A ValueError while the node is made is a setting that is wrong: one line, exit code 1.
    """
    stopped = _StopSignals()
    init(args)
    node = None
    executor = make_executor()
    try:
        node = make_node()
        refuse_unknown(node)
        executor.add_node(node)
        # EventsExecutor.spin() of Jazzy's wheels runs no callback; spin_once does.
        while not stopped and rclpy.ok():
            executor.spin_once(timeout_sec=SPIN_TIMEOUT_S)
        _finish(node, executor)
    except Exception as error:
        if node is not None and executor.get_nodes():
            _finish(node, executor, but=Exception)  # whatever broke, the arm is braked
            raise
        if not isinstance(error, ValueError):
            raise
        print(f'{_name(node)}{error}', file=sys.stderr, flush=True)
        return 1
    finally:
        executor.shutdown()
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


def _name(node: Node | None) -> str:
    return '' if node is None else f'{node.get_fully_qualified_name()}: '


def _finish(node: Node, executor: Executor, but: type[Exception] | tuple[()] = ()) -> None:
    """Spin until the node has finished, whatever is raised of what `but` names."""
    finish = getattr(node, 'finish', None)
    finished = finish is None
    deadline = time.monotonic() + FINISH_TIMEOUT_S + getattr(node, 'longest_stop_s', 0.0)
    while not finished and rclpy.ok() and time.monotonic() < deadline:
        with contextlib.suppress(but):
            if not (finished := finish()):
                executor.spin_once(timeout_sec=0.01)


class _StopSignals:
    """
    True once a signal came; one that comes later than a node may take ends it at once.

    Sooner it doesn't: newer `ros2 run` forwards a Ctrl-C that the terminal has sent already.
    """

    def __init__(self) -> None:
        self._first_s: float | None = None
        # Only the main thread may set handlers; elsewhere (a test) the context's end stops a node.
        with contextlib.suppress(ValueError):
            on_stop_signals(self._receive)

    def _receive(self, number: int, frame: object) -> None:
        if self._first_s is None:
            self._first_s = time.monotonic()
        elif time.monotonic() - self._first_s > FINISH_TIMEOUT_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def __bool__(self) -> bool:
        return self._first_s is not None
