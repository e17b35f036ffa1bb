"""A replay buffer as one policy sees it: windows, their state and their encoded actions."""

from __future__ import annotations

import numpy as np

from diffusion_policy_ros.data.attributes import source_size
from diffusion_policy_ros.data.replay_buffer import ReplayBuffer
from diffusion_policy_ros.data.windows import make_windows, segment_rows, segment_starts
from diffusion_policy_ros.datatypes import EE_POSE
from diffusion_policy_ros.policy.actions import encode_action, encode_state
from diffusion_policy_ros.policy.config import PolicyConfig


TARGETS = {'ee_position': 'target_position', 'ee_rotation': 'target_quaternion',
           'gripper': 'target_gripper'}


class WindowData:
    """
    All windows of a replay buffer.

    Attributes:
        windows: their rows.
        state: (N, To, state_dim) float32 in robot units, or None.
        action: (N, Tp, Da) float32, encoded.
        now: (N, 7) the hand's pose at each window's own time.

    Raises:
        ValueError: the data are of another task, image size, source size, renderer or step than
            the policy's, all differences in one line; or no episode is as long as a window.
    """

    def __init__(self, buffer: ReplayBuffer, config: PolicyConfig) -> None:
        _check(buffer, config)
        self.buffer, self.config = buffer, config
        self.windows = make_windows(buffer, config.n_obs_steps, config.horizon,
                                    config.n_action_steps, config.dt_ns)
        if not self.windows.trained.any():
            raise ValueError('every episode is shorter than a window of horizon '
                             f'{config.horizon} at dt_s {config.dt_s}')
        self.state = (encode_state(buffer.arrays, config)[self.windows.observed]
                      .astype(np.float32) if config.observation.state else None)
        targets = np.concatenate([buffer.arrays[TARGETS[part]]
                                  for part in config.action.parts], axis=1)
        self.now = buffer.arrays[EE_POSE][self.windows.observed[:, -1]]
        self.action = encode_action(targets[self.windows.acted], self.now,
                                    config).astype(np.float32)

    def arrays_to_normalize(self) -> dict[str, np.ndarray]:
        """Return what the normaliser takes its bounds from: all trained windows."""
        arrays = {'action': self.action[self.windows.trained]}
        if self.state is not None:
            arrays['state'] = self.state[self.windows.trained]
        return arrays

    def segment_starts(self, n_windows: int) -> np.ndarray:
        """Return every segment of `n_windows` windows one policy step apart."""
        return segment_starts(self.windows, n_windows, self.windows.stride)

    def segment_rows(self, starts: np.ndarray, n_windows: int) -> np.ndarray:
        """Return the rows of some segments' trained windows."""
        return segment_rows(self.windows, starts, n_windows, self.windows.stride)

    def frames(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Return the frames that some windows observe, each once.

        Returns:
            (U,) int64 rows of the frames; (B, To) int64, which of them a window observes.
        """
        shown, frames = np.unique(self.windows.observed[rows], return_inverse=True)
        return shown, frames.reshape(len(rows), -1)

    def images(self, shown: np.ndarray) -> dict[str, np.ndarray]:
        """Return camera to (U, H, W, 3) uint8 of some frames."""
        return {camera.name: self.buffer.images(camera.name, shown)
                for camera in self.config.observation.cameras}


def _check(buffer: ReplayBuffer, config: PolicyConfig) -> None:
    found = buffer.attributes
    differences = []
    for part in config.action.parts:
        if TARGETS[part] not in buffer.arrays:
            differences.append(f'action.parts is {list(config.action.parts)}, the data have no '
                               f'{TARGETS[part]}')
    missing = []
    if config.observation.cameras and not {'source_size', 'source_sizes'} & found.keys():
        missing.append('source_size')
    if 'stamp_ns' not in buffer.arrays and 'step_ns' not in found:
        missing.append('step_ns')
    if missing:
        raise ValueError(f'attributes lack {" and ".join(missing)}, found '
                         f'{", ".join(sorted(found)) or "none"}')
    for camera in config.observation.cameras:
        for name, have, want in (
                ('images', buffer.arrays[camera.name].shape[1:3], (camera.height, camera.width)),
                ('source images', source_size(found, camera.name),
                 (camera.source_height, camera.source_width))):
            if tuple(have) != want:
                differences.append(f'{name} of {camera.name} are {have[0]}x{have[1]}, '
                                   f'expected {want[0]}x{want[1]}')
    if found.get('renderer', '') != config.renderer:
        differences.append(f"renderer is {found.get('renderer', '')!r}, expected "
                           f'{config.renderer!r}')
    if found.get('dt_s', config.dt_s) != config.dt_s:  # a recording's actions depend on it
        differences.append(f"the recording's dt_s is {found['dt_s']}, expected {config.dt_s}: "
                           'convert its bags again')
    if found.get('task') and config.task and found['task'] != config.task:
        differences.append(f"task is {found['task']!r}, expected policy.task {config.task!r}")
    if differences:
        raise ValueError('; '.join(differences))
