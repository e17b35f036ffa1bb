"""What the launch files share: arguments and nodes that follow from a class of settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from launch import LaunchContext
from launch.actions import DeclareLaunchArgument, OpaqueFunction, Shutdown
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from diffusion_policy_ros.nodes.bringup import NodeSpec, settings_from

YES_OR_NO = ('true', 'false')


def settings_arguments(cls: type) -> list[DeclareLaunchArgument]:
    """Return one argument for each field of a class of settings."""
    return [launch_argument(item.name, item.metadata['description'], item.default,
                            item.metadata.get('choices')) for item in fields(cls)]


def launch_argument(name: str, description: str, default: object,
                    choices: Sequence[str] | None = None) -> DeclareLaunchArgument:
    """Return an argument; one that is true or false takes nothing else."""
    if isinstance(default, bool):
        default, choices = str(default).lower(), YES_OR_NO
    return DeclareLaunchArgument(name, default_value=str(default), description=description,
                                 choices=choices)


def start(cls: type, specs: Callable[[Any], Sequence[NodeSpec]],
          more: Callable[[LaunchContext, Any], list[Node]] = lambda context, settings: [],
          ) -> OpaqueFunction:
    """
    Return the action that starts the nodes.

    Args:
        cls: class of settings, made from the launch arguments.
        specs: from settings to nodes.
        more: nodes of the launch file's own.
    """
    def action(context: LaunchContext) -> list[Node]:
        settings = settings_from(cls, {item.name: argument(context, item.name)
                                       for item in fields(cls)})
        respawn = argument(context, 'respawn', 'false') == 'true'
        return [*(_node(spec, respawn) for spec in specs(settings)), *more(context, settings)]
    return OpaqueFunction(function=action)


def argument(context: LaunchContext, name: str, default: str | None = None) -> str:
    """Return the text of a launch argument."""
    return LaunchConfiguration(name, default=default).perform(context)


def _node(spec: NodeSpec, respawn: bool) -> Node:
    # A string would be read as YAML: a folder called 2026 as a number.
    parameters = {name: ParameterValue(value, value_type=str) if isinstance(value, str) else value
                  for name, value in spec.parameters.items()}
    is_policy = spec.executable == 'policy'
    return Node(
        package='diffusion_policy_ros', executable=spec.executable, name=spec.executable,
        namespace=spec.namespace or None, parameters=[parameters], remappings=spec.remappings,
        output='screen', respawn=respawn and is_policy, respawn_delay=1.0,
        sigterm_timeout='15',  # a busy machine's inference ends before its process does
        on_exit=None if respawn and is_policy else _ends_all(spec.executable))


def _ends_all(name: str):
    """Return what to do at a node's end: end all, but wait for a policy that was killed."""
    def on_exit(event: ProcessExited, context: LaunchContext) -> Shutdown | None:
        if name == 'policy' and event.returncode < 0:
            return None
        return Shutdown(reason=f'{name} ended with exit code {event.returncode}')
    return on_exit
