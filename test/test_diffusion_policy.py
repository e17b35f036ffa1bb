from dataclasses import replace

from diffusers import DDIMScheduler, DDPMScheduler
import numpy as np
import pytest
import torch

from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER, ObservationWindow
from diffusion_policy_ros.policy.actions import encode_action
from diffusion_policy_ros.policy.config import (
    ActionSpec,
    CameraSpec,
    NoiseConfig,
    ObservationSpec,
    PolicyConfig,
    UnetConfig,
    VisionConfig,
)
from diffusion_policy_ros.policy.diffusion import add_noise
from diffusion_policy_ros.policy.diffusion_policy import DiffusionPolicy, draw, episode_noise
from diffusion_policy_ros.policy.normalizer import Normalizer

CAMERAS = (CameraSpec('arm', 64, 64, 40, 50), CameraSpec('wrist', 64, 64, 44, 42))
CONFIG = PolicyConfig(
    ObservationSpec(CAMERAS), vision=VisionConfig(base_width=16, crop_height=36, crop_width=40,
                                                  n_keypoints=8),
    unet=UnetConfig(down_dims=(16, 32, 64), diffusion_step_embed_dim=16),
    noise=NoiseConfig(num_inference_steps=4), dt_s=0.05)
DDPM = NoiseConfig(num_train_timesteps=10, num_inference_steps=10, sampler='ddpm')


def make_policy(config=CONFIG, seed=0):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    arrays = {'action': rng.uniform(-0.2, 0.3, (50, config.action.dim))}
    if config.observation.state:
        arrays['state'] = rng.uniform(-1, 2, (50, config.observation.state_dim))
    return DiffusionPolicy(config, Normalizer.fit(arrays))


def make_batch(config=CONFIG, n=3):
    rng = np.random.default_rng(3)
    frames = config.n_obs_steps
    images = {camera.name: torch.from_numpy(rng.integers(
        256, size=(n, frames, 3, camera.height, camera.width), dtype=np.uint8))
        for camera in config.observation.cameras}
    shape = n, config.horizon, config.action.dim
    return {'images': images, 'state': torch.from_numpy(
        rng.normal(size=(n, frames, config.observation.state_dim))),
        'action': torch.from_numpy(rng.uniform(-0.2, 0.3, shape))}


def make_window(seed, config=CONFIG):
    rng = np.random.default_rng(seed)
    streams = {camera.name: rng.integers(
        256, size=(config.n_obs_steps, camera.height, camera.width, 3), dtype=np.uint8)
        for camera in config.observation.cameras}
    quaternion = rng.normal(size=(config.n_obs_steps, 4))
    quaternion /= np.linalg.norm(quaternion, axis=1, keepdims=True)
    streams[EE_POSE] = np.hstack([rng.normal(size=(config.n_obs_steps, 3)), quaternion])
    streams[GRIPPER] = rng.uniform(size=(config.n_obs_steps, 1))
    return ObservationWindow(1_000 + seed, streams, 'base')


def make_noise(policy, n=1, seed=0):
    return torch.stack([episode_noise(seed, i, policy.noise_shape) for i in range(n)])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(batch, seed=0, n_draws=1, config=CONFIG):
    """Return a batch with the noise, levels and crops of a step added."""
    frames = next(iter(batch['images'].values())).shape[:-3] if batch['images'] else ()
    return {**batch, **draw(config, batch['action'].shape[:-2], frames, generator(seed), n_draws)}


def loss_of(policy, batch):
    """Return the loss of windows none of which share a frame."""
    return policy.loss(policy.encode(batch['images'], batch['crop']), batch['state'],
                       batch['action'], batch['noise'], batch['timestep'])


@pytest.mark.parametrize('prediction_type, target', [
    ('epsilon', lambda noise, clean: noise),
    ('sample', lambda noise, clean: clean),
])
def test_loss_by_hand(prediction_type, target):
    policy = make_policy(replace(CONFIG, noise=replace(CONFIG.noise,
                                                       prediction_type=prediction_type)))
    batch = drawn(make_batch())
    features = torch.stack([torch.cat(
        [encoder(batch['images'][name][:, step], batch['crop'][:, step, i])
         for i, (name, encoder) in enumerate(policy.encoders.items())]
        + [policy.normalizer.normalize('state', batch['state'][:, step])], dim=1)
        for step in range(2)], dim=1)
    timestep = batch['timestep']
    alpha_bar = torch.from_numpy(policy.alpha_bars).float()[timestep][:, None, None]
    clean = policy.normalizer.normalize('action', batch['action'])
    noisy = add_noise(clean, batch['noise'], alpha_bar)
    predicted = policy.network(noisy, policy.network.embed_step(timestep),
                               policy.network.embed_condition(features))
    expected = (predicted - target(batch['noise'], clean)).square().mean()
    torch.testing.assert_close(loss_of(policy, batch), expected)


def test_loss_is_a_function_of_its_batch():
    policy = make_policy().train()
    batch = drawn(make_batch())
    torch.manual_seed(1)
    first = loss_of(policy, batch)
    torch.manual_seed(2)
    assert loss_of(policy, batch).item() == first.item()
    assert loss_of(policy, drawn(make_batch(), 9)).item() != first.item()


def test_draw_is_a_function_of_the_generator():
    batch = make_batch(n=200)
    one, two = drawn(batch), drawn(batch)
    for key in ('noise', 'timestep', 'crop'):
        assert torch.equal(one[key], two[key])
    assert one['noise'].shape == (200, 8, 4)
    assert one['timestep'].unique().numel() > 80
    assert (one['timestep'].min() >= 0) and (one['timestep'].max() <= 99)
    largest = one['crop'].flatten(0, 1).amax(dim=0)
    assert largest.tolist() == [[40 - 36, 50 - 40], [44 - 36, 42 - 40]]
    assert one['crop'].flatten(0, 1).amin(dim=0).tolist() == [[0, 0], [0, 0]]


def test_every_frame_has_its_own_crop():
    crops = drawn(make_batch(n=50))['crop']
    assert not torch.equal(crops[:, 0], crops[:, 1])
    assert not torch.equal(crops[:, :, 0], crops[:, :, 1])


def test_frames_encoded_once_and_shared_give_the_loss_of_their_windows():
    policy = make_policy()
    batch = drawn(make_batch(n=5), n_draws=2)
    assert batch['noise'].shape == (2, 5, 8, 4)
    once = policy.encode({name: frames[:, 0] for name, frames in batch['images'].items()},
                         batch['crop'][:, 0])                        # (5, F)
    shared = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 4], [4, 4]])  # which two a window sees
    loss = policy.loss(once[shared], batch['state'], batch['action'], batch['noise'],
                       batch['timestep'])
    losses = [loss_of(policy, {
        'images': {name: frames[:, 0][shared] for name, frames in batch['images'].items()},
        'crop': batch['crop'][:, 0][shared], 'state': batch['state'], 'action': batch['action'],
        'noise': batch['noise'][draw], 'timestep': batch['timestep'][draw]}) for draw in range(2)]
    torch.testing.assert_close(loss, torch.stack(losses).mean(), atol=1e-5, rtol=1e-5)


def test_every_parameter_learns():
    policy = make_policy()
    loss_of(policy, drawn(make_batch())).backward()
    # A softmax does not change where all of a map is raised, so the maps' bias has no say.
    silent = [name for name, value in policy.named_parameters()
              if not value.grad.abs().max() > 1e-9 and not name.endswith('pool.maps.bias')]
    assert silent == []


@pytest.mark.slow
def test_training_on_one_action_makes_the_prediction_that_action():
    config = replace(CONFIG, observation=ObservationSpec((), ('ee_position', 'gripper')),
                     unet=UnetConfig(down_dims=(32, 64), diffusion_step_embed_dim=16))
    policy, window = make_policy(config), make_window(0, config)
    target = np.linspace([-0.1, 0.0, 0.1, -0.15], [0.2, 0.1, -0.1, 0.25], 8)
    state = np.hstack([window.streams[EE_POSE][:, :3], window.streams[GRIPPER]])
    batch = {'images': {}, 'state': torch.from_numpy(state).expand(64, 2, 4),
             'action': torch.from_numpy(target).expand(64, 8, 4)}
    wanted = np.hstack([window.streams[EE_POSE][-1, :3] + target[1:, :3], target[1:, 3:]])

    def error():
        chunk = policy.predict([window], make_noise(policy))[0]
        return np.abs(np.column_stack([chunk.position, chunk.gripper]) - wanted).max()

    assert error() > 0.2
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for step in range(150):
        loss = loss_of(policy, drawn(batch, step, config=config))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert error() < 0.1


@pytest.mark.parametrize('prediction_type', ['epsilon', 'sample'])
@pytest.mark.parametrize('spacing', ['leading', 'trailing'])
@pytest.mark.parametrize('sampler, scheduler', [('ddim', DDIMScheduler), ('ddpm', DDPMScheduler)])
def test_sample_is_diffusers_loop(sampler, scheduler, spacing, prediction_type, monkeypatch):
    config = replace(CONFIG, noise=NoiseConfig(
        prediction_type=prediction_type, sampler=sampler, num_inference_steps=4,
        timestep_spacing=spacing))
    policy = make_policy(config).eval()
    noise = make_noise(policy, n=2)
    features = sum(encoder.feature_dim for encoder in policy.encoders.values())
    condition = torch.randn(2, 2, features + config.observation.state_dim, generator=generator(4))
    draws = iter([*noise.transpose(0, 1)[1:], torch.zeros(())])
    monkeypatch.setattr('diffusers.schedulers.scheduling_ddpm.randn_tensor',
                        lambda *args, **kwargs: next(draws))
    reference = scheduler(100, beta_schedule='squaredcos_cap_v2', prediction_type=prediction_type,
                          timestep_spacing=spacing)
    reference.set_timesteps(4)
    x = noise[:, 0]
    with torch.no_grad():
        found = policy.sample(condition, noise)
        for level in reference.timesteps:
            predicted = policy.network(x, policy.network.embed_step(level[None]),
                                       policy.network.embed_condition(condition))
            x = reference.step(predicted, level, x).prev_sample
    torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('noise', [CONFIG.noise, DDPM])
def test_predict_is_pure(noise):
    policy = make_policy(replace(CONFIG, noise=noise)).eval()
    window, draws = make_window(0), make_noise(policy)
    before = draws.clone()
    first = policy.predict([window], draws)[0]
    policy.predict([make_window(1)], make_noise(policy, seed=5))
    again = policy.predict([window], draws)[0]
    np.testing.assert_array_equal(first.position, again.position)
    np.testing.assert_array_equal(first.gripper, again.gripper)
    assert torch.equal(draws, before)
    other = policy.predict([window], make_noise(policy, seed=5))[0]
    assert np.abs(other.position - first.position).max() > 1e-3


@pytest.mark.parametrize('noise', [CONFIG.noise, DDPM])
def test_a_batch_agrees_with_singles(noise):
    policy = make_policy(replace(CONFIG, noise=noise)).eval()
    windows, draws = [make_window(i) for i in range(5)], make_noise(policy, 5)
    for i, chunk in enumerate(policy.predict(windows, draws)):
        alone = policy.predict(windows[i:i + 1], draws[i:i + 1])[0]
        np.testing.assert_allclose(chunk.position, alone.position, atol=1e-4)
        np.testing.assert_allclose(chunk.gripper, alone.gripper, atol=1e-4)
        assert chunk.stamp_ns == alone.stamp_ns == 1_000 + i


def test_training_and_prediction_share_one_function():
    """The network that the loss sees and the one in `predict` give the same noise."""
    policy, window = make_policy().train(), make_window(0)
    sampled = []
    policy.network.register_forward_hook(
        lambda module, inputs, output: sampled.append((*inputs, output)))
    policy.predict([window], make_noise(policy))
    images = {name: torch.from_numpy(window.streams[name]).movedim(-1, -3)[None]
              for name in policy.encoders}
    state = np.hstack([window.streams[EE_POSE][:, :3], window.streams[GRIPPER]])[None]
    condition = policy.condition(policy.encode(images), torch.from_numpy(state))
    assert len(sampled) == 4
    for level, (sample, _, _, found) in zip([75, 50, 25, 0], sampled[:4], strict=True):
        trained = policy.network(sample.clone(), policy.network.embed_step(torch.tensor([level])),
                                 policy.network.embed_condition(condition))
        assert trained.requires_grad
        torch.testing.assert_close(trained, found, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('n_obs_steps', [1, 2, 3])
def test_points_of_a_chunk(n_obs_steps):
    config = replace(CONFIG, n_obs_steps=n_obs_steps)
    policy, window = make_policy(config), make_window(7, config)
    chunk = policy.predict([window], make_noise(policy))[0]
    assert (chunk.stamp_ns, chunk.frame_id) == (1_007, 'base')
    assert chunk.offsets_ns.dtype == np.int64
    assert chunk.offsets_ns.tolist() == [i * 50_000_000 for i in range(8 - n_obs_steps + 1)]
    assert chunk.position.dtype == np.float64
    assert np.abs(chunk.gripper).max() <= 1


def test_gripper_is_clipped():
    policy = make_policy()
    policy.normalizer.action_min[3], policy.normalizer.action_max[3] = -30, 30
    gripper = policy.predict([make_window(0)], make_noise(policy))[0].gripper
    assert np.abs(gripper).max() == 1


@pytest.mark.parametrize('target', ['absolute', 'relative', 'delta'])
@pytest.mark.parametrize('parts', [('ee_position', 'gripper'), ('ee_position',),
                                   ('ee_rotation', 'gripper', 'ee_position')])
def test_chunk_undoes_the_actions_representation(target, parts):
    config = replace(CONFIG, action=ActionSpec(parts, target))
    policy, window, rng = make_policy(config), make_window(0, config), np.random.default_rng(1)
    pose = window.streams[EE_POSE][-1]
    rotation = np.tile(pose[3:] * np.sign(pose[6]), (8, 1))
    wanted = {'ee_position': pose[:3] + rng.uniform(-0.05, 0.05, (8, 3)), 'ee_rotation': rotation,
              'gripper': rng.uniform(-1, 1, (8, 1))}
    action = encode_action(np.hstack([wanted[part] for part in parts]), pose, config)
    normal = policy.normalizer.normalize('action', torch.from_numpy(action)[None])
    policy.sample = lambda *_: normal
    chunk = policy.predict([window], make_noise(policy))[0]
    np.testing.assert_allclose(chunk.position, wanted['ee_position'][1:], atol=1e-5)
    for name, value in (('ee_rotation', chunk.quaternion), ('gripper', chunk.gripper)):
        if name in parts:
            np.testing.assert_allclose(value, wanted[name][1:].squeeze(), atol=1e-5)
        else:
            assert value is None


@pytest.mark.parametrize('state, target', [((), 'relative'), ((), 'absolute'),
                                           (('gripper', 'ee_rotation'), 'delta')])
def test_policy_uses_only_the_streams_that_it_names(state, target):
    config = replace(CONFIG, observation=ObservationSpec(CAMERAS, state),
                     action=ActionSpec(target=target))
    policy, window = make_policy(config), make_window(0, config)
    lean = replace(window, streams={name: window.streams[name] for name in config.streams})
    batch = make_batch(config) if state else {**make_batch(config), 'state': None}
    loss_of(policy, drawn(batch, config=config)).backward()
    found = policy.predict([lean], make_noise(policy))[0]
    expected = policy.predict([window], make_noise(policy))[0]
    np.testing.assert_array_equal(found.position, expected.position)


def test_prediction_depends_on_every_stream():
    policy, window = make_policy(), make_window(0)
    base = policy.predict([window], make_noise(policy))[0]
    for name in CONFIG.streams:
        changed = dict(window.streams, **{name: make_window(1).streams[name]})
        other = policy.predict([replace(window, streams=changed)], make_noise(policy))[0]
        assert np.abs(other.position - base.position).max() > 1e-6, name


@pytest.mark.parametrize('name, value, words', [
    ('wrist', None, 'stream wrist is missing, found arm, ee_pose, gripper'),
    ('arm', np.zeros((2, 64, 64, 3), np.uint8),
     r'stream arm has shape \(2, 64, 64, 3\), expected \(2, 40, 50, 3\)'),
    (EE_POSE, np.zeros((1, 7)), r'stream ee_pose has shape \(1, 7\), expected \(2, 7\)'),
])
def test_bad_window_is_refused_in_one_line(name, value, words):
    window = make_window(0)
    streams = dict(window.streams, **{name: value})
    if value is None:
        del streams[name]
    policy = make_policy()
    with pytest.raises(ValueError, match=words) as error:
        policy.predict([replace(window, streams=streams)], make_noise(policy))
    assert '\n' not in str(error.value)


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r'noise has shape \(1, 8, 4\), expected \(1, 1, 8, 4\)'):
        make_policy().predict([make_window(0)], torch.zeros(1, 8, 4))


def test_episode_noise_is_a_function_of_seed_and_time():
    one = episode_noise(3, 50_000_000, (1, 8, 4))
    assert one.dtype == torch.float32
    assert torch.equal(one, episode_noise(3, 50_000_000, (1, 8, 4)))
    assert not torch.equal(one, episode_noise(4, 50_000_000, (1, 8, 4)))
    assert not torch.equal(one, episode_noise(3, 0, (1, 8, 4)))
    assert abs(episode_noise(0, 0, (10, 100, 4)).std().item() - 1) < 0.05


def test_draws_of_the_samplers():
    assert make_policy().noise_shape == (1, 8, 4)
    assert make_policy(replace(CONFIG, noise=DDPM)).noise_shape == (10, 8, 4)
    few = replace(DDPM, num_inference_steps=5)
    assert make_policy(replace(CONFIG, noise=few)).noise_shape == (5, 8, 4)


@pytest.mark.parametrize('name', ['forward', 'training'])
def test_a_camera_that_pytorch_would_shadow_is_refused(name):
    camera = replace(CONFIG.observation.cameras[0], name=name)
    config = replace(CONFIG, observation=replace(CONFIG.observation, cameras=(camera,)))
    with pytest.raises(ValueError, match=f"camera name is '{name}', which PyTorch needs"):
        make_policy(config)
