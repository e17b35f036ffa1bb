"""A node whose work is a story told from top to bottom, and that spins itself while it waits."""

from __future__ import annotations

from collections.abc import Callable
import math
import signal
import time
from typing import Any

from rcl_interfaces.srv import SetParameters
from rclpy.client import Client
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.task import Future

from diffusion_policy_ros.nodes.spin import EventsExecutor
from diffusion_policy_ros.nodes.stop_signals import on_stop_signals

SPIN_TIMEOUT_S = 0.1
SETTLE_S = 0.2
AGAIN_S = 5.0  # a request may have gone to a server that was killed and is not missed yet


class Stopped(Exception):
    """SIGINT, SIGTERM or SIGHUP came."""


def asking(client: Client, request: Any, again_s: float) -> Callable[[], Future | None]:
    """Return what asks a service, each `again_s` seconds anew, and returns what is answered."""
    futures, sent_s = [], -math.inf

    def answer() -> Future | None:
        nonlocal sent_s
        for future in futures:
            if future.done():
                return future
        if time.monotonic() - sent_s >= again_s or not futures:
            futures.append(client.call_async(request))
            sent_s = time.monotonic()
        return None

    return answer


class SelfSpinning(Node):
    """Calls other nodes and waits for them; each wait has a wall-clock limit."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._executor = EventsExecutor()
        self._executor.add_node(self)
        self._stopped = False
        on_stop_signals(self._stop)

    def destroy_node(self) -> None:
        """End the executor, too."""
        self._executor.shutdown()
        super().destroy_node()

    def _stop(self, number: int, frame: object) -> None:
        self._stopped = True
        signal.signal(number, signal.SIG_DFL)  # the second one ends the process at once

    def spin(self) -> None:
        """
        Run what is ready, or wait a moment for it.

        Raises:
            Stopped: a signal came.
        """
        if self._stopped:
            raise Stopped
        self._executor.spin_once(timeout_sec=SPIN_TIMEOUT_S)

    def wait(self, predicate: Callable[[], Any], limit_s: float, what: str) -> None:
        """
        Spin until `predicate` is true.

        Raises:
            TimeoutError: one line that says `what` did not come.
            Stopped: a signal came.
        """
        deadline = time.monotonic() + limit_s
        while not predicate():
            if time.monotonic() > deadline:
                raise TimeoutError(f'{what}: not within {limit_s:g} s')
            self.spin()

    def settle(self) -> None:
        """Spin for a moment, in which what is under way arrives."""
        settled_s = time.monotonic() + SETTLE_S
        while time.monotonic() < settled_s:
            self.spin()

    def call(self, client: Client, request: Any, limit_s: float,
             again_s: float = math.inf) -> Any:
        """
        Return a service's response.

        Args:
            client: of the service.
            request: for it.
            limit_s: wall-clock limit.
            again_s: time after which an unanswered request is sent again; only for what may be
                done twice.

        Raises:
            TimeoutError: names the service, when it is not there or does not answer in time.
        """
        self.wait(client.service_is_ready, limit_s, f'service {client.srv_name}')
        answer = asking(client, request, again_s)
        self.wait(answer, limit_s, f'the answer of {client.srv_name}')
        return answer().result()

    def set_remote(self, client: Client, limit_s: float, **values: Any) -> None:
        """
        Set parameters of another node.

        Raises:
            ValueError: the node's own reason, when it refuses one.
            TimeoutError: names the service, when it is not there or does not answer in time.
        """
        request = SetParameters.Request(parameters=[
            Parameter(name, value=value).to_parameter_msg() for name, value in values.items()])
        answer = self.call(client, request, limit_s, AGAIN_S)
        for name, result in zip(values, answer.results):
            if not result.successful:
                raise ValueError(f'parameter {name}: {result.reason}')
