"""What a person commands while the dead-man is held."""

from __future__ import annotations

from dataclasses import replace

from diffusion_policy_ros.control.plan import normalised, target_problem
from diffusion_policy_ros.datatypes import Command, NS_PER_S


ASKED = 0.2
"""Of efforts from -1 to 1: a trigger at rest has noise, which is no wish."""


class Teleop:
    """
    The teleoperator's last target; silence on the steady clock is the release.

    Attributes:
        command: the last target that was taken.
    """

    def __init__(self, timeout_ns: int, lockstep: bool) -> None:
        """
        Prepare.

        Args:
            timeout_ns: silence after which the teleoperator has let go, and greatest age of a
                target's stamp.
            lockstep: stamps are ticks, so that their age says nothing.
        """
        self._timeout_ns = timeout_ns
        self._lockstep = lockstep
        self.forget()

    def forget(self) -> None:
        """Drop the target, as if the dead-man had been let go."""
        self.command: Command | None = None
        self._first_effort: float | None = None
        self._steady_ns = 0

    def take(self, command: Command, now_ns: int, steady_ns: int,
             frame_id: str) -> str | None:
        """Take a target, or return why not as 'reason: found, expected'."""
        problem = target_problem(command.position, command.quaternion, command.gripper,
                                 command.frame_id, frame_id)
        if problem is not None:
            return problem
        if self._lockstep and self.command and command.stamp_ns == self.command.stamp_ns:
            self._steady_ns = steady_ns  # a tick that is shown again is answered again
            return None
        if self.command is not None and command.stamp_ns <= self.command.stamp_ns:
            return (f'out of order: stamped {_seconds(self.command.stamp_ns - command.stamp_ns)} '
                    'before the last target, expected a later stamp')
        age_ns = 0 if self._lockstep else now_ns - command.stamp_ns
        if abs(age_ns) > self._timeout_ns:
            found = (f'past: stamped {_seconds(age_ns)} ago' if age_ns > 0 else
                     f'future: stamped {_seconds(-age_ns)} ahead of now')
            return f'{found}, expected at most teleop_timeout_s {_seconds(self._timeout_ns)}'
        if not self.held(steady_ns):
            self._first_effort = command.gripper
        self.command = replace(command, quaternion=normalised(command.quaternion))
        self._steady_ns = steady_ns
        return None

    def effort(self, told: float | None) -> float | None:
        """
        Return the closing effort; None until the person asks for one `ASKED` off the first.

        Who takes over may not know yet what the hand was told a moment ago.

        Args:
            told: what the hand was told last; where that is nothing, the first effort counts.
        """
        first, effort = self._first_effort, self.command.gripper
        if (self._lockstep or told is None or None in (first, effort)
                or abs(effort - first) > ASKED):
            self._first_effort = None
        return self.command.gripper if self._first_effort is None else None

    def fresh(self, now_ns: int, steady_ns: int) -> bool:
        """Return whether the target is one to follow; that of before a leap of ROS time is not."""
        return self.held(steady_ns) and (
            self._lockstep or now_ns - self.command.stamp_ns <= self._timeout_ns)

    def held(self, steady_ns: int) -> bool:
        """Return whether the dead-man is held, as far as the steady clock tells."""
        return self.command is not None and steady_ns - self._steady_ns <= self._timeout_ns


def _seconds(duration_ns: int) -> str:
    return f'{duration_ns / NS_PER_S:.3f} s'
