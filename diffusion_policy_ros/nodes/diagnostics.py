"""What a node says about itself on /diagnostics."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from diffusion_policy_ros.nodes.messages import diagnostics_message
from diffusion_policy_ros.nodes.qos import LATCHED

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
PERIOD_S = 1.0

Report = tuple[bytes, str, Mapping[str, object]]


class Diagnostics:
    """
    Publishes a node's report every second of the steady clock, and when asked.

    The last report is latched, so that one who comes later sees it at once.

    Args:
        node: whose full name is the status's name.
        report: returns level, sentence and values.
    """

    def __init__(self, node: Node, report: Callable[[], Report]) -> None:
        self._node, self._report = node, report
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', LATCHED)
        node.create_timer(PERIOD_S, self.publish, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def publish(self) -> None:
        """Publish the report now."""
        self._publisher.publish(diagnostics_message(
            self._node.get_fully_qualified_name(), *self._report(),
            self._node.get_clock().now().nanoseconds))


class Latencies:
    """The last durations, in milliseconds."""

    def __init__(self, size: int = 500) -> None:
        self._values: deque[float] = deque(maxlen=size)

    def add(self, milliseconds: float) -> None:
        """Take one more."""
        self._values.append(milliseconds)

    def percentile(self, q: float) -> float:
        """Return a percentile, NaN before the first value."""
        return float(np.percentile(self._values, q)) if self._values else float('nan')
