"""Calls demo_recorder around each episode."""

from __future__ import annotations

from collections.abc import Sequence
import re
import time

from rcl_interfaces.srv import SetParameters
from std_srvs.srv import SetBool, Trigger

from diffusion_policy_ros.nodes.self_spinning import SelfSpinning

RECORDER = 'demo_recorder'
STATS = re.compile(r'(?P<name>\S+) (?:no message|(?P<count>\d+) at .*?, '
                   r'(?:(?P<lost>\d+) lost|loss unknown))(?:, (?P<dropped>\d+) dropped)?')


def lossy(topics: Sequence[str], n_ticks: int) -> list[str]:
    """Return those of a saved bag's topics, as the recorder tells them, that miss messages."""
    found = []
    for topic in topics:
        told = STATS.match(topic)
        if told and (int(told['lost'] or 0) or told['dropped'] or (
                told['name'].endswith('/ee_pose') and int(told['count'] or 0) < n_ticks)):
            found.append(topic)
    return found


class RecorderClient:
    """
    The recorder as one node sees it that runs episodes.

    Args:
        node: that calls.
        limit_s: wall-clock limit of each call.
        renderer: that draws the pictures, kept in each bag.
    """

    def __init__(self, node: SelfSpinning, limit_s: float, renderer: str) -> None:
        self._node, self._limit_s, self._renderer = node, limit_s, renderer
        self._start = node.create_client(Trigger, f'{RECORDER}/start')
        self._save = node.create_client(SetBool, f'{RECORDER}/save')
        self._discard = node.create_client(Trigger, f'{RECORDER}/discard')
        # Its answer shows that the recorder has found those above, too: they are not repeated.
        self._parameters = node.create_client(SetParameters, f'{RECORDER}/set_parameters')

    def start(self, seed: int) -> None:
        """
        Begin a bag; waits until the recorder has found all that it needs.

        Raises:
            ValueError: the recorder's reason for refusing.
            TimeoutError: it does not answer.
        """
        self._node.set_remote(self._parameters, self._limit_s,
                              tags=[f'seed={seed}', f'renderer={self._renderer}'])
        deadline = time.monotonic() + self._limit_s
        self._node.wait(lambda: self._node.count_publishers('ee_pose'), self._limit_s, 'ee_pose')
        self._node.settle()  # for the other topics to be found
        while True:
            answer = self._node.call(self._start, Trigger.Request(), self._limit_s)
            if answer.success:
                return
            if 'nobody publishes' not in answer.message or time.monotonic() > deadline:
                raise ValueError(f'{RECORDER}: {answer.message}')
            self._node.spin()

    def end(self, success: bool) -> str:
        """
        Save a success, discard a failure; return what the recorder says.

        Raises:
            ValueError: the recorder's reason, a full disk for example.
            TimeoutError: it does not answer.
        """
        self._node.settle()  # for the last tick's answer
        client, request = ((self._save, SetBool.Request(data=True)) if success
                           else (self._discard, Trigger.Request()))
        answer = self._node.call(client, request, self._limit_s)
        if not answer.success:
            raise ValueError(f'{RECORDER}: {answer.message}')
        return answer.message
