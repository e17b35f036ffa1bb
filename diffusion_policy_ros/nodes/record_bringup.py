"""Which nodes record demonstrations, and with which parameters; see bringup.py."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
import re

from diffusion_policy_ros.datatypes import NS_PER_S
from diffusion_policy_ros.nodes.bringup import (
    ARM, check_choices, check_endless, MODES, new_folder, node_specs, NodeSpec,
)
from diffusion_policy_ros.sim.tasks import (
    check_collection_seed, check_task, FIRST_COLLECTION_SEED, STEP_NS, TICKS_AFTER_SUCCESS,
)


@dataclass(frozen=True)
class RecordSettings:
    """
    What is recorded; each field is an argument of the launch file and of `make record`.

    Raises:
        ValueError: in one line that names the argument.
    """

    task: str = field(default='drawer-open-v3', metadata={'description': 'MetaWorld task.'})
    folder: str = field(default='', metadata={
        'description': 'Folder of the bags, one an episode; empty for bags/<task>.'})
    episodes: int = field(default=10, metadata={
        'description': 'Successes to record; 0 for an arm that is recorded when ~/start and '
                       '~/save of demo_recorder are called, without sim_runner, in realtime.'})
    seed: int = field(default=0, metadata={
        'description': "The first episode's seed; 0 for the one after the last in the folder."})
    teleoperator: str = field(default='expert', metadata={
        'description': "Who moves the arm: MetaWorld's expert, or a person with a gamepad or "
                       'SpaceMouse whose driver publishes /joy.', 'choices': ('expert', 'joy')})
    cameras: str = field(default='arm wrist', metadata={
        'description': 'Cameras to record, with spaces between.'})
    image_size: int = field(default=224, metadata={
        'description': 'Pixels a side of their images.'})
    image_every: int = field(default=1, metadata={
        'description': 'Ticks of 12.5 ms from one image to the next.'})
    image_storage: str = field(default='raw', metadata={
        'description': 'Keep images as they are, or as JPEG.', 'choices': ('raw', 'jpeg')})
    jpeg_quality: int = field(default=95, metadata={'description': 'Of image_storage jpeg.'})
    description: str = field(default='', metadata={
        'description': 'The task in words, kept in each bag; empty for its name.'})
    note: str = field(default='', metadata={'description': 'A note that is kept in each bag.'})
    mode: str = field(default='lockstep', metadata={
        'description': 'lockstep: each tick of the simulator waits for its target; realtime: the '
                       'simulator goes by the clock.', 'choices': MODES})
    real_time_factor: float = field(default=1.0, metadata={
        'description': 'Sim seconds a wall second, in realtime.'})
    namespace: str = field(default='', metadata={
        'description': 'Namespace of all nodes and topics, /clock and /tf among them.'})
    wait_limit_s: float = field(default=30.0, metadata={
        'description': 'Wall-clock limit in seconds of a wait for a node; then the run ends and '
                       'names the missing topic.'})
    out: str = field(default='', metadata={
        'description': "Folder of the run's summary and logs; empty for out/record/<time>."})

    def __post_init__(self) -> None:
        check_task(self.task)
        check_choices(self)
        if not self.cameras.split():
            raise ValueError(f'cameras is {self.cameras!r}, expected at least one')
        if self.episodes < 0 or min(self.image_size, self.image_every) < 1:
            raise ValueError(f'episodes is {self.episodes}, image_size {self.image_size} and '
                             f'image_every {self.image_every}, expected at least 0, 1 and 1')
        if not 0 < self.real_time_factor <= 1000 or not self.wait_limit_s > 0:
            raise ValueError(f'real_time_factor is {self.real_time_factor} and wait_limit_s '
                             f'{self.wait_limit_s}, expected more than 0')
        if self.teleoperator == 'joy' and (self.mode != 'realtime' or self.episodes):
            raise ValueError(f'mode is {self.mode} and episodes {self.episodes}, expected '
                             'realtime and 0 with the teleoperator joy, who starts and saves by '
                             'button')
        check_endless(self.episodes, self.mode)
        if self.seed:
            check_collection_seed(self.seed)


def next_seed(folder: Path) -> int:
    """Return the seed after the greatest that a bag in this folder was recorded with."""
    seeds = [int(seed) for path in folder.glob('*/metadata.yaml')
             for seed in re.findall(r"^ +seed: '(\d+)'$", path.read_text(), re.MULTILINE)]
    return max(seeds, default=FIRST_COLLECTION_SEED - 1) + 1


def record_nodes(settings: RecordSettings) -> list[NodeSpec]:
    """Return bridge, executor, teleoperator, recorder and, unless `episodes` is 0, sim_runner."""
    lockstep, joy = settings.mode == 'lockstep', settings.teleoperator == 'joy'
    common = {'use_sim_time': not lockstep}
    cameras, renderer = settings.cameras.split(), 'plain'
    folder = settings.folder or f'bags/{settings.task}'
    seed = settings.seed or next_seed(Path(folder).expanduser())
    nodes = {
        'metaworld_bridge': ('metaworld_bridge_node', {
            'task': settings.task, 'seed': seed, 'mode': settings.mode,
            'real_time_factor': settings.real_time_factor, 'wait_limit_s': settings.wait_limit_s,
            'ticks_after_success': TICKS_AFTER_SUCCESS, 'autostart': settings.episodes == 0,
            # What an arm does after its episode would be in the next one's bag.
            'end_episodes': settings.episodes > 0,
            'image_height': settings.image_size, 'image_width': settings.image_size,
            'image_every': settings.image_every, 'renderer': renderer, 'cameras': cameras}),
        'chunk_executor': ('chunk_executor_node', {
            **common, 'arm': ARM, 'lockstep': lockstep, 'enable_on_start': True}),
        'demo_recorder': ('demo_recorder_node', {
            'folder': folder, 'task': settings.description or settings.task,
            'note': settings.note, 'tags': [f'renderer={renderer}'],
            'image_storage': settings.image_storage, 'jpeg_quality': settings.jpeg_quality,
            'step_s': 1.5 * settings.image_every * STEP_NS / NS_PER_S, 'cameras': cameras}),
        **({'joy_teleop': ('joy_teleop_node', common)} if joy else
           {'expert': ('expert_node', {**common, 'task': settings.task})}),
    }
    if settings.episodes:
        nodes['sim_runner'] = ('sim_runner', {
            'task': settings.task, 'actor': 'expert', 'mode': settings.mode,
            'real_time_factor': settings.real_time_factor, 'episodes': settings.episodes,
            'seed': seed, 'record': True, 'renderer': renderer, 'video': False,
            'ticks_after_success': TICKS_AFTER_SUCCESS, 'wait_limit_s': settings.wait_limit_s,
            'out': settings.out or new_folder('record')})
    return [_with_the_device(spec) for spec in node_specs(nodes, settings.namespace)]


def _with_the_device(spec: NodeSpec) -> NodeSpec:
    """Let joy_teleop hear /joy in a namespace, too: a driver doesn't know of it."""
    if spec.executable != 'joy_teleop' or not spec.namespace:
        return spec
    return replace(spec, remappings=(*spec.remappings, ('joy', '/joy')))
