"""What the package must know of an arm: frames, limits, gripper; read from config/arms/*.yaml."""

from __future__ import annotations

from dataclasses import dataclass, field
import math
from pathlib import Path

from diffusion_policy_ros.control import rotation
from diffusion_policy_ros.control.limits import Limits
from diffusion_policy_ros.typed import from_mapping, load_yaml

OPEN, CLOSED = -1.0, 1.0
"""Ends of the normalised closing effort."""
STATE_SLACK = 0.2
"""So much of its range may a hand report beyond an end of it."""


@dataclass(frozen=True)
class GripperConfig:
    """
    How a hand's numbers relate to the normalised ones.

    Attributes:
        type: `continuous`, where the command follows the effort in proportion; `on_off`, where it
            is open or closed; `none`, for an arm without a gripper.
        command_open, command_closed: command at effort -1 and at effort 1, in the hand's unit.
        state_open, state_closed: what the hand reports when open and when closed, in its unit.
        threshold: effort above which an on/off hand closes.
        hysteresis: effort by which the threshold must be passed to change an on/off hand's state.
        send_on_change: send a command only when it differs from the last one, for hands that take
            each command as a new order.
    """

    type: str = 'continuous'
    command_open: float = OPEN
    command_closed: float = CLOSED
    state_open: float = 0.0
    state_closed: float = 1.0
    threshold: float = 0.0
    hysteresis: float = 0.1
    send_on_change: bool = False

    def __post_init__(self) -> None:
        if self.type not in ('continuous', 'on_off', 'none'):
            raise ValueError(f'gripper.type is {self.type!r}, expected continuous, on_off or none')
        for kind in ('command', 'state'):
            ends = getattr(self, f'{kind}_open'), getattr(self, f'{kind}_closed')
            if ends[0] == ends[1] or not all(map(math.isfinite, ends)):
                raise ValueError(f'gripper.{kind}_open is {ends[0]} and {kind}_closed {ends[1]}, '
                                 'expected two different numbers')
        if not self.hysteresis >= 0 or not abs(self.threshold) + self.hysteresis < 1:
            raise ValueError(f'gripper.threshold is {self.threshold} and hysteresis '
                             f'{self.hysteresis}: no effort would switch both ways, expected '
                             '|threshold| + hysteresis below 1')

    def effort_to_command(self, effort: float, closed: bool | None = None) -> float:
        """
        Return the hand's command for a closing effort.

        Args:
            effort: from -1 (open) to 1 (closed); beyond is clipped.
            closed: an on/off hand's present state, for the hysteresis; None where it is not known.

        Raises:
            ValueError: the effort is not finite, or the arm has no gripper.
        """
        if self.type == 'none':
            raise ValueError('gripper.type is none: there is nothing to command')
        if not math.isfinite(effort):
            raise ValueError(f'effort is {effort}, expected -1 (open) to 1 (closed)')
        if self.type == 'on_off':
            return self.command_closed if self.closes(effort, closed) else self.command_open
        fraction = (min(max(effort, OPEN), CLOSED) - OPEN) / (CLOSED - OPEN)
        return self.command_open + fraction * (self.command_closed - self.command_open)

    def closes(self, effort: float, closed: bool | None = None) -> bool:
        """Return whether an on/off hand is closed after this effort, given whether it is now."""
        margin = 0.0 if closed is None else -self.hysteresis if closed else self.hysteresis
        return effort > self.threshold + margin

    def state_problem(self, state: float) -> str | None:
        """Return why this is not what the hand reports, in another unit for example, or None."""
        ends = self.state_open, self.state_closed
        slack = STATE_SLACK * abs(ends[1] - ends[0])
        if min(ends) - slack <= state <= max(ends) + slack:
            return None
        return (f"{state:g}, expected {ends[0]:g} (open) to {ends[1]:g} (closed) as in the arm's "
                'YAML')

    def state_to_closed(self, state: float) -> float:
        """
        Return how far the hand is closed, from 0 (open) to 1 (closed), of what it reports.

        Raises:
            ValueError: the number is not finite.
        """
        if not math.isfinite(state):
            raise ValueError(f'gripper state is {state}, expected {self.state_open} (open) to '
                             f'{self.state_closed} (closed)')
        closed = (state - self.state_open) / (self.state_closed - self.state_open)
        return min(max(closed, 0.0), 1.0)


@dataclass(frozen=True)
class ArmConfig:
    """
    One arm.

    Attributes:
        base_frame: frame_id of the measured pose, and so of all targets.
        ee_frame: the frame that is posed.
        limits: None where the YAML states none; then nothing is moved.
        fixed_orientation: (x, y, z, w) that is always sent; None to send the target's rotation, or
            the one measured at enable where none is predicted.
        gripper: how its numbers relate to ours.
    """

    base_frame: str
    ee_frame: str
    limits: Limits | None = None
    fixed_orientation: tuple[float, float, float, float] | None = None
    gripper: GripperConfig = field(default_factory=GripperConfig)

    def __post_init__(self) -> None:
        if not self.base_frame or not self.ee_frame:
            raise ValueError(f'base_frame is {self.base_frame!r} and ee_frame {self.ee_frame!r}, '
                             'expected two names')
        if self.fixed_orientation is not None:
            unit = rotation.normalise(self.fixed_orientation)
            if not rotation.is_unit(self.fixed_orientation):
                raise ValueError(f'fixed_orientation is {list(self.fixed_orientation)}, expected '
                                 f'length 1 such as {unit.round(4).tolist()}')


def load_arm(path: str | Path) -> ArmConfig:
    """
    Read an arm's YAML.

    Raises:
        ValueError: in one line that names the file and the key.
    """
    return from_mapping(ArmConfig, load_yaml(path), str(path))
