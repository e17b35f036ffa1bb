"""
Workspace, speed and acceleration: the last gate before a command leaves.

Each axis is limited by itself, in closed form. With v the axis's speed in the step before, a the
greatest acceleration and d the room to a wall, the new speed lies within

    [-max_speed, max_speed]  and  [v - a*dt, v + a*dt]  and what can still brake before both walls.

Proof that the last never clashes with the second: let m be the shortest step to come. From speed v
the way to a stop takes at most S(v) = sum over k >= 1 of max(0, v - k*a*m) * m; S is convex and
S(v) = (v - a*m)*m + S(v - a*m). A step of length dt at speed u leaves room for a stop if
u*dt + S(u) <= d. Then u - a*dt' suits the next step, whatever its length dt' >= m: the function
g(x) = (u - a*x)*x + S(u - a*x) falls for x >= m, and g(m) = S(u).
"""

from __future__ import annotations

from dataclasses import dataclass
import math

import numpy as np

from diffusion_policy_ros.control import rotation

SLACK = 1e-9
"""Relative rounding that a limit forgives, so that a trajectory right at it passes unchanged."""


@dataclass(frozen=True)
class Limits:
    """
    What an arm may be commanded to do.

    Attributes:
        workspace_min, workspace_max: opposite corners of the box of allowed targets, metres in the
            base frame.
        max_speed: m/s on each axis.
        max_acceleration: m/s^2 on each axis.
        max_angular_speed: rad/s.
        max_angular_acceleration: rad/s^2.
        max_start_jump: greatest distance, metres, of the first target from the measured pose.
        max_start_turn: greatest angle, rad, of the first target from the measured pose.
        start_speed: m/s on each axis while the first target is approached.
        start_angular_speed: rad/s while the first target is approached.
        max_tracking_error: greatest distance, metres, of the measured pose from the commanded one;
            beyond it something else moves or stops the arm.
        max_tracking_turn: likewise, the greatest angle, rad.
    """

    workspace_min: tuple[float, float, float]
    workspace_max: tuple[float, float, float]
    max_speed: float
    max_acceleration: float
    max_angular_speed: float
    max_angular_acceleration: float
    max_start_jump: float
    max_start_turn: float
    start_speed: float
    start_angular_speed: float
    max_tracking_error: float
    max_tracking_turn: float

    def __post_init__(self) -> None:
        for name in ('max_speed', 'max_acceleration', 'max_angular_speed',
                     'max_angular_acceleration', 'max_start_jump', 'max_start_turn',
                     'start_speed', 'start_angular_speed', 'max_tracking_error',
                     'max_tracking_turn'):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f'limits.{name} is {value}, expected a number above 0')
        corners = zip('xyz', self.workspace_min, self.workspace_max, strict=True)
        for axis, low, high in corners:
            if not -math.inf < low < high < math.inf:
                raise ValueError(f'limits.workspace on {axis} is from {low} to {high}, '
                                 'expected min below max')
        for start, most in (('start_speed', 'max_speed'),
                            ('start_angular_speed', 'max_angular_speed')):
            if getattr(self, start) > getattr(self, most):
                raise ValueError(f'limits.{start} {getattr(self, start)} is above {most} '
                                 f'{getattr(self, most)}')

    @property
    def longest_stop_s(self) -> float:
        """Time that braking takes from the greatest speed."""
        return max(self.max_speed / self.max_acceleration,
                   self.max_angular_speed / self.max_angular_acceleration)


def braking_speed(room: float, acceleration: float, dt_s: float, min_dt_s: float) -> float:
    """
    Return the greatest speed for a step of `dt_s` from which a stop is possible within `room`.

    Steps after this one last `min_dt_s` or longer. Solves u*dt + S(u) = room of the module's
    docstring, where S is straight between multiples of a*m.
    """
    if room <= 0.0:
        return 0.0
    half = dt_s - min_dt_s / 2
    n = math.floor((math.sqrt(half * half + 2 * room / acceleration) - half) / min_dt_s)
    return ((room + acceleration * min_dt_s * min_dt_s * n * (n + 1) / 2)
            / (dt_s + n * min_dt_s))


class Limiter:
    """
    Follow targets within limits.

    A target sequence that keeps the limits passes unchanged, to the bit. Otherwise the limiter
    goes its fastest way to meet the target at the target's own velocity, and a target that stands
    still is reached without overshoot. For steps of at least `min_dt_s` no limit is exceeded by
    more than rounding, whatever the targets; for shorter ones workspace and speed still hold.
    """

    def __init__(self, limits: Limits, min_dt_s: float = 0.01) -> None:
        self._limits = limits
        self._min_dt_s = min_dt_s
        self._lows = tuple(map(float, limits.workspace_min))
        self._highs = tuple(map(float, limits.workspace_max))

    def reset(self, position: np.ndarray, quaternion: np.ndarray) -> None:
        """Begin at rest at a measured pose: position (3,) in metres, unit quaternion (4,)."""
        _check_finite(position, quaternion)
        self.position = np.array(position, np.float64)
        self.quaternion = rotation.normalise(quaternion)
        self._velocity = [0.0, 0.0, 0.0]
        self._angular_velocity = np.zeros(3)
        # The target's velocity is believed to change no faster than the arm's: a jump is no speed.
        self._target = self.position.tolist()
        self._target_velocity = [0.0, 0.0, 0.0]
        self._target_quaternion = self.quaternion
        self._target_angular_velocity = np.zeros(3)
        self._turning = False

    @property
    def at_rest(self) -> bool:
        """Whether the last step moved and turned nothing."""
        return not any(self._velocity) and not self._angular_velocity.any()

    def within_workspace(self, position: np.ndarray) -> np.ndarray:
        """Return the allowed position (3,) that is nearest to a target."""
        return np.clip(position, self._lows, self._highs)

    def is_faster(self, speed: float, angular_speed: float) -> bool:
        """Return whether the last step was faster, in m/s on an axis or in rad/s."""
        return (max(map(abs, self._velocity)) > speed * (1 + SLACK)
                or _length(self._angular_velocity) > angular_speed * (1 + SLACK))

    def step(self, position: np.ndarray, quaternion: np.ndarray, dt_s: float,
             speed: float = math.inf, angular_speed: float = math.inf
             ) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        """
        Move toward a target for one step.

        Args:
            position: (3,) metres.
            quaternion: (4,) unit length.
            dt_s: length of the step.
            speed: m/s on each axis, in place of a greater `max_speed`.
            angular_speed: rad/s, in place of a greater `max_angular_speed`.

        Returns:
            Position, quaternion, and the names of the limits that changed the target.

        Raises:
            ValueError: a number that is not finite, or a step that does not last.
        """
        _check_finite(position, quaternion)
        if not 0 < dt_s < math.inf:
            raise ValueError(f'step of {dt_s} s, expected more than 0')
        max_speed = min(speed, self._limits.max_speed)
        start = self.position.tolist()
        acted: list[str] = []
        goal = np.asarray(position).tolist()
        self.position = np.array([self._axis(axis, start[axis], goal[axis], dt_s, max_speed, acted)
                                  for axis in range(3)])
        quaternion = np.asarray(quaternion, np.float64)
        if self._turning or quaternion.tolist() != self.quaternion.tolist():
            self._turn(quaternion, dt_s, min(angular_speed, self._limits.max_angular_speed), acted)
            self._turning = bool(self._angular_velocity.any()
                                 or self._target_angular_velocity.any())
        return self.position, self.quaternion, tuple(dict.fromkeys(acted))

    def brake(self, dt_s: float) -> tuple[np.ndarray, np.ndarray]:
        """Slow down for one step, as fast as the limits allow, toward a stop."""
        change = self._limits.max_acceleration * dt_s
        self._velocity = [math.copysign(max(abs(v) - change, 0.0), v) for v in self._velocity]
        moved = zip(self.position.tolist(), self._velocity, self._lows, self._highs, strict=True)
        self._target = [min(max(here + v * dt_s, min(here, low)), max(here, high))
                        for here, v, low, high in moved]
        self._target_velocity = list(self._velocity)
        self.position = np.array(self._target)
        rate = _length(self._angular_velocity)
        change = self._limits.max_angular_acceleration * dt_s
        if rate > change:
            self._angular_velocity = self._angular_velocity * (1 - change / rate)
            self.quaternion = self._turned(dt_s)
        else:
            self._angular_velocity = np.zeros(3)
        self._target_quaternion = self.quaternion
        self._target_angular_velocity = self._angular_velocity
        return self.position, self.quaternion

    def _axis(self, axis: int, here: float, there: float, dt_s: float, max_speed: float,
              acted: list[str]) -> float:
        low, high = self._lows[axis], self._highs[axis]
        velocity = self._velocity[axis]
        acceleration = self._limits.max_acceleration
        target = min(max(there, low), high)
        if target != there:
            acted.append('workspace')
        aim = (target - here) / dt_s
        believed = self._target_velocity[axis]
        change = (target - self._target[axis]) / dt_s - believed
        target_velocity = believed + min(max(change, -acceleration * dt_s), acceleration * dt_s)
        self._target[axis], self._target_velocity[axis] = target, target_velocity

        slowest, fastest = velocity - acceleration * dt_s, velocity + acceleration * dt_s
        room_up = self._wall_speed(high - here, min(fastest, max_speed), dt_s)
        room_down = self._wall_speed(here - low, min(-slowest, max_speed), dt_s)
        # A speed limit that was lowered on the way is reached by braking, not at once.
        upper = max(min(fastest, max_speed, room_up), slowest)
        lower = min(max(slowest, -max_speed, -room_down), fastest)
        slack = SLACK * (max_speed + min(acceleration * dt_s, 2 * max_speed))
        meets = abs(aim - target_velocity) <= acceleration * min(self._min_dt_s, dt_s) + slack
        if meets and lower - slack <= aim <= upper + slack:
            reached = target
        else:
            if abs(aim) > max_speed + slack:
                acted.append('speed')
            elif room_up < aim <= fastest or slowest <= aim < -room_down:
                acted.append('workspace')
            else:
                acted.append('acceleration')
            behind = target - here - target_velocity * dt_s
            closing = braking_speed(abs(behind), acceleration, dt_s, self._min_dt_s)
            chosen = target_velocity + math.copysign(closing, behind)
            reached = here + min(max(chosen, lower), upper) * dt_s
            reached = min(max(reached, min(here, low)), max(here, high))
        self._velocity[axis] = (reached - here) / dt_s
        return reached

    def _wall_speed(self, room: float, wanted: float, dt_s: float) -> float:
        """Return `wanted` if the wall allows it, else less."""
        acceleration = self._limits.max_acceleration
        # S(v) <= v^2 / 2a: far from the walls there is nothing to solve.
        if wanted * dt_s + wanted * wanted / (2 * acceleration) <= room:
            return wanted
        return braking_speed(room, acceleration, dt_s, self._min_dt_s)

    def _turn(self, target: np.ndarray, dt_s: float, max_rate: float, acted: list[str]) -> None:
        """Turn toward the target: the same rule, on the rotation vector's length."""
        limits = self._limits
        change = limits.max_angular_acceleration * dt_s
        aim = rotation.difference(target, self.quaternion) / dt_s
        believed = self._target_angular_velocity
        target_velocity = rotation.difference(target, self._target_quaternion) / dt_s
        target_velocity = believed + _shortened(target_velocity - believed, change)
        self._target_quaternion, self._target_angular_velocity = target, target_velocity
        slack = SLACK * (max_rate + min(change, 2 * max_rate))
        if (_length(aim) <= max_rate + slack
                and _length(aim - self._angular_velocity) <= change + slack
                and _length(aim - target_velocity)
                <= limits.max_angular_acceleration * min(self._min_dt_s, dt_s) + slack):
            self._angular_velocity = aim
            self.quaternion = target
            return
        too_fast = _length(aim) > max_rate + slack
        acted.append('angular_speed' if too_fast else 'angular_acceleration')
        behind = (aim - target_velocity) * dt_s
        closing = braking_speed(_length(behind), limits.max_angular_acceleration, dt_s,
                                self._min_dt_s)
        # The ball of allowed speeds is convex: on the way into it, where the limit was lowered,
        # speed does not grow.
        goal = _shortened(target_velocity + _shortened(behind / dt_s, closing), max_rate)
        step = _shortened(goal - self._angular_velocity, change)
        self._angular_velocity = self._angular_velocity + step
        self.quaternion = self._turned(dt_s)

    def _turned(self, dt_s: float) -> np.ndarray:
        turn = rotation.exp(self._angular_velocity * dt_s)
        return rotation.normalise(rotation.multiply(turn, self.quaternion))


def _length(vector: np.ndarray) -> float:
    x, y, z = vector.tolist()
    return math.sqrt(x * x + y * y + z * z)


def _shortened(vector: np.ndarray, length: float) -> np.ndarray:
    present = _length(vector)
    return vector if present <= length else vector * (length / present)


def _check_finite(position: np.ndarray, quaternion: np.ndarray) -> None:
    values = (*np.asarray(position).tolist(), *np.asarray(quaternion).tolist())
    if not all(map(math.isfinite, values)):
        raise ValueError(f'target {list(values)} is not finite')
