"""
Diffusion Policy on a robot arm, from camera messages to safe, timed commands.

| stage                     | file                       | in -> out                         |
|---------------------------|----------------------------|-----------------------------------|
| messages to values        | nodes/messages.py          | Image, PoseStamped -> Observation |
| align on stamps           | control/horizon.py         | Observation -> ObservationWindow  |
| predict                   | policy/diffusion_policy.py | ObservationWindow -> Chunk        |
| publish, receive          | nodes/messages.py          | Chunk -> trajectories -> Chunk    |
| blend with the last chunk | control/blending.py        | Chunk, Chunk -> Chunk             |
| limit                     | control/limits.py          | target -> Command                 |
| the two above, on a tick  | control/executor.py        | now -> Command, Status            |
| arm                       | sim/arm.py, or hardware    | Command -> Observation            |

Import rule (a test checks it): rclpy and message packages only in nodes/; torch only in policy/
and the policy node; policy/ imports nothing else of the package but datatypes; control/ is
NumPy alone. This module imports nothing.
"""
