"""Print docs/parameters.md: `python -m diffusion_policy_ros.nodes.parameter_table > FILE`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from diffusion_policy_ros.nodes.chunk_executor_node import ChunkExecutorNodeConfig
from diffusion_policy_ros.nodes.demo_recorder_node import RecorderConfig
from diffusion_policy_ros.nodes.expert_node import ExpertConfig
from diffusion_policy_ros.nodes.joy_teleop_node import JoyTeleopConfig
from diffusion_policy_ros.nodes.metaworld_bridge_node import BridgeConfig
from diffusion_policy_ros.nodes.policy_node import PolicyNodeConfig
from diffusion_policy_ros.nodes.sim_runner import RunnerConfig

CONFIGS = {'policy': PolicyNodeConfig, 'chunk_executor': ChunkExecutorNodeConfig,
           'metaworld_bridge': BridgeConfig, 'expert': ExpertConfig,
           'demo_recorder': RecorderConfig, 'joy_teleop': JoyTeleopConfig,
           'sim_runner': RunnerConfig}


def table(config: type) -> list[str]:
    """Return the Markdown rows of one node's parameters."""
    rows = ['| parameter | default | unit | allowed | description |', '|---|---|---|---|---|']
    for item in fields(config):
        meta = item.metadata
        default = list(item.default) if isinstance(item.default, tuple) else item.default
        default = repr(default) if default == '' else default
        rows.append(f"| `{item.name}` | `{default}` | {meta.get('unit', '')} | {_allowed(meta)} "
                    f"| {meta['description']} |")
    return rows


def _allowed(meta: Mapping) -> str:
    if 'choices' in meta:
        return ', '.join(f'`{choice}`' for choice in meta['choices'])
    low, high = meta.get('min'), meta.get('max')
    if high is None:
        return '' if low is None else f'at least {low:g}'
    return f'{low:g} to {high:g}' if low is not None else f'at most {high:g}'


def page() -> str:
    """Return the whole page."""
    lines = ['# Parameters', '',
             'Printed from the code by `python -m diffusion_policy_ros.nodes.parameter_table`; '
             '`ros2 param describe` shows the same. `config/<node>.yaml` has a line for each.']
    for name, config in CONFIGS.items():
        lines += ['', f'## {name}', '', *table(config)]
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    print(page(), end='')
