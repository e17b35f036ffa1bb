from dataclasses import replace

import pytest

from diffusion_policy_ros.policy.config import (
    ActionSpec,
    CameraSpec,
    NoiseConfig,
    ObservationSpec,
    PolicyConfig,
    UnetConfig,
    VisionConfig,
)

CAMERA = CameraSpec('arm', 224, 224, 96, 96)


def config(**changes):
    return PolicyConfig(**{'observation': ObservationSpec((CAMERA,)), **changes})


def test_derived_numbers_of_the_paper():
    paper = config(n_obs_steps=2, horizon=8, n_action_steps=4, dt_s=0.0125)
    assert paper.n_chunk_points == 7
    assert paper.chunk_period_ns == 50_000_000
    assert paper.latency_budget_s == pytest.approx(0.025)
    assert paper.action.dim == 4
    assert paper.observation.state_dim == 4


@pytest.mark.parametrize('state, target, streams', [
    (('ee_position', 'gripper'), 'relative', ('arm', 'ee_pose', 'gripper')),
    ((), 'relative', ('arm', 'ee_pose')),
    ((), 'absolute', ('arm', 'ee_pose')),
    (('gripper',), 'delta', ('arm', 'ee_pose', 'gripper')),
])
def test_streams_are_the_cameras_the_pose_and_what_the_state_needs(state, target, streams):
    assert config(observation=ObservationSpec((CAMERA,), state),
                  action=ActionSpec(target=target)).streams == streams


@pytest.mark.parametrize('build, words', [
    (lambda: config(horizon=4), ('n_obs_steps 2', 'n_action_steps 4', 'horizon 4')),
    (lambda: config(horizon=10), ('horizon is 10', 'multiple of 4')),
    (lambda: config(dt_s=0.0), ('dt_s is 0.0',)),
    (lambda: config(dt_s=1e-10), ('dt_s is 1e-10', 'expected 0.0001 to 3600')),
    (lambda: config(network='mlp'), ("network is 'mlp'", 'unet')),
    (lambda: config(vision=VisionConfig(crop_height=100)), ('100x84', 'camera arm 96x96')),
    (lambda: ActionSpec(target='relativ'), ("'relativ'", 'relative')),
    (lambda: ActionSpec(parts=('gripper',)), ('ee_position',)),
    (lambda: ObservationSpec((CAMERA, CAMERA)), ('named twice',)),
    (lambda: ObservationSpec((CAMERA,), ('lag',)), ("'lag'",)),
    (lambda: replace(CAMERA, name='wrist.cam'), ("'wrist.cam'", 'expected a topic')),
    (lambda: replace(CAMERA, name='left/wrist cam'), ("'left/wrist cam'",)),
    (lambda: replace(CAMERA, name='gripper'), ("'gripper'", "arm's streams")),
    (lambda: ObservationSpec((), ()), ('neither cameras nor state',)),
    (lambda: VisionConfig(base_width=24), ('24', 'multiple of 16')),
    (lambda: VisionConfig(crop_height=32, crop_width=20), ('32x20', 'more than 32')),
    (lambda: UnetConfig(down_dims=(64, 100)), ('100', 'n_groups 8')),
    (lambda: UnetConfig(diffusion_step_embed_dim=3), ('diffusion_step_embed_dim is 3', 'even')),
    (lambda: NoiseConfig(num_inference_steps=101), ('101', '100')),
    (lambda: NoiseConfig(num_inference_steps=1), ('level 1 of 100', 'trailing')),
    (lambda: NoiseConfig(num_inference_steps=51), ('level 51 of 100', 'trailing')),
    (lambda: NoiseConfig(timestep_spacing='linspace'), ('linspace', 'leading')),
    (lambda: NoiseConfig(sampler='euler'), ('euler', 'ddpm')),
])
def test_refuses_with_both_values(build, words):
    with pytest.raises(ValueError) as error:
        build()
    for word in words:
        assert word in str(error.value)
    assert '\n' not in str(error.value)
