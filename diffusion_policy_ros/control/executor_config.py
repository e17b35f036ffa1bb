"""Parameters of the executor."""

from __future__ import annotations

from dataclasses import dataclass, field

LONGEST_STEP_PERIODS = 5
"""A pause of more periods than this counts as this many: it is not made good in one move."""


@dataclass(frozen=True)
class ExecutorConfig:
    """Times and switches; each field's metadata says what it does."""

    command_rate_hz: float = field(default=50.0, metadata={
        'description': 'Commands per second; in lockstep the simulator sets the pace, and this is '
                       'only the length of the first step.',
        'unit': 'Hz', 'min': 1.0, 'max': 1000.0})
    blend_s: float = field(default=0.1, metadata={
        'description': 'Time over which a new chunk replaces the one before it; 0 replaces at '
                       'once.',
        'unit': 's', 'min': 0.0, 'max': 2.0})
    command_timeout_s: float = field(default=0.5, metadata={
        'description': 'Time without a live chunk, on the steady clock, after which the arm is '
                       'braked and held; also a pause of the node after which motion goes on '
                       'slowly, and how far ahead of now a chunk may be stamped. '
                       f'At least {LONGEST_STEP_PERIODS} periods of command_rate_hz.',
        'unit': 's', 'min': 0.02, 'max': 10.0})
    pose_timeout_s: float = field(default=0.5, metadata={
        'description': 'Time without a new ee_pose after which the arm is braked and held; also '
                       'the greatest difference of its stamp from now.',
        'unit': 's', 'min': 0.02, 'max': 10.0})
    teleop_timeout_s: float = field(default=0.25, metadata={
        'description': 'Silence of the teleoperator, on the steady clock, that counts as letting '
                       'go; also the greatest age of the stamp of its target.',
        'unit': 's', 'min': 0.02, 'max': 10.0})
    lockstep: bool = field(default=False, metadata={
        'description': 'Answer each ee_pose exactly once, waiting for the chunk or the teleop '
                       'target that is due; for simulators that wait for the answer.'})
    n_action_steps: int = field(default=0, metadata={
        'description': "The policy's Ta, needed in lockstep: a chunk answers for Ta * dt. 0 is "
                       'for runs without a policy.',
        'min': 0, 'max': 1000})
    dt_s: float = field(default=0.0, metadata={
        'description': "The policy's dt, needed in lockstep; 0 is for runs without a policy.",
        'unit': 's', 'min': 0.0, 'max': 10.0})
    enable_on_start: bool = field(default=False, metadata={
        'description': 'Move without ~/enable; for simulators only, so that a replayed bag moves '
                       'nothing.'})

    def __post_init__(self) -> None:
        shortest_s = LONGEST_STEP_PERIODS / self.command_rate_hz
        if not self.lockstep and self.command_timeout_s < shortest_s:
            raise ValueError(f'command_timeout_s is {self.command_timeout_s:g}, expected at least '
                             f'{shortest_s:g}, {LONGEST_STEP_PERIODS} periods of command_rate_hz '
                             f'{self.command_rate_hz:g}')
