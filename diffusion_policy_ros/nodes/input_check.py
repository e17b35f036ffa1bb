"""Compares what the topics carry with what the checkpoint was trained on."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np

from diffusion_policy_ros.control.arm import GripperConfig
from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER, NS_PER_S, Observation
from diffusion_policy_ros.policy.config import PolicyConfig

SETTLE_NS = 2 * NS_PER_S
SILENCE_NS = NS_PER_S
PATIENCE_NS = 5 * NS_PER_S
RATE_TOLERANCE = 1.25
N_PERIODS, MIN_PERIODS = 21, 5


class InputCheck:
    """
    All differences in one report, not one line a message.

    Args:
        config: the checkpoint's.
        topics: stream to the topic that it comes on.
        base_frame: the arm's, or '' where it is not known.
        lockstep: the simulator waits, so that silence means nothing.
        gripper: the arm's.
        refused: '<topic> <reason>' to how many of its messages could not be used.
    """

    def __init__(self, config: PolicyConfig, topics: dict[str, str], base_frame: str,
                 lockstep: bool = False, gripper: GripperConfig | None = None,
                 refused: Mapping[str, int] | None = None) -> None:
        self._config, self._topics, self._base_frame = config, topics, base_frame
        self._lockstep, self._gripper = lockstep, gripper or GripperConfig()
        self._gripper_state = self._gripper.state_open
        self._refused = {} if refused is None else refused
        self._sizes: dict[str, tuple[int, int]] = {}
        self._frames: dict[str, str] = {}
        self._stamps: dict[str, deque[int]] = {}
        self._seen_steady_ns: dict[str, int] = {}
        self._first_steady_ns: int | None = None
        self._begun_steady_ns: int | None = None

    def saw(self, observation: Observation, steady_ns: int) -> None:
        """Take note of one message that could be used."""
        stamps = self._stamps.setdefault(observation.stream, deque(maxlen=N_PERIODS + 1))
        stamps.append(observation.stamp_ns)
        self._seen_steady_ns[observation.stream] = steady_ns
        self._frames[observation.stream] = observation.frame_id
        if self._first_steady_ns is None:
            self._first_steady_ns = steady_ns

    def saw_size(self, stream: str, height: int, width: int) -> None:
        """Take note of a camera's size."""
        self._sizes[stream] = height, width

    def saw_gripper(self, state: float) -> None:
        """Take note of what the hand reports, in its own unit."""
        self._gripper_state = state

    def begin_episode(self, steady_ns: int) -> None:
        """Forget the stamps: the step to the next one is no period; silence counts from now."""
        self._begun_steady_ns = steady_ns
        self._seen_steady_ns = dict.fromkeys(self._seen_steady_ns, steady_ns)
        self._stamps = {stream: deque(maxlen=N_PERIODS + 1) for stream in self._stamps}

    def differences(self, steady_ns: int) -> list[str] | None:
        """
        Return one line a difference, or None while it is too early to tell.

        That is until 2 s after the first message of any topic; where none comes at all, until 5 s
        after the episode's beginning, or for ever in lockstep: a simulator may take its time.
        """
        if self._first_steady_ns is not None:
            too_early = steady_ns - self._first_steady_ns < SETTLE_NS
        else:
            too_early = (self._lockstep or self._begun_steady_ns is None
                         or steady_ns - self._begun_steady_ns < PATIENCE_NS)
        if too_early:
            return None
        found = [f'{topic}: no message that can be used{self._reasons(topic)}, expected one'
                 for stream, topic in self._topics.items() if stream not in self._stamps]
        return (found + self._silent(steady_ns) + self._wrong_sizes() + self._wrong_rates()
                + self._wrong_frame() + self._wrong_gripper())

    def _reasons(self, topic: str) -> str:
        """Return what messages were refused for; how many would be another line each second."""
        reasons = [key.removeprefix(f'{topic} ') for key in self._refused
                   if key.startswith(f'{topic} ')]
        return f' (refused: {", ".join(reasons)})' if reasons else ''

    def _silent(self, steady_ns: int) -> list[str]:
        if self._lockstep:
            return []
        return [f'{self._topics[stream]}: silent for over {SILENCE_NS / NS_PER_S:g} s'
                f'{self._reasons(self._topics[stream])}, expected {1 / self._config.dt_s:.1f} Hz'
                for stream, seen_ns in self._seen_steady_ns.items()
                if steady_ns - seen_ns > SILENCE_NS]

    def _wrong_sizes(self) -> list[str]:
        found = []
        for camera in self._config.observation.cameras:
            trained = (camera.source_height, camera.source_width)
            size = self._sizes.get(camera.name, trained)
            if size != trained:
                found.append(f'{self._topics[camera.name]}: {size[0]}x{size[1]} pixels (height x '
                             f'width), expected {trained[0]}x{trained[1]} as in training')
        return found

    def _wrong_rates(self) -> list[str]:
        found = []
        for stream, stamps in self._stamps.items():
            periods = np.diff(stamps)
            periods = periods[periods > 0]
            if len(periods) < MIN_PERIODS:
                continue
            period_s = float(np.median(periods)) / NS_PER_S
            if period_s > RATE_TOLERANCE * self._config.dt_s:
                found.append(f'{self._topics[stream]}: {1 / period_s:.1f} Hz, expected at least '
                             f'{1 / self._config.dt_s:.1f} Hz, the rate of the policy')
        return found

    def _wrong_gripper(self) -> list[str]:
        problem = self._gripper.state_problem(self._gripper_state)
        return [] if problem is None else [f'{self._topics[GRIPPER]}: {problem}']

    def _wrong_frame(self) -> list[str]:
        frame = self._frames.get(EE_POSE, self._base_frame)
        if not self._base_frame or frame == self._base_frame:
            return []
        return [f'{self._topics[EE_POSE]}: frame_id {frame}, expected {self._base_frame}, the '
                "arm's base_frame"]
