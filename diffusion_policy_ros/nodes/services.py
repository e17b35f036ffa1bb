"""Services that answer with success and a sentence: std_srvs/Trigger and SetBool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from std_srvs.srv import Trigger


def add_trigger(node: Node, name: str, action: Callable[[], str]) -> None:
    """
    Offer `action` as a service of type Trigger.

    Args:
        node: that offers it.
        name: of the service, `~/reset` for example.
        action: returns the sentence for the caller; its ValueError becomes success = False.
    """
    add_service(node, Trigger, name, lambda request: action())


def add_service(node: Node, kind: type, name: str, action: Callable[[Any], str]) -> None:
    """Offer `action` as a service; as `add_trigger`, but that it is given the request."""
    def answer(request: Any, response: Any) -> Any:
        try:
            response.success, response.message = True, action(request)
        except ValueError as error:
            response.success, response.message = False, str(error)
        log_outcome(node, response.success, f'{name}: {response.message}')
        return response

    node.create_service(kind, name, answer)


def log_outcome(node: Node, is_fine: bool, line: str) -> None:
    """Log a line as information, or as a warning where it is not fine."""
    # Two calls: rclpy ties a severity to the line that it is called from.
    if is_fine:
        node.get_logger().info(line)
    else:
        node.get_logger().warning(line)
