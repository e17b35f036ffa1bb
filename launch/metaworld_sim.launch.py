"""MetaWorld's arm, the executor, the policy, the runner of episodes: what `make sim` starts."""

from dataclasses import fields

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, Shutdown
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from diffusion_policy_ros.nodes.bringup import (
    metaworld_nodes, NodeSpec, settings_from, SimSettings,
)
from diffusion_policy_ros.nodes.resources import find

SETTINGS = [field.name for field in fields(SimSettings)]
YES_OR_NO = ('true', 'false')


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments; the nodes follow from them."""
    arguments = [_argument(field.name, field.metadata['description'], field.default,
                           field.metadata.get('choices')) for field in fields(SimSettings)]
    return LaunchDescription([
        *arguments,
        _argument('respawn', 'Start the policy again when it ends.', False),
        _argument('rviz', 'Start RViz, too.', False),
        OpaqueFunction(function=_start)])


def _argument(name: str, description: str, default: object,
              choices: tuple[str, ...] | None = None) -> DeclareLaunchArgument:
    if isinstance(default, bool):
        default, choices = str(default).lower(), YES_OR_NO
    return DeclareLaunchArgument(name, default_value=str(default), description=description,
                                 choices=choices)


def _start(context: LaunchContext) -> list[Node]:
    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    settings = settings_from({name: value(name) for name in SETTINGS})
    nodes = [_node(spec, value('respawn') == 'true') for spec in metaworld_nodes(settings)]
    if value('rviz') == 'true':
        nodes.append(Node(
            package='rviz2', executable='rviz2', namespace=settings.namespace or None,
            arguments=['-d', str(find('rviz/metaworld.rviz'))],
            parameters=[{'use_sim_time': True}],
            remappings=[('/clock', 'clock'), ('/tf', 'tf')] if settings.namespace else []))
    return nodes


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
