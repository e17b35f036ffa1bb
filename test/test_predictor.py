"""From observations to chunks beside the callbacks: what is late, dropped, or begun anew."""

from __future__ import annotations

from dataclasses import replace
import queue
import threading

import numpy as np
import pytest
import torch

from diffusion_policy_ros.control.arm import ArmConfig, GripperConfig
from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER, NS_PER_S, Observation
from diffusion_policy_ros.nodes.predictor import check_arm, Predictor, warm_up
from diffusion_policy_ros.nodes.worker import Worker
from diffusion_policy_ros.policy.config import (
    CameraSpec, NoiseConfig, ObservationSpec, PolicyConfig, UnetConfig, VisionConfig,
)
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy
from diffusion_policy_ros.policy.normalizer import Normalizer

DT_NS = 50_000_000
TIMEOUT_S = 60.0


class GatedPolicy(DiffusionPolicy):
    """A policy that predicts only while its gate is open."""

    def predict(self, windows, noise):
        self.started.release()
        assert self.gate.wait(TIMEOUT_S)
        if self.problem:
            raise self.problem
        return super().predict(windows, noise)


@pytest.fixture(scope='module')
def policy():
    torch.manual_seed(0)
    config = PolicyConfig(
        observation=ObservationSpec((CameraSpec('wrist', 24, 24, 24, 24),)),
        vision=VisionConfig(16, crop_height=20, crop_width=20, pooling='average'),
        unet=UnetConfig(down_dims=(16, 16)), noise=NoiseConfig(num_inference_steps=5))
    policy = GatedPolicy(config, Normalizer.fit({
        'state': np.array([[-1.0] * 4, [1.0] * 4]), 'action': np.array([[-0.1] * 4, [0.1] * 4])}))
    policy.started = threading.Semaphore(0)
    policy.gate = threading.Event()
    policy.problem = None
    return policy.eval().requires_grad_(False)


class Loop:
    """The node's thread: a predictor, and what its worker posts."""

    def __init__(self, policy):
        self.policy = policy
        self.posted = queue.Queue()
        self.worker = Worker(self.posted.put)
        self.chunks, self.errors = [], []
        self.again = []
        self.predictor = Predictor(
            policy, self.worker, lambda chunk, ms: self.chunks.append(chunk), self.errors.append,
            tolerance_ns=DT_NS * 3 // 2, again=self.again.append)
        self.predictor.reset(seed=7)
        policy.gate.set()

    def observe(self, stamp_ns, streams=('wrist', EE_POSE, GRIPPER)):
        values = {'wrist': np.full((24, 24, 3), stamp_ns // DT_NS % 256, np.uint8),
                  EE_POSE: np.array([0.1, 0, 0, 0, 0, 0, 1]), GRIPPER: np.zeros(1)}
        for stream in streams:
            self.predictor.push(Observation(stream, stamp_ns, values[stream], 'base'))

    def wait_for_start(self):
        """Wait until the worker's thread is inside a prediction."""
        assert self.policy.started.acquire(timeout=TIMEOUT_S)

    def run_posted(self):
        """Run the next thing that the worker posted."""
        self.posted.get(timeout=TIMEOUT_S)()

    @property
    def stamps(self):
        return [chunk.stamp_ns for chunk in self.chunks]


@pytest.fixture()
def loop(policy):
    loop = Loop(policy)
    yield loop
    policy.problem = None
    policy.gate.set()
    loop.worker.close()
    while policy.started.acquire(blocking=False):
        pass


def test_a_chunk_is_made_when_one_is_due(loop):
    for tick in range(9):
        loop.observe(NS_PER_S + tick * DT_NS)
        if loop.worker.busy:
            loop.run_posted()
    assert loop.stamps == [NS_PER_S + tick * DT_NS for tick in (0, 4, 8)]
    assert loop.predictor.missed == 0 and loop.worker.dropped == 0


def test_a_chunk_is_sent_again_while_its_observation_is_shown_again(loop):
    loop.observe(NS_PER_S)
    loop.observe(NS_PER_S)
    assert loop.again == []  # it is still being made
    loop.run_posted()
    for repeats in (1, 2):
        loop.observe(NS_PER_S)
        assert loop.again == [loop.chunks[0]] * repeats
    loop.observe(NS_PER_S + DT_NS)
    loop.predictor.reset(seed=7)
    loop.observe(NS_PER_S)
    assert len(loop.again) == 2


def test_a_late_frame_begins_no_episode(loop):
    for tick in range(9):
        loop.observe(NS_PER_S + tick * DT_NS + (DT_NS * 2 // 5 if tick == 5 else 0))
        if loop.worker.busy:
            loop.run_posted()
    assert loop.stamps == [NS_PER_S + tick * DT_NS for tick in (0, 4, 8)]


def test_nothing_is_due_before_every_stream_is_here(loop):
    loop.observe(NS_PER_S, ('wrist', EE_POSE))
    assert not loop.worker.busy
    assert loop.predictor.not_ready == 'gripper: nothing has arrived'
    loop.observe(NS_PER_S, (GRIPPER,))
    assert loop.worker.busy and loop.predictor.not_ready == ''


def test_what_is_in_flight_at_a_reset_comes_to_nothing(loop):
    loop.policy.gate.clear()
    loop.observe(NS_PER_S)
    loop.wait_for_start()
    loop.predictor.reset(seed=7)
    loop.observe(9 * NS_PER_S)
    loop.policy.gate.set()
    loop.run_posted()
    assert loop.stamps == [9 * NS_PER_S]
    assert loop.worker.dropped == 1 and loop.posted.empty()


def test_a_finished_result_is_dropped_if_it_was_not_handed_on_before_the_reset(loop):
    loop.observe(NS_PER_S)
    hand_on = loop.posted.get(timeout=TIMEOUT_S)
    loop.predictor.reset(seed=7)
    hand_on()
    assert loop.stamps == []


@pytest.mark.parametrize('second_ns', [9 * NS_PER_S, NS_PER_S // 2])
def test_what_is_in_flight_when_stamps_jump_comes_to_nothing(loop, second_ns):
    loop.policy.gate.clear()
    loop.observe(NS_PER_S)
    loop.wait_for_start()
    loop.observe(second_ns)
    loop.policy.gate.set()
    loop.run_posted()
    assert loop.stamps == [second_ns]


def test_a_late_policy_takes_the_newest_observation(loop):
    loop.policy.gate.clear()
    for tick in range(11):
        loop.observe(NS_PER_S + tick * DT_NS)
    loop.policy.gate.set()
    loop.run_posted()
    loop.run_posted()
    assert loop.stamps == [NS_PER_S, NS_PER_S + 10 * DT_NS]
    assert loop.predictor.missed == 1  # that of tick 4; tick 8's came late


def test_noise_depends_on_seed_and_time_in_the_episode(loop):
    def first_chunk(seed, stamp_ns):
        loop.predictor.reset(seed)
        loop.observe(stamp_ns)
        loop.run_posted()
        return loop.chunks.pop().position

    stamp_ns, same_picture_ns = NS_PER_S, NS_PER_S + 256 * DT_NS
    again = first_chunk(7, same_picture_ns)
    np.testing.assert_array_equal(first_chunk(7, stamp_ns), again)
    assert not np.array_equal(first_chunk(8, stamp_ns), again)


def test_what_a_prediction_raises_is_handed_on_and_the_next_one_works(loop):
    loop.policy.problem = RuntimeError('out of memory')
    loop.observe(NS_PER_S)
    loop.run_posted()
    assert loop.errors == [loop.policy.problem] and loop.chunks == []
    loop.policy.problem = None
    for tick in range(1, 5):
        loop.observe(NS_PER_S + tick * DT_NS)
    loop.run_posted()
    assert loop.stamps == [NS_PER_S + 4 * DT_NS]


def test_warm_up_returns_milliseconds(policy):
    policy.gate.set()
    assert 0 < warm_up(policy) < 60_000


def test_an_arm_without_the_policys_gripper_is_refused(policy):
    check_arm(policy.config, ArmConfig('base', 'hand'))
    with pytest.raises(ValueError, match='gripper.type is none, expected a gripper'):
        check_arm(policy.config, ArmConfig('base', 'hand', gripper=GripperConfig(type='none')))
    without = replace(policy.config, action=replace(policy.config.action, parts=('ee_position',)))
    check_arm(without, ArmConfig('base', 'hand', gripper=GripperConfig(type='none')))
    with pytest.raises(ValueError, match='gripper.type is continuous, expected none'):
        check_arm(without, ArmConfig('base', 'hand'))
