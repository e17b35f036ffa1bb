"""The policy node in this process, with clocks and threads that the test holds in its hand."""

from __future__ import annotations

from dataclasses import replace
import queue
import threading

from diagnostic_msgs.msg import DiagnosticStatus
import numpy as np
import pytest
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from tiny_policy import DT_NS, make_policy, SIZE
import torch
import yaml

from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER, NS_PER_S, Observation
from diffusion_policy_ros.nodes import policy_node
from diffusion_policy_ros.nodes.guard import Guard
from diffusion_policy_ros.nodes.parameters import declare
from diffusion_policy_ros.nodes.worker import Worker
from diffusion_policy_ros.policy.checkpoint import save_checkpoint

TIMEOUT_S = 60.0
SUCCESS = TransitionCallbackReturn.SUCCESS


class Steady:
    """A steady clock that is set by hand."""

    now_ns = 7

    def __call__(self):
        return self.now_ns


class Gated:
    """A policy node that is not spun, and whose inferences end only while its gate is open."""

    def __init__(self, checkpoint, arm, lockstep):
        self.clock, self.posted, self.lines = Steady(), queue.Queue(), []
        self.started, self.gate = threading.Semaphore(0), threading.Event()
        self.node = node = policy_node.PolicyNode()
        node._worker = Worker(self.posted.put, self.clock)
        node._guard = Guard(self.lines.append, self.clock)
        node._lockstep = lockstep
        node.set_parameters([Parameter('checkpoint', value=str(checkpoint)),
                             Parameter('arm', value=str(arm))])

    def configure(self):
        assert self.node.trigger_configure() == SUCCESS
        predict = self.node._policy.predict

        def gated(windows, noise):
            self.started.release()
            assert self.gate.wait(TIMEOUT_S)
            return predict(windows, noise)

        self.node._policy.predict = gated

    def activate(self):
        assert self.node.trigger_activate() == SUCCESS

    def infer(self, tick=0):
        """Show all that a chunk needs, and wait until an inference runs."""
        values = {'wrist': np.zeros((SIZE, SIZE, 3), np.uint8), GRIPPER: np.zeros(1),
                  EE_POSE: np.array([0.1, 0, 0, 0, 0, 0, 1])}
        for stream, value in values.items():
            self.node._predictor.push(Observation(stream, NS_PER_S + tick * DT_NS, value, 'base'))
        assert self.started.acquire(timeout=TIMEOUT_S)

    def wait_for_result(self):
        """Open the gate; return what hands the result on in the node's thread."""
        self.gate.set()
        hand_on = self.posted.get(timeout=TIMEOUT_S)
        self.gate.clear()
        return hand_on

    @property
    def report(self):
        """Level and sentence on /diagnostics."""
        return self.node._report()[:2]


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('files')
    save_checkpoint(folder / 'checkpoint', make_policy(), {}, torch.float32)
    (folder / 'arm.yaml').write_text(yaml.safe_dump({'base_frame': 'base', 'ee_frame': 'hand'}))
    return folder / 'checkpoint', folder / 'arm.yaml'


@pytest.fixture()
def gated(ros, files, monkeypatch):
    """Return a function that makes such a node."""
    monkeypatch.setattr(policy_node, 'declare', lambda node, cls: replace(
        declare(node, cls), autostart=False))
    made = []

    def make(lockstep=False):
        made.append(Gated(*files, lockstep))
        return made[-1]

    yield make
    for each in made:
        each.gate.set()
        each.node.destroy_node()


# An inference that hangs

def test_an_inference_that_hangs_is_a_warning_until_it_returns(gated):
    gated = gated()
    gated.configure()
    gated.activate()
    gated.infer()
    gated.clock.now_ns += NS_PER_S
    gated.node._look_at_inputs()
    assert gated.report == (DiagnosticStatus.OK, 'active') and gated.lines == []
    for seconds in (1, 7):
        gated.clock.now_ns += seconds * NS_PER_S
        gated.node._look_at_inputs()
    assert gated.report == (DiagnosticStatus.WARN, 'an inference has run for 9 s')
    assert gated.lines == ['no chunk: an inference has run for 2 s']
    gated.wait_for_result()()
    gated.node._look_at_inputs()
    assert gated.report == (DiagnosticStatus.OK, 'active')


def test_the_next_one_that_hangs_is_said_too_if_late(gated):
    gated = gated()
    gated.configure()
    gated.activate()
    gated.infer()
    gated.clock.now_ns += 2 * NS_PER_S
    gated.node._look_at_inputs()
    gated.wait_for_result()()
    gated.node._look_at_inputs()
    gated.infer(tick=100)
    gated.clock.now_ns += 2 * NS_PER_S
    gated.node._look_at_inputs()
    assert len(gated.lines) == 1
    gated.clock.now_ns += 3 * NS_PER_S
    gated.node._look_at_inputs()
    assert gated.lines[1:] == ['no chunk: an inference has run for 5 s']


def test_in_lockstep_the_arm_waits_for_a_slow_inference(gated):
    gated = gated(lockstep=True)
    gated.configure()
    gated.activate()
    gated.infer()
    gated.clock.now_ns += 9 * NS_PER_S
    gated.node._look_at_inputs()
    assert gated.report == (DiagnosticStatus.OK, 'active') and gated.lines == []


def test_a_refusal_is_a_warning_for_ten_seconds(gated):
    gated = gated()
    gated.configure()
    gated.activate()
    gated.node._refuse(RuntimeError('out of memory'))
    assert gated.report[0] == DiagnosticStatus.WARN
    gated.clock.now_ns += 10 * NS_PER_S
    assert gated.report[0] == DiagnosticStatus.OK
    assert gated.node._report()[2]['refused prediction RuntimeError'] == 1


# Who counts as a leader

@pytest.fixture()
def count(probe):
    """Return a function that waits until as many publish chunks as are expected."""
    def wait_for(expected):
        for topic in ('ee_trajectory', 'gripper_trajectory'):
            probe.wait(lambda topic=topic: probe.node.count_publishers(topic) == expected,
                       f'{expected} publishers of {topic}', TIMEOUT_S)
    return wait_for


def test_a_policy_leads_from_configure_to_cleanup(gated, count, probe):
    gated = gated()
    probe.wait(lambda: probe.node.count_publishers('policy/markers'), 'its other publishers')
    count(0)
    for _ in range(2):
        gated.configure()
        count(1)
        gated.activate()
        count(1)
        assert gated.node.trigger_deactivate() == SUCCESS
        count(1)
        assert gated.node.trigger_cleanup() == SUCCESS
        count(0)


@pytest.mark.parametrize('active', [True, False])
def test_a_policy_that_is_shut_down_leads_no_more(gated, count, active):
    gated = gated()
    gated.configure()
    count(1)
    if active:
        gated.activate()
    assert gated.node.trigger_shutdown() == SUCCESS
    count(0)


def test_a_policy_that_cannot_be_configured_does_not_lead(gated, count, probe):
    gated = gated()
    gated.node.set_parameters([Parameter('checkpoint', value='no/such')])
    assert gated.node.trigger_configure() == TransitionCallbackReturn.FAILURE
    probe.wait(lambda: probe.node.count_publishers('policy/markers'), 'its other publishers')
    count(0)
    assert gated.node.trigger_shutdown() == SUCCESS


@pytest.mark.parametrize('transitions', [('deactivate', 'cleanup'), ('shutdown',)])
@pytest.mark.parametrize('finished', [True, False])
def test_what_is_in_flight_when_a_policy_leaves_comes_to_nothing(gated, count, transitions,
                                                                 finished):
    gated = gated()
    gated.configure()
    gated.activate()
    gated.infer()
    hand_on = gated.wait_for_result() if finished else None
    for transition in transitions:
        assert getattr(gated.node, f'trigger_{transition}')() == SUCCESS
    count(0)
    if finished:
        hand_on()
    else:
        gated.gate.set()
        gated.node._worker.call(lambda: None)  # behind what was in flight
        assert gated.posted.empty()
    assert gated.node._n_chunks == 0 and gated.lines == []
