"""
What the tests with ROS share: a domain of their own, a node that looks on, and real processes.

The tests talk over real DDS. They wait for what must happen, with a deadline, and never sleep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import importlib.util
import os
from pathlib import Path
import signal
import subprocess
import sys
import time
from typing import Any, IO, NamedTuple

import pytest
import yaml

from diffusion_policy_ros.nodes.supervisor import own_domain

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 100.0  # a busy machine of two cores needs most of a minute to import PyTorch
HAS_ROS = importlib.util.find_spec('rclpy') is not None

_locks: list[IO[str]] = []  # held to the end: a domain remembers killed nodes for a while
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
os.environ['ROS_PYTHON_CHECK_FIELDS'] = '1'
os.environ.setdefault('AMENT_PREFIX_PATH', sys.prefix)


class SkippedModule(pytest.Module):
    """A test module that is reported as skipped, with the reason, instead of imported."""

    def collect(self) -> list:
        """Skip."""
        pytest.skip("rclpy is missing: source ROS 2 Jazzy, or install the extra '.[jazzy]'",
                    allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    """Import a test module only where it can be."""
    return (pytest.Module if HAS_ROS else SkippedModule).from_parent(parent, path=module_path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test beside this file with `ros`."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ros)


def wait_until(predicate: Callable[[], Any], step: Callable[[], None], what: str,
               timeout_s: float = TIMEOUT_S) -> Any:
    """Call `step` until `predicate` is true, and return its value; fail and say `what` if late."""
    deadline = time.monotonic() + timeout_s
    while not (value := predicate()):
        if time.monotonic() > deadline:
            pytest.fail(f'{what}: not within {timeout_s} s')
        step()
    return value


class Report(NamedTuple):
    """What a node says about itself on /diagnostics."""

    level: bytes
    message: str
    values: dict[str, str]


class Probe:
    """A node beside the one that is tested: it publishes, collects, calls and waits."""

    def __init__(self, name: str = 'probe') -> None:
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.node import Node

        self.node = Node(name, start_parameter_services=False)
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self._reports: list | None = None

    def add(self, node: Any) -> Any:
        """Spin another node of this process along with the probe."""
        self.executor.add_node(node)
        return node

    def spin(self) -> None:
        """Run what is ready, for a moment."""
        self.executor.spin_once(timeout_sec=0.02)

    def wait(self, predicate: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S) -> Any:
        """Spin until `predicate` is true."""
        return wait_until(predicate, self.spin, what, timeout_s)

    def collect(self, kind: type, topic: str, qos: Any = 100) -> list:
        """Return a list that fills with the messages of a topic."""
        messages: list = []
        self.node.create_subscription(kind, topic, messages.append, qos)
        return messages

    def report(self, name: str,
               predicate: Callable[[dict[str, str]], Any] = lambda values: True) -> Report:
        """Return the first report of a node, made from now on, whose values are as expected."""
        from diagnostic_msgs.msg import DiagnosticArray

        from diffusion_policy_ros.control.readings import diagnostics_values
        from diffusion_policy_ros.nodes.qos import LATCHED

        since_ns = time.time_ns()
        if self._reports is None:
            reports = self._reports = []
            self.node.create_subscription(
                DiagnosticArray, '/diagnostics',
                lambda msg, info: reports.append((info['source_timestamp'], msg)), LATCHED)
        self._reports.clear()

        def found() -> Report | None:
            for sent_ns, msg in self._reports:
                values = diagnostics_values(msg, name)
                if sent_ns > since_ns and values is not None and predicate(values):
                    return Report(msg.status[0].level, msg.status[0].message, values)
            return None

        return self.wait(found, f'a report of {name}')

    def publisher(self, kind: type, topic: str, qos: Any = 100, readers: int = 1) -> Any:
        """Return a publisher once it has found `readers` subscriptions."""
        publisher = self.node.create_publisher(kind, topic, qos)
        self.wait(lambda: publisher.get_subscription_count() >= readers, f'a reader of {topic}')
        return publisher

    def call(self, kind: type, service: str, request: Any = None) -> Any:
        """Call a service of a node once, after meeting it, and return its response."""
        client = self.node.create_client(kind, service)
        self.meet(service.rpartition('/')[0])
        self.wait(client.service_is_ready, f'service {service}')
        future = client.call_async(request or kind.Request())
        self.wait(future.done, f'the answer of {service}')
        self.node.destroy_client(client)
        return future.result()

    def meet(self, name: str) -> None:
        """
        Wait until a node knows all subscriptions and clients that the probe has by now.

        A node drops an answer whose client it has not found within 0.1 s, so the request is
        repeated. An answer that comes shows that it has found this client, which was announced
        after the others.
        """
        from rcl_interfaces.srv import ListParameters

        from diffusion_policy_ros.nodes.self_spinning import AGAIN_S, asking

        service = f'{name}/list_parameters'
        client = self.node.create_client(ListParameters, service)
        self.wait(client.service_is_ready, f'service {service}')
        self.wait(asking(client, ListParameters.Request(), AGAIN_S), f'the answer of {service}')
        self.node.destroy_client(client)

    def close(self) -> None:
        """Take the node out of the graph."""
        self.executor.shutdown()
        self.node.destroy_node()


class Process:
    """One node of the package as a process of its own."""

    def __init__(self, module: str, name: str, parameters: Mapping[str, Any],
                 folder: Path, extra: tuple[str, ...] = ()) -> None:
        path = folder / f'{name}.yaml'
        path.write_text(yaml.safe_dump({'/**': {'ros__parameters': dict(parameters)}}))
        self.log_path = folder / f'{name}-{time.monotonic_ns()}.log'
        environment = {**os.environ, 'ROS_LOG_DIR': str(folder), 'RCUTILS_COLORIZED_OUTPUT': '0',
                       'PYTHONPATH': f'{REPOSITORY}:{os.environ.get("PYTHONPATH", "")}'}
        code = f'from diffusion_policy_ros.nodes.{module} import main; raise SystemExit(main())'
        with self.log_path.open('w') as log:
            self._process = subprocess.Popen(
                [sys.executable, '-c', code, '--ros-args', '-r', f'__node:={name}',
                 '--params-file', str(path), *extra],
                env=environment, stdout=log, stderr=subprocess.STDOUT)

    @property
    def log(self) -> str:
        """All that the process has printed."""
        return self.log_path.read_text()

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """Return its exit code once it has ended."""
        return self._process.wait(timeout_s)

    def end(self) -> None:
        """End it for good."""
        if self.exit_code is None:
            self.signal(signal.SIGKILL)
            self.wait()


@pytest.fixture(scope='module', autouse=True)
def domain_id() -> int:
    """Give the tests of a module a domain that no others on this machine have, or have had."""
    number, lock = own_domain()
    _locks.append(lock)
    os.environ['ROS_DOMAIN_ID'] = str(number)
    return number


@pytest.fixture(scope='module')
def ros(domain_id: int) -> Iterator[None]:
    """Initialise rclpy for the tests of a module, and end it."""
    import rclpy

    from diffusion_policy_ros.nodes import spin

    spin.init([])
    yield
    rclpy.try_shutdown()


@pytest.fixture()
def probe(ros: None) -> Iterator[Probe]:
    """Return a probe."""
    result = Probe()
    yield result
    result.close()


def _processes(folder: Path) -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def start_process(module: str, name: str, parameters: Mapping[str, Any],
                      extra: tuple[str, ...] = ()) -> Process:
        processes.append(Process(module, name, parameters, folder, extra))
        return processes[-1]

    yield start_process
    for process in processes:
        process.end()
        print(f'{process.log_path.name}:\n{process.log}')  # shown where a test has failed


@pytest.fixture()
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Return a function that starts a node as a process; all are ended after the test."""
    yield from _processes(tmp_path)


@pytest.fixture(scope='module')
def start_once(tmp_path_factory: pytest.TempPathFactory,
               domain_id: int) -> Iterator[Callable[..., Process]]:
    """Return the same, for processes that all tests of a module share."""
    yield from _processes(tmp_path_factory.mktemp('nodes'))
