"""What a policy observes, predicts and is made of: typed, and cross-checked when it is read."""

from __future__ import annotations

from dataclasses import dataclass, field
import re

from diffusion_policy_ros.datatypes import EE_POSE, GRIPPER, to_ns
from diffusion_policy_ros.policy.levels import LEVELS

STATE_PARTS = {'ee_position': 3, 'ee_rotation': 6, 'gripper': 1}
STATE_STREAM = {'ee_position': EE_POSE, 'ee_rotation': EE_POSE, 'gripper': GRIPPER}
ACTION_PARTS = {'ee_position': 3, 'ee_rotation': 6, 'gripper': 1}
STRIDE = 32
"""Of ResNet-18: pixels that one place of its last map stands for."""
LEAST_DT_S, MOST_DT_S = 1e-4, 3600.0
"""So that a window's nanoseconds are an integer of 64 bits, and no two points are due at once."""
TOPIC = re.compile(r'[A-Za-z_]\w*(/[A-Za-z_]\w*)*', re.ASCII)
LEAST_START = 0.7
"""Of all noise levels: where sampling begins with noise alone, a fifth of it at most is signal."""


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a ValueError that names the key, where its value is none of the choices."""
    if value not in choices:
        raise ValueError(f'{name} is {value!r}, expected one of {", ".join(choices)}')


def positive(**values: float) -> None:
    """Raise a ValueError that names the first key whose value is not more than 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f'{name} is {value}, expected more than 0')


@dataclass(frozen=True)
class CameraSpec:
    """
    One camera, as its topic carries it and as the network sees it.

    Attributes:
        name: stream and topic prefix, `<name>/image_raw`.
        source_height, source_width: pixels of the messages that the training images came from.
        height, width: pixels that control/images.py scales them to.
    """

    name: str
    source_height: int
    source_width: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if not TOPIC.fullmatch(self.name):
            raise ValueError(f'camera name is {self.name!r}, expected a topic: letters, digits, _ '
                             'and, between names, /')
        if self.name in STATE_STREAM.values():
            raise ValueError(f"camera name is {self.name!r}, which is one of the arm's streams")
        positive(source_height=self.source_height, source_width=self.source_width,
                 height=self.height, width=self.width)


@dataclass(frozen=True)
class ObservationSpec:
    """
    What is observed, in the order in which the network's input holds it.

    Attributes:
        cameras: at most one of each name.
        state: parts of the arm's state: ee_position, ee_rotation, gripper.
    """

    cameras: tuple[CameraSpec, ...]
    state: tuple[str, ...] = ('ee_position', 'gripper')

    def __post_init__(self) -> None:
        for part in self.state:
            one_of('observation.state', part, tuple(STATE_PARTS))
        names = [camera.name for camera in self.cameras]
        if len(set(names)) != len(names) or len(set(self.state)) != len(self.state):
            raise ValueError(f'observation: a part is named twice in {names} {list(self.state)}')
        if not self.cameras and not self.state:
            raise ValueError('observation: it has neither cameras nor state')

    @property
    def state_dim(self) -> int:
        return sum(STATE_PARTS[part] for part in self.state)


@dataclass(frozen=True)
class ActionSpec:
    """
    What is predicted.

    Attributes:
        parts: ordered parts of an action.
        target: `relative` to the end-effector's pose at the observation's time, `absolute` in the
            base frame, or `delta`: each step's difference from the step before it, the first
            executed step's from the measured pose.
    """

    parts: tuple[str, ...] = ('ee_position', 'gripper')
    target: str = 'relative'

    def __post_init__(self) -> None:
        for part in self.parts:
            one_of('action.parts', part, tuple(ACTION_PARTS))
        if 'ee_position' not in self.parts or len(set(self.parts)) != len(self.parts):
            raise ValueError(f'action.parts is {list(self.parts)}, expected each part once '
                             'and ee_position among them')
        one_of('action.target', self.target, ('relative', 'absolute', 'delta'))

    @property
    def dim(self) -> int:
        return sum(ACTION_PARTS[part] for part in self.parts)


@dataclass(frozen=True)
class VisionConfig:
    """
    ResNet-18 with GroupNorm, one a camera.

    Attributes:
        base_width: channels of the first stage; 64 is the paper's ResNet-18, 16 a quarter of it.
        crop_height, crop_width: pixels of the crop, random in training, central in use.
        pooling: `spatial_softmax` or `average`.
        n_keypoints: key points of the spatial softmax.
    """

    base_width: int = 64
    crop_height: int = 84
    crop_width: int = 84
    pooling: str = 'spatial_softmax'
    n_keypoints: int = 32

    def __post_init__(self) -> None:
        one_of('vision.pooling', self.pooling, ('spatial_softmax', 'average'))
        positive(crop_height=self.crop_height, crop_width=self.crop_width,
                 n_keypoints=self.n_keypoints)
        if self.base_width % 16 or self.base_width <= 0:
            raise ValueError(f'vision.base_width is {self.base_width}, expected a multiple of 16 '
                             '(GroupNorm has one group for 16 channels)')
        if self.pooling == 'spatial_softmax' and max(self.crop_height, self.crop_width) <= STRIDE:
            raise ValueError(f'vision crop {self.crop_height}x{self.crop_width} leaves '
                             'spatial_softmax one place to look at, expected more than '
                             f'{STRIDE} pixels')


@dataclass(frozen=True)
class UnetConfig:
    """
    Conditional 1-D U-Net (Chi et al. 2023, section III-A).

    Attributes:
        down_dims: channels of each stage; every stage but the last halves the steps.
        kernel_size: steps that a convolution spans.
        n_groups: groups of each GroupNorm.
        diffusion_step_embed_dim: width of the noise level's embedding.
    """

    down_dims: tuple[int, ...] = (64, 128, 256)
    kernel_size: int = 5
    n_groups: int = 8
    diffusion_step_embed_dim: int = 128

    def __post_init__(self) -> None:
        positive(kernel_size=self.kernel_size, n_groups=self.n_groups)
        if self.diffusion_step_embed_dim < 4 or self.diffusion_step_embed_dim % 2:
            raise ValueError(f'unet.diffusion_step_embed_dim is {self.diffusion_step_embed_dim}, '
                             'expected an even number from 4 on')
        if not self.down_dims or self.kernel_size % 2 == 0:
            raise ValueError(f'unet: down_dims is {list(self.down_dims)} and kernel_size '
                             f'{self.kernel_size}, expected at least one width and an odd kernel')
        for width in self.down_dims:
            if width <= 0 or width % self.n_groups:
                raise ValueError(f'unet.down_dims has {width}, expected a positive multiple of '
                                 f'n_groups {self.n_groups}')


@dataclass(frozen=True)
class TransformerConfig:
    """
    Time-series diffusion transformer (Chi et al. 2023, section III-A).

    Attributes:
        n_layers: blocks.
        n_heads: attention heads of each.
        embed_dim: width of a token.
        p_drop_embed: dropout of the tokens.
        p_drop_attn: dropout of attention weights and of each sublayer's output.
        causal: a step of the chunk sees no later one, nor, by cross_attention, an observation
            of later than its own time.
        conditioning: `cross_attention` to the observation, the paper's, or `adaln_zero`.
    """

    n_layers: int = 8
    n_heads: int = 4
    embed_dim: int = 256
    p_drop_embed: float = 0.0
    p_drop_attn: float = 0.3
    causal: bool = True
    conditioning: str = 'cross_attention'

    def __post_init__(self) -> None:
        positive(n_layers=self.n_layers, n_heads=self.n_heads, embed_dim=self.embed_dim)
        one_of('transformer.conditioning', self.conditioning, ('cross_attention', 'adaln_zero'))
        for name in ('p_drop_embed', 'p_drop_attn'):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f'transformer.{name} is {getattr(self, name)}, expected at '
                                 'least 0 and less than 1')
        if self.embed_dim % (2 * self.n_heads) or self.embed_dim < 4:
            raise ValueError(f'transformer.embed_dim is {self.embed_dim}, expected a multiple of '
                             f'twice n_heads {self.n_heads}')


@dataclass(frozen=True)
class NoiseConfig:
    """
    Noise schedule of training, and the sampler in use.

    Attributes:
        num_train_timesteps: noise levels.
        beta_schedule: `squaredcos_cap_v2`.
        prediction_type: what the network predicts and learns: `epsilon`, the noise, or `sample`,
            the clean action.
        clip_sample: clip the predicted clean action to [-1, 1] in every denoising step.
        sampler: `ddpm`, with fresh noise in every step, or `ddim`, with none.
        num_inference_steps: denoising steps of a prediction; fewer than levels skip some evenly.
        timestep_spacing: which levels are left: `leading` ends at the one of least noise and may
            begin well below the noisiest, `trailing` begins at the noisiest.
    """

    num_train_timesteps: int = 100
    beta_schedule: str = 'squaredcos_cap_v2'
    prediction_type: str = 'epsilon'
    clip_sample: bool = True
    sampler: str = 'ddim'
    num_inference_steps: int = 16
    timestep_spacing: str = 'leading'

    def __post_init__(self) -> None:
        one_of('noise.beta_schedule', self.beta_schedule, ('squaredcos_cap_v2',))
        one_of('noise.prediction_type', self.prediction_type, ('epsilon', 'sample'))
        one_of('noise.sampler', self.sampler, ('ddpm', 'ddim'))
        one_of('noise.timestep_spacing', self.timestep_spacing, tuple(LEVELS))
        positive(num_train_timesteps=self.num_train_timesteps,
                 num_inference_steps=self.num_inference_steps)
        if self.num_inference_steps > self.num_train_timesteps:
            raise ValueError(f'noise.num_inference_steps is {self.num_inference_steps}, expected '
                             f'at most num_train_timesteps {self.num_train_timesteps}')
        levels = LEVELS[self.timestep_spacing](self.num_train_timesteps, self.num_inference_steps)
        first = levels[0] + 1
        if first < LEAST_START * self.num_train_timesteps:
            raise ValueError(f'noise.num_inference_steps is {self.num_inference_steps}, which by '
                             f'{self.timestep_spacing} timestep_spacing begin at level {first} of '
                             f'{self.num_train_timesteps}, too far from noise; expected another '
                             'number, or trailing timestep_spacing')


@dataclass(frozen=True)
class PolicyConfig:
    """
    All that a checkpoint says about itself: the only source of cameras, sizes, horizons and rate.

    Attributes:
        n_obs_steps: To, observed steps.
        horizon: Tp, predicted steps.
        n_action_steps: Ta, executed steps.
        dt_s: seconds between two steps, of observations and of actions alike.
        network: `unet` or `transformer`.
        renderer: sim/'s picture settings that the images were made with; empty for hardware.
        task: what it was trained for, as a name.
    """

    observation: ObservationSpec
    action: ActionSpec = field(default_factory=ActionSpec)
    n_obs_steps: int = 2
    horizon: int = 8
    n_action_steps: int = 4
    dt_s: float = 0.05
    network: str = 'unet'
    vision: VisionConfig = field(default_factory=VisionConfig)
    unet: UnetConfig = field(default_factory=UnetConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    renderer: str = ''
    task: str = ''

    def __post_init__(self) -> None:
        positive(n_obs_steps=self.n_obs_steps, horizon=self.horizon,
                 n_action_steps=self.n_action_steps, dt_s=self.dt_s)
        if not LEAST_DT_S <= self.dt_s <= MOST_DT_S:
            raise ValueError(f'dt_s is {self.dt_s}, expected {LEAST_DT_S:g} to {MOST_DT_S:g}')
        one_of('network', self.network, ('unet', 'transformer'))
        if self.n_obs_steps - 1 + self.n_action_steps > self.horizon:
            raise ValueError(f'n_obs_steps {self.n_obs_steps} - 1 + n_action_steps '
                             f'{self.n_action_steps} is more than horizon {self.horizon}')
        halvings = 2 ** (len(self.unet.down_dims) - 1)
        if self.network == 'unet' and self.horizon % halvings:
            raise ValueError(f'horizon is {self.horizon}, expected a multiple of {halvings} for '
                             f'{len(self.unet.down_dims)} U-Net stages')
        for camera in self.observation.cameras:
            if self.vision.crop_height > camera.height or self.vision.crop_width > camera.width:
                raise ValueError(
                    f'vision crop {self.vision.crop_height}x{self.vision.crop_width} is larger '
                    f'than camera {camera.name} {camera.height}x{camera.width}')

    @property
    def dt_ns(self) -> int:
        return to_ns(self.dt_s)

    @property
    def n_chunk_points(self) -> int:
        """Points that are published: Tp - To + 1, from the observation's own step on."""
        return self.horizon - self.n_obs_steps + 1

    @property
    def chunk_period_ns(self) -> int:
        """Time between two chunks, Ta * dt."""
        return self.n_action_steps * self.dt_ns

    @property
    def latency_budget_s(self) -> float:
        """How late the next chunk may come before the last point, at which the arm would stop."""
        return max(0, self.n_chunk_points - 1 - self.n_action_steps) * self.dt_s

    @property
    def streams(self) -> tuple[str, ...]:
        """Every stream that a window must hold: cameras first; a chunk is in `EE_POSE`'s frame."""
        needed = {EE_POSE, *(STATE_STREAM[part] for part in self.observation.state)}
        cameras = tuple(camera.name for camera in self.observation.cameras)
        return cameras + tuple(name for name in (EE_POSE, GRIPPER) if name in needed)
