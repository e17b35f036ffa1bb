"""How a node's process begins."""

import os
from pathlib import Path
import subprocess
import sys

import pytest

LARGEST_SEGMENT = """
from pathlib import Path
import rclpy
from diffusion_policy_ros.nodes import spin
spin.init([])
node = rclpy.create_node('roomy')
ranges = [line.split()[0].split('-') for line in Path('/proc/self/maps').read_text().splitlines()
          if '/dev/shm/fastrtps_' in line]
print(max(int(end, 16) - int(begin, 16) for begin, end in ranges))
"""
EMPTY = '<dds xmlns="http://www.eprosima.com"/>'


@pytest.mark.skipif(not Path('/proc/self/maps').exists() or not Path('/dev/shm').exists(),
                    reason='looks at the shared memory of Linux')
@pytest.mark.skipif(os.environ.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp') != 'rmw_fastrtps_cpp',
                    reason='the middleware is not Fast DDS')
@pytest.mark.parametrize(('own', 'fits'), [(None, True), ('PROFILES', False),
                                           ('TRANSPORTS', False)])
def test_raw_images_fit_into_shared_memory_unless_the_user_has_chosen(tmp_path, own, fits):
    (tmp_path / 'own.xml').write_text(EMPTY)
    environment = {name: value for name, value in os.environ.items()
                   if not {'PROFILES', 'TRANSPORTS'} & {*name.split('_')}}
    if own == 'PROFILES':
        environment['FASTRTPS_DEFAULT_PROFILES_FILE'] = str(tmp_path / 'own.xml')
    elif own == 'TRANSPORTS':
        environment['FASTDDS_BUILTIN_TRANSPORTS'] = 'SHM'
    found = subprocess.run([sys.executable, '-c', LARGEST_SEGMENT], env=environment,
                           capture_output=True, text=True, check=True)
    assert (int(found.stdout) > 8 * 640 * 480 * 3) == fits, found.stderr


BREAKS = """
from rclpy.node import Node
from diffusion_policy_ros.nodes.spin import run

class Broken(Node):
    def __init__(self):
        super().__init__('broken')
        self.holds = 0
        self.create_timer(0.01, self.tick)

    def tick(self):
        raise ZeroDivisionError

    def finish(self):
        self.holds += 1
        if self.holds == 20:
            print('stands', flush=True)
        return self.holds == 20

run(Broken)
"""


def test_a_node_that_breaks_again_and_again_still_finishes():
    done = subprocess.run([sys.executable, '-c', BREAKS], capture_output=True, text=True)
    assert done.stdout == 'stands\n'
    assert done.returncode == 1 and done.stderr.strip().endswith('ZeroDivisionError')


BRAKES = """
import os, signal, time
from rclpy.node import Node
from diffusion_policy_ros.nodes import spin

spin.FINISH_TIMEOUT_S = 0.1

class Slow(Node):
    longest_stop_s = 60.0

    def __init__(self):
        super().__init__('slow')
        self.begun_s = None
        os.kill(os.getpid(), signal.SIGINT)

    def finish(self):
        self.begun_s = self.begun_s or time.monotonic()
        stands = time.monotonic() - self.begun_s > 0.6
        if stands:
            print('stands', flush=True)
        return stands

spin.run(Slow)
"""


def test_an_arm_that_brakes_slowly_is_given_the_time_it_needs():
    done = subprocess.run([sys.executable, '-c', BRAKES], capture_output=True, text=True)
    assert done.stdout == 'stands\n', done.stderr
