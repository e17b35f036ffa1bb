"""The qualities of service in use."""

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

# A command that has waited is worth nothing; readings are, where ticks wait for who stalls.
RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
READINGS = QoSProfile(depth=200, reliability=ReliabilityPolicy.RELIABLE)
PICTURES = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE,
                     durability=DurabilityPolicy.TRANSIENT_LOCAL)
INPUT_RELIABILITY = ('best_effort', 'reliable')


def input_qos(reliability: str, depth: int = 10) -> QoSProfile:
    """Return the QoS of a sensor subscription; best effort reads any publisher."""
    kind = ReliabilityPolicy.BEST_EFFORT if reliability == 'best_effort' else (
        ReliabilityPolicy.RELIABLE)
    return QoSProfile(depth=depth, reliability=kind)
