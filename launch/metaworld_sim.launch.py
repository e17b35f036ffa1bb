"""MetaWorld's arm, the executor, the policy, the runner of episodes: what `make sim` starts."""

from launch import LaunchContext, LaunchDescription
from launch_ros.actions import Node

from diffusion_policy_ros.nodes.bringup import metaworld_nodes, SimSettings
from diffusion_policy_ros.nodes.launching import (
    argument, launch_argument, settings_arguments, start,
)
from diffusion_policy_ros.nodes.resources import find


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments; the nodes follow from them."""
    return LaunchDescription([
        *settings_arguments(SimSettings),
        launch_argument('respawn', 'Start the policy again when it ends.', False),
        launch_argument('rviz', 'Start RViz, too.', False),
        start(SimSettings, metaworld_nodes, _rviz)])


def _rviz(context: LaunchContext, settings: SimSettings) -> list[Node]:
    if argument(context, 'rviz') != 'true':
        return []
    return [Node(
        package='rviz2', executable='rviz2', namespace=settings.namespace or None,
        arguments=['-d', str(find('rviz/metaworld.rviz'))], parameters=[{'use_sim_time': True}],
        remappings=[('/clock', 'clock'), ('/tf', 'tf')] if settings.namespace else [])]
