"""What all tests share, without rclpy: those that need ROS have their own conftest in ros/."""

from __future__ import annotations

import os
import signal

from hypothesis import settings
import pytest

# Two threads that share a busy core cost more than they bring; node processes inherit it, too.
os.environ.setdefault('OMP_NUM_THREADS', '1')

# Under nohup SIGHUP is ignored, which the processes under test would inherit.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# No deadline: a machine that is busy is not a failure. In CI the same examples in every run.
settings.register_profile('default', deadline=None, print_blob=True,
                          derandomize=bool(os.environ.get('CI')))
settings.load_profile('default')


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker('gpu'):
        import torch
        if not torch.cuda.is_available():
            pytest.skip('there is no CUDA device here')
