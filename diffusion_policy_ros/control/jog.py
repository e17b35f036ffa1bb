"""Sticks and buttons of a person to targets: rates in, poses out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
import math

import numpy as np

from diffusion_policy_ros.control.arm import CLOSED, OPEN
from diffusion_policy_ros.control.rotation import angle, difference, exp, multiply, normalise

NO_AXIS = -1


@dataclass(frozen=True)
class JogConfig:
    """Which axis and button of the gamepad or SpaceMouse does what, and how fast."""

    linear_axes: tuple[int, ...] = field(default=(1, 0, 4), metadata={
        'description': "Axes of Joy for x, y, z of the arm's base; -1 for none. The defaults are "
                       'the sticks of an Xbox gamepad.'})
    linear_scale: tuple[float, ...] = field(default=(0.1, 0.1, 0.1), metadata={
        'description': 'Speed along x, y, z at a full axis; negative turns it round.',
        'unit': 'm/s'})
    angular_axes: tuple[int, ...] = field(default=(NO_AXIS, NO_AXIS, NO_AXIS), metadata={
        'description': "Axes of Joy for turns about x, y, z of the arm's base; -1 for none."})
    angular_scale: tuple[float, ...] = field(default=(0.5, 0.5, 0.5), metadata={
        'description': 'Speed of turns about x, y, z at a full axis.', 'unit': 'rad/s'})
    deadband: float = field(default=0.1, metadata={
        'description': 'Axis values below this are no motion.', 'min': 0.0, 'max': 0.9})
    enable_button: int = field(default=5, metadata={
        'description': 'Dead-man: only while it is held is anything sent.', 'min': 0})
    gripper_button: int = field(default=0, metadata={
        'description': 'Each press closes or opens the gripper; the first closes one that was '
                       'told nothing yet.', 'min': 0})
    max_lead_m: float = field(default=0.03, metadata={
        'description': 'Farthest that a stick brings the target ahead of the measured hand, which '
                       "limits or an obstacle hold back; less than the arm's max_tracking_error.",
        'unit': 'm', 'min': 0.001, 'max': 0.5})
    max_lead_rad: float = field(default=0.15, metadata={
        'description': 'Farthest that a stick turns the target ahead of the measured hand; less '
                       "than the arm's max_tracking_turn.",
        'unit': 'rad', 'min': 0.001, 'max': 1.5})

    def __post_init__(self) -> None:
        for name in ('linear_axes', 'linear_scale', 'angular_axes', 'angular_scale'):
            if len(getattr(self, name)) != 3:
                raise ValueError(f'{name} is {list(getattr(self, name))}, expected three numbers')
        buttons: dict[int, str] = {}
        for name, value in vars(self).items():
            if name.endswith('_button') and value >= 0 and (
                    other := buttons.setdefault(value, name)) != name:
                raise ValueError(f'{other} and {name} are {value}, expected a button for each; '
                                 '-1 leaves out one of the recorder')


class Jog:
    """
    Integrate a person's rates, from the pose at which the dead-man was pressed.

    Attributes:
        effort: closing effort of the gripper. None, and nothing is to be sent, until the gripper
            was told something or the person presses its button, which then closes: a hand that
            may hold something never opens unasked.
    """

    def __init__(self, config: JogConfig) -> None:
        self._config = config
        self._position: np.ndarray | None = None
        self._quaternion: np.ndarray | None = None
        self._pressed: frozenset[int] | None = None
        self._held = self._leads_gripper = False
        self._rates = np.zeros(6)
        self.effort: float | None = None

    @property
    def held(self) -> bool:
        """Whether the dead-man is held, and was pressed since the last `release`."""
        return self._held

    def read(self, axes: Sequence[float], buttons: Sequence[int]) -> frozenset[int]:
        """
        Take the device's state; return the buttons that were pressed anew.

        Those that are down in the first one were not.

        Raises:
            ValueError: 'axes: found, expected': it has too few, or one is no number; the dead-man
                is released.
        """
        try:
            self._rates = self._rates_of(axes, buttons)
        except ValueError:
            self.release()
            raise
        config, was_pressed = self._config, self._pressed
        self._pressed = frozenset(i for i, value in enumerate(buttons) if value)
        anew = self._pressed - (self._pressed if was_pressed is None else was_pressed)
        if config.enable_button not in self._pressed:
            self._held = False
        elif config.enable_button in anew:
            self._held, self._leads_gripper, self._position = True, False, None
        if self._held and config.gripper_button in anew:
            self._leads_gripper = True
            self.effort = OPEN if (self.effort or 0.0) > 0.0 else CLOSED
        return anew

    def release(self) -> None:
        """
        End the motion, as when the device falls silent, until the dead-man is pressed anew.

        Which buttons are down stays known, so that none of them counts as pressed by the next
        message that repeats them.
        """
        self._held = False

    def told(self, effort: float) -> None:
        """Take over what the gripper was told, from -1 to 1, unless the person leads it, too."""
        if not (self._held and self._leads_gripper):
            self.effort = effort

    def forget(self) -> None:
        """Count nothing as told to the gripper: somebody may have moved it."""
        self.effort, self._leads_gripper = None, False

    def step(self, measured: np.ndarray, dt_s: float,
             commanded: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray] | None:
        """
        Return the target's position (3,) and quaternion (4,), or None without the dead-man.

        The first target is what is commanded, where the hand is near that: an arm that hangs below
        its command would sink by as much with each press. A target that is further ahead than it
        may run stays where it is, for the same reason.

        Args:
            measured: (7,) pose of the hand.
            dt_s: time since the last step.
            commanded: (7,) pose that the arm was told last; None where nothing tells it any.
        """
        if not self._held:
            return None
        config, here, turned = self._config, measured[:3], normalise(measured[3:])
        if self._position is None:
            self._position, self._quaternion = here.copy(), turned
            if commanded is not None:
                there, told = commanded[:3], normalise(commanded[3:])
                if (np.linalg.norm(there - here) <= config.max_lead_m
                        and angle(told, turned) <= config.max_lead_rad):
                    self._position, self._quaternion = there.copy(), told
            return self._position, self._quaternion
        lead = self._position - here
        self._position = here + _cut(lead + self._rates[:3] * dt_s, config.max_lead_m, lead)
        lead = difference(self._quaternion, turned)
        further = difference(multiply(exp(self._rates[3:] * dt_s), self._quaternion), turned)
        self._quaternion = normalise(multiply(
            exp(_cut(further, config.max_lead_rad, lead)), turned))
        return self._position, self._quaternion

    def _rates_of(self, axes: Sequence[float], buttons: Sequence[int]) -> np.ndarray:
        """Return the speeds (6,) in m/s and rad/s that the axes ask for."""
        config = self._config
        wanted = (*config.linear_axes, *config.angular_axes)
        if max(wanted) >= len(axes):
            raise ValueError(f'axes: {len(axes)} of them, expected more than {max(wanted)}')
        if max(config.enable_button, config.gripper_button) >= len(buttons):
            raise ValueError(f'buttons: {len(buttons)} of them, expected more than '
                             f'{max(config.enable_button, config.gripper_button)}')
        values = [axes[i] if i >= 0 else 0.0 for i in wanted]
        if not all(map(math.isfinite, values)):
            raise ValueError(f'axes: {values} has NaN or infinity, expected numbers')
        scale = np.array((*config.linear_scale, *config.angular_scale))
        return scale * [self._beyond_deadband(value) for value in values]

    def _beyond_deadband(self, value: float) -> float:
        """Return an axis's value, from 0 at the deadband's edge to 1 at the end of its way."""
        deadband, size = self._config.deadband, min(abs(value), 1.0)
        return math.copysign(max(0.0, size - deadband) / (1.0 - deadband), value)


def _cut(lead: np.ndarray, longest: float, before: np.ndarray) -> np.ndarray:
    """Return a vector (3,) at most so long, or as long as it was before."""
    length, longest = float(np.linalg.norm(lead)), max(longest, float(np.linalg.norm(before)))
    return lead if length <= longest else lead * (longest / length)
