"""
One node as a child process that does not outlive its parent: `child MODULE [ROS arguments]`.

`python -m diffusion_policy_ros.nodes.child policy_node --ros-args ...`
"""

import ctypes
from importlib import import_module
import signal
import sys

PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)

if __name__ == '__main__':
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    node = import_module(f'diffusion_policy_ros.nodes.{sys.argv.pop(1)}')
    sys.exit(node.main())
