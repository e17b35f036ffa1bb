"""A small replay buffer for tests: straight pushes, with pictures that show where the arm is."""

import numpy as np
import zarr

STEP_NS = 12_500_000


def write_demonstrations(path, lengths=(40, 50, 45), size=32, seed=0):
    """Write a zarr replay buffer with one camera `arm` of size x size pixels."""
    rng = np.random.default_rng(seed)
    rows = {'arm': [], 'ee_pose': [], 'gripper': [], 'target_position': [], 'target_gripper': []}
    for length in lengths:
        start, velocity = rng.uniform(-0.1, 0.1, 3), rng.uniform(-0.004, 0.004, 3)
        position = start + velocity * np.arange(length)[:, None]
        rows['ee_pose'].append(np.concatenate(
            [position, np.tile([0.0, 0.0, 0.0, 1.0], (length, 1))], axis=1))
        rows['target_position'].append(position + velocity)
        rows['gripper'].append(np.linspace(0, 1, length)[:, None])
        rows['target_gripper'].append(np.where(np.arange(length) > length / 2, 1.0, -1.0)[:, None])
        shade = np.arange(length, dtype=np.uint8)[:, None, None, None]
        rows['arm'].append(np.broadcast_to(shade, (length, size, size, 3)))
    group = zarr.open_group(str(path), mode='w', zarr_format=2)
    for key, parts in rows.items():
        group.create_array(f'data/{key}', data=np.concatenate(parts))
    group.create_array('meta/episode_ends', data=np.cumsum(lengths, dtype=np.int64))
    group.attrs.update({'task': 'drawer-open-v3', 'renderer': 'plain', 'step_ns': STEP_NS,
                        'source_size': 64, 'size': size, 'seed_start': 1_000_000, 'versions': {}})
    return path
