import os
from pathlib import Path
import sys

from setuptools import find_packages, setup

package_name = 'diffusion_policy_ros'

# Executables that `ros2 run` and `ros2 launch` start.
nodes = {
    'policy': 'nodes.policy_node:main',
    'chunk_executor': 'nodes.chunk_executor_node:main',
    'metaworld_bridge': 'nodes.metaworld_bridge_node:main',
    'expert': 'nodes.expert_node:main',
    'demo_recorder': 'nodes.demo_recorder_node:main',
    'joy_teleop': 'nodes.joy_teleop_node:main',
    'sim_runner': 'nodes.sim_runner:main',
    'metaworld_sim': 'nodes.supervisor:main',
    'record_demos': 'nodes.supervisor:record',
    'recover_bag': 'data.bag_recovery:main',
}

core = ['dacite>=1.8', 'numpy>=1.26', 'opencv-python-headless>=4.8,<5', 'pyyaml']
extras = {
    'policy': ['safetensors', 'torch>=2.13,<2.14', 'torchvision>=0.28,<0.29'],
    # MetaWorld 3 pins this MuJoCo; gymnasium imports packaging without asking for it.
    'sim': ['gymnasium>=1.1', 'imageio-ffmpeg', 'metaworld==3.1.1', 'mujoco==3.3.0', 'packaging'],
    'bags': ['mcap>=1.6', 'rosbags>=0.11'],
    'lerobot': ['imageio-ffmpeg>=0.5', 'pyarrow'],
    'train': ['accelerate', 'matplotlib>=3.7', 'rich', 'tensorboard', 'zarr>=2.18'],
    'ray': ['ray>=2.9'],
    # ROS 2 Jazzy's client library and messages, for people without ROS: never on a ROS install.
    # The tests compare image conversion with cv_bridge's.
    'jazzy': [
        'cv_bridge==1.13.0.post0',
        'numpy<2.3',
        'ros-jazzy-diagnostic-msgs==5.3.6',
        'ros-jazzy-geometry-msgs==5.3.6',
        'ros-jazzy-lifecycle-msgs==2.0.3',
        'ros-jazzy-rclpy[fastrtps]==7.1.6',
        'ros-jazzy-sensor-msgs==5.3.6',
        'ros-jazzy-std-msgs==5.3.6',
        'ros-jazzy-std-srvs==5.3.6',
        'ros-jazzy-trajectory-msgs==5.3.6',
        'ros-jazzy-visualization-msgs==5.3.6',
    ],
    'test': [
        'catkin_pkg',
        'colcon-common-extensions',
        'diffusers',
        'hypothesis',
        'psutil',
        'pytest',
        'pytest-rerunfailures',
        'pytest-timeout',
        'pytest-xdist',
    ],
    # What ament_flake8 and ament_pep257 run, and ruff.
    'dev': [
        'flake8',
        'flake8-blind-except',
        'flake8-builtins',
        'flake8-class-newline',
        'flake8-comprehensions',
        'flake8-deprecated',
        'flake8-docstrings',
        'flake8-import-order',
        'flake8-quotes',
        'ruff',
    ],
}


def shared(folder):
    """Return data_files entries that carry a folder into share/, its sub-folders kept."""
    return [
        (os.path.join('share', package_name, where),
         [os.path.join(where, name) for name in sorted(names) if not name.startswith('.')])
        for where, _, names in os.walk(folder) if names
    ]


def executables():
    """
    Return data_files entries for lib/<package>, where ROS looks for executables.

    colcon puts the console scripts there itself (setup.cfg, install_scripts). pip puts them into
    bin/, so a wheel carries one-line scripts that hand over to those.
    """
    if 'bdist_wheel' not in sys.argv:
        return []
    folder = Path('build', 'executables')
    folder.mkdir(parents=True, exist_ok=True)
    for name in nodes:
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "$(dirname "$0")/../../bin/{name}" "$@"\n')
        script.chmod(0o755)
    return [(os.path.join('lib', package_name), [str(folder / name) for name in nodes])]


setup(
    name=package_name,
    version='0.1.0',
    packages=find_packages(include=[package_name, package_name + '.*']),
    data_files=[
        ('share/ament_index/resource_index/packages', ['resource/' + package_name]),
        ('share/' + package_name, ['package.xml']),
        *shared('launch'),
        *shared('config'),
        *executables(),
    ],
    python_requires='>=3.10',
    install_requires=['setuptools', *core],
    extras_require=extras,
    zip_safe=True,
    maintainer='diffusion_policy_ros maintainers',
    maintainer_email='maintainers@example.org',
    description='Diffusion Policy on a robot arm, from camera messages to safe, timed commands.',
    license='Apache-2.0',
    entry_points={
        'console_scripts': [
            f'{name} = {package_name}.{place}' for name, place in nodes.items()],
    },
)
