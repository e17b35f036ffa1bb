"""Services of type std_srvs/Trigger."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.node import Node
from std_srvs.srv import Trigger


def add_trigger(node: Node, name: str, action: Callable[[], str]) -> None:
    """
    Offer `action` as a service.

    Args:
        node: that offers it.
        name: of the service, `~/reset` for example.
        action: returns the sentence for the caller; its ValueError becomes success = False.
    """
    def answer(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            response.success, response.message = True, action()
        except ValueError as error:
            response.success, response.message = False, str(error)
        # Two calls: rclpy ties a severity to the line that it is called from.
        if response.success:
            node.get_logger().info(f'{name}: {response.message}')
        else:
            node.get_logger().warning(f'{name}: {response.message}')
        return response

    node.create_service(Trigger, name, answer)
