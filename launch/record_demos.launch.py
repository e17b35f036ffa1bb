"""MetaWorld's arm, a teleoperator and the recorder: what `make record` starts."""

from launch import LaunchDescription

from diffusion_policy_ros.nodes.launching import settings_arguments, start
from diffusion_policy_ros.nodes.record_bringup import record_nodes, RecordSettings


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments; the nodes follow from them."""
    return LaunchDescription([*settings_arguments(RecordSettings),
                              start(RecordSettings, record_nodes)])
