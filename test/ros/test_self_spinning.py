"""A node that calls others: an answer that was lost is asked for again."""

from __future__ import annotations

import signal
import threading

import pytest
from std_srvs.srv import Trigger

from diffusion_policy_ros.nodes.recorder_client import lossy
from diffusion_policy_ros.nodes.self_spinning import SelfSpinning, Stopped
from diffusion_policy_ros.nodes.sim_runner import say
from diffusion_policy_ros.nodes.stop_signals import ENDING


@pytest.fixture()
def caller(ros):
    handlers = {number: signal.getsignal(number) for number in ENDING}
    result = SelfSpinning('caller')
    yield result
    result.destroy_node()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize('number', ENDING)
def test_a_signal_stops_a_wait(caller, number):
    signal.raise_signal(number)
    with pytest.raises(Stopped):
        caller.wait(lambda: False, 60.0, 'nothing')


def test_a_line_that_nobody_can_read_stops_no_run(monkeypatch):
    class ClosedTerminal:
        """What a process writes to once its terminal is gone."""

        def isatty(self):
            return True

        def write(self, text):
            raise OSError(5, 'Input/output error')

    monkeypatch.setattr('sys.stdout', ClosedTerminal())
    say('wrote summary.json')


def test_a_request_that_went_to_a_server_that_died_is_sent_again(caller, probe):
    def answer(request, response):
        response.message = 'here'
        return response

    dead = probe.node.create_service(Trigger, 'reset', answer)  # it is not spun

    def replace():
        probe.node.destroy_service(dead)
        probe.node.create_service(Trigger, 'reset', answer)
        while not over.is_set():
            probe.spin()

    client, over = caller.create_client(Trigger, 'reset'), threading.Event()
    caller.wait(client.service_is_ready, 60.0, 'the service')
    with pytest.raises(TimeoutError, match='the answer of reset: not within 0.5 s'):
        caller.call(client, Trigger.Request(), 0.5)
    replacing = threading.Timer(1.0, replace)
    replacing.start()
    try:
        assert caller.call(client, Trigger.Request(), 60.0, again_s=0.5).message == 'here'
    finally:
        over.set()
        replacing.join()


def test_a_bag_that_misses_messages_is_named():
    whole = ['/ee_pose 80 at 80.0 Hz, largest gap 0.013 s, 0 lost', '/tf_static no message',
             '/arm/image_raw 20 at 20.0 Hz, largest gap 0.050 s, 0 lost',
             '/target_pose 3 at 50.0 Hz, largest gap 0.020 s, loss unknown']
    assert lossy(whole, 80) == []
    cut_off = '/ee_pose 79 at 80.0 Hz, largest gap 0.013 s, 0 lost'
    holed = '/arm/image_raw 19 at 20.0 Hz, largest gap 0.100 s, 1 lost'
    dropped = ['/x no message, 3 dropped by the recorder',
               '/y 3 at 50.0 Hz, largest gap 0.020 s, loss unknown, 1 dropped by the recorder',
               '/ee_pose 9 at 80.0 Hz, largest gap 0.013 s, loss unknown, 2 publishers',
               '/ee_pose no message']
    assert lossy([cut_off, holed, *whole[1:], *dropped], 80) == [cut_off, holed, *dropped]
    assert lossy(['/ee_pose 80 at 80.0 Hz, largest gap 0.013 s, 0 lost, 2 publishers',
                  '/target_pose: nobody published that'], 80) == []
