"""
The one place that says which nodes make a run in simulation, and with which parameters.

launch/metaworld_sim.launch.py and nodes/supervisor.py both start what `metaworld_nodes` returns.
A node's parameters are those of config/<node>.yaml and, over them, what follows from the
checkpoint and from `SimSettings`. Neither rclpy, torch nor launch is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
import time
from typing import Any, TypeVar

from diffusion_policy_ros.datatypes import NS_PER_S
from diffusion_policy_ros.nodes.resources import config_folder, find
from diffusion_policy_ros.policy.checkpoint_config import read_config
from diffusion_policy_ros.policy.config import PolicyConfig
from diffusion_policy_ros.sim.tasks import check_evaluation_seed, check_task, STEP_NS, VIEW_CAMERA
from diffusion_policy_ros.typed import load_yaml

MODES = ('lockstep', 'realtime')
ARM = 'arms/metaworld.yaml'
T = TypeVar('T')


def check_choices(settings: Any) -> None:
    """Raise a ValueError that names the first field whose value is none of its choices."""
    for item in fields(settings):
        value, choices = getattr(settings, item.name), item.metadata.get('choices')
        if choices and value not in choices:
            raise ValueError(f'{item.name} is {value!r}, expected {" or ".join(choices)}')


def check_endless(episodes: int, mode: str) -> None:
    """Raise a ValueError where an arm without episodes would stop after its first one."""
    if not episodes and mode == 'lockstep':
        raise ValueError('episodes is 0 and mode lockstep, expected mode:=realtime: an arm in '
                         'lockstep stops where its episode ends')


def new_folder(kind: str) -> str:
    """Return the folder of a run that begins now and was given none."""
    return time.strftime(f'out/{kind}/%Y-%m-%d_%H-%M-%S')


@dataclass(frozen=True)
class SimSettings:
    """
    What a run in simulation is; each field is an argument of the launch file and of `make sim`.

    Raises:
        ValueError: in one line that names the argument.
    """

    task: str = field(default='', metadata={
        'description': "MetaWorld task, drawer-open-v3 for example; empty for the checkpoint's."})
    checkpoint: str = field(default='checkpoints/drawer_open', metadata={
        'description': "Folder of the policy's checkpoint: a path, or one inside the package's "
                       'config folder.'})
    mode: str = field(default='lockstep', metadata={
        'description': 'lockstep: each tick of the simulator waits for its command, and a run can '
                       'be repeated; realtime: the simulator goes by the clock.',
        'choices': MODES})
    real_time_factor: float = field(default=0.0, metadata={
        'description': 'Sim seconds a wall second, in realtime; 0 for the largest that this '
                       'machine holds, which sim_runner looks for first, and for 1 without it.'})
    episodes: int = field(default=10, metadata={
        'description': 'Episodes, one a seed; 0 for an arm that goes on until it is stopped, '
                       'without sim_runner, in realtime.'})
    seed: int = field(default=0, metadata={'description': "The first episode's seed."})
    namespace: str = field(default='', metadata={
        'description': 'Namespace of all nodes and topics, /clock and /tf among them, so that '
                       'arms run side by side.'})
    video: bool = field(default=True, metadata={
        'description': 'Write a video of the run, with the predicted chunks drawn into it.'})
    wait_limit_s: float = field(default=30.0, metadata={
        'description': 'Wall-clock limit in seconds of a wait for a node, a policy that was '
                       'killed for example; then the run ends and names the missing topic.'})
    out: str = field(default='', metadata={
        'description': 'Folder for what the run writes; empty for out/sim/<time>.'})

    def __post_init__(self) -> None:
        if self.task:
            check_task(self.task)
        check_choices(self)
        if self.episodes < 0 or not 0 <= self.real_time_factor <= 1000:
            raise ValueError(f'episodes is {self.episodes} and real_time_factor '
                             f'{self.real_time_factor}, expected at least 0 and 0 to 1000')
        if not self.wait_limit_s > 0:
            raise ValueError(f'wait_limit_s is {self.wait_limit_s}, expected more than 0')
        check_endless(self.episodes, self.mode)
        for seed in (self.seed, self.seed + max(0, self.episodes - 1)):
            check_evaluation_seed(seed)


@dataclass(frozen=True)
class NodeSpec:
    """
    One process.

    Attributes:
        executable: name that `ros2 run` knows; also the node's.
        module: of nodes/, that holds its `main`.
        namespace: empty or a name.
        parameters: all of them that are not the default's.
        remappings: pairs of names.
    """

    executable: str
    module: str
    namespace: str
    parameters: dict[str, Any]
    remappings: tuple[tuple[str, str], ...]

    @property
    def ros_arguments(self) -> list[str]:
        """Command line arguments but for the parameters, which go into a file."""
        rules = [('__node', self.executable), *self.remappings]
        if self.namespace:
            rules.append(('__ns', f'/{self.namespace.strip("/")}'))
        return ['--ros-args', *(part for old, new in rules for part in ('-r', f'{old}:={new}'))]


def metaworld_nodes(settings: SimSettings) -> list[NodeSpec]:
    """
    Return the bridge, the executor, the policy and, unless `episodes` is 0, sim_runner.

    Raises:
        ValueError: in one line: no such checkpoint, or one that the simulator can't serve.
    """
    checkpoint = find(settings.checkpoint).resolve()
    config = read_config(checkpoint)
    settings = replace(settings, task=check_task(settings.task or config.task))
    lockstep = settings.mode == 'lockstep'
    factor = settings.real_time_factor or 1.0
    common = {'use_sim_time': not lockstep}
    nodes = {
        'metaworld_bridge': ('metaworld_bridge_node', {
            'task': settings.task, 'seed': settings.seed, 'mode': settings.mode,
            'real_time_factor': factor, 'wait_limit_s': settings.wait_limit_s,
            'autostart': settings.episodes == 0,
            'view_camera': VIEW_CAMERA if settings.video and settings.episodes else '',
            **_pictures(config)}),
        'chunk_executor': ('chunk_executor_node', {
            **common, 'arm': ARM, 'lockstep': lockstep,
            'n_action_steps': config.n_action_steps, 'dt_s': config.dt_s,
            'enable_on_start': True}),
        'policy': ('policy_node', {
            **common, 'checkpoint': str(checkpoint), 'lockstep': lockstep}),
    }
    if settings.episodes:
        nodes['sim_runner'] = ('sim_runner', {
            'checkpoint': str(checkpoint), 'task': settings.task, 'mode': settings.mode,
            'real_time_factor': settings.real_time_factor, 'episodes': settings.episodes,
            'seed': settings.seed, 'video': settings.video, 'out': settings.out,
            'wait_limit_s': settings.wait_limit_s})
    return node_specs(nodes, settings.namespace)


def node_parameters(name: str) -> dict[str, Any]:
    """
    Return what config/<name>.yaml sets.

    Raises:
        ValueError: the file is missing, or is not one of a single node's parameters.
    """
    path = config_folder() / f'{name}.yaml'
    values = load_yaml(path)
    try:
        (node,) = values.values()
        return dict(node['ros__parameters'])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(f'{path}: expected one node with ros__parameters') from None


def settings_from(cls: type[T], values: dict[str, str]) -> T:
    """
    Return settings of a class from text, as a command line gives it; a missing one is the default.

    Raises:
        ValueError: in one line that names the argument.
    """
    kinds = {item.name: type(item.default) for item in fields(cls)}
    return cls(**{name: _parse(name, kinds[name], text) for name, text in values.items()})


def _parse(name: str, kind: type, text: str) -> Any:
    try:
        return {'true': True, 'false': False}[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        expected = 'true or false' if kind is bool else f'a value of type {kind.__name__}'
        raise ValueError(f'{name} is {text!r}, expected {expected}') from None


def node_specs(nodes: Mapping[str, tuple[str, dict[str, Any]]], namespace: str) -> list[NodeSpec]:
    """Return one process for each executable: its module, and what differs from its YAML file."""
    # Each namespace has its own time and transforms: /clock has one owner.
    own = (('/clock', 'clock'), ('/tf', 'tf')) if namespace else ()
    return [NodeSpec(name, module, namespace, {**node_parameters(name), **parameters}, own)
            for name, (module, parameters) in nodes.items()]


def _pictures(config: PolicyConfig) -> dict[str, Any]:
    """Return the bridge's cameras as the checkpoint was trained on them."""
    ticks, rest = divmod(config.dt_ns, STEP_NS)
    if rest or not ticks:
        raise ValueError(f'checkpoint: dt_s is {config.dt_s}, expected a multiple of the '
                         f"simulator's tick {STEP_NS / NS_PER_S} s")
    cameras = config.observation.cameras
    sizes = {(camera.source_height, camera.source_width) for camera in cameras}
    if len(sizes) > 1:
        raise ValueError(f'checkpoint: its cameras have source sizes {sorted(sizes)}, expected '
                         'one for all: the simulator draws them alike')
    parameters: dict[str, Any] = {'image_every': ticks, 'renderer': config.renderer or 'plain'}
    if cameras:  # an empty list is no parameter
        parameters['cameras'] = [camera.name for camera in cameras]
    for height, width in sizes:
        parameters |= {'image_height': height, 'image_width': width}
    return parameters
