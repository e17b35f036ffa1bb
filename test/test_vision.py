import pytest
import torch
from torch import nn

from diffusion_policy_ros.policy.config import CameraSpec, VisionConfig
from diffusion_policy_ros.policy.vision import (
    crop,
    group_norm,
    ImageEncoder,
    ResNet18,
    SpatialSoftmax,
)

CAMERA = CameraSpec('arm', 224, 224, 40, 48)


def encoder(**changes):
    config = VisionConfig(**{'base_width': 16, 'crop_height': 32, 'crop_width': 36, **changes})
    return ImageEncoder(CAMERA, config)


def images(n, height=40, width=48):
    return torch.randint(256, (n, 3, height, width), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(0))


def test_trunk_is_torchvisions_resnet18():
    from torchvision.models import resnet18
    theirs = resnet18(norm_layer=group_norm)
    ours = ResNet18(64)
    state = {name: value for name, value in theirs.state_dict().items()
             if not name.startswith('fc.')}
    ours.load_state_dict(state)
    seen = []
    theirs.layer4.register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = torch.randn(2, 3, 64, 70)
    with torch.inference_mode():
        theirs(x)
        torch.testing.assert_close(ours(x), seen[0])


@pytest.mark.parametrize('base_width', [16, 32, 64])
def test_every_norm_has_16_channels_a_group(base_width):
    trunk = ResNet18(base_width)
    norms = [module for module in trunk.modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) == 20
    assert {norm.num_channels // norm.num_groups for norm in norms} == {16}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in trunk.modules())
    assert trunk(torch.zeros(1, 3, 84, 84)).shape == (1, 8 * base_width, 3, 3)


def test_crop_cuts_each_image_at_its_own_corner():
    x = torch.arange(2 * 1 * 5 * 6).reshape(2, 1, 5, 6)
    found = crop(x, torch.tensor([[0, 1], [2, 3]]), 3, 2)
    torch.testing.assert_close(found[0], x[0, :, 0:3, 1:3])
    torch.testing.assert_close(found[1], x[1, :, 2:5, 3:5])


def test_crop_without_corners_is_central():
    x = torch.arange(5 * 6).reshape(1, 1, 5, 6)
    torch.testing.assert_close(crop(x, None, 3, 2), x[:, :, 1:4, 2:4])
    torch.testing.assert_close(crop(x, None, 3, 2), crop(x, torch.tensor([[1, 2]]), 3, 2))


def test_spatial_softmax_finds_the_peak():
    """One key point on one channel: a sharp peak at row 0, column 2 of 3x5 is x 0, y -1."""
    pool = SpatialSoftmax(1, 1)
    nn.init.ones_(pool.maps.weight)
    nn.init.zeros_(pool.maps.bias)
    x = torch.zeros(2, 1, 3, 5)
    x[0, 0, 0, 2] = 100.0
    torch.testing.assert_close(pool(x), torch.tensor([[0.0, -1.0], [0.0, 0.0]]), atol=1e-6, rtol=0)
    x[1, 0, 2, 4] = x[1, 0, 2, 0] = 50.0                # two equal peaks: their mean
    torch.testing.assert_close(pool(x)[1], torch.tensor([0.0, 1.0]), atol=1e-6, rtol=0)


def test_spatial_softmax_orders_x_then_y():
    pool = SpatialSoftmax(1, 1)
    nn.init.ones_(pool.maps.weight)
    x = torch.zeros(1, 1, 3, 3)
    x[0, 0, 1, 2] = 100.0                               # middle row, right column
    torch.testing.assert_close(pool(x), torch.tensor([[1.0, 0.0]]), atol=1e-6, rtol=0)


def test_spatial_softmax_keeps_the_places_of_float32_under_autocast():
    pool, seen = SpatialSoftmax(16, 8), []
    pool.maps.register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = torch.randn(4, 16, 3, 5, generator=torch.Generator().manual_seed(0))
    with torch.autocast('cpu', torch.bfloat16):
        found = pool(x)
    maps = seen[0].double().flatten(2).softmax(dim=2).reshape(4, 8, 3, 5)
    assert found.dtype == torch.float32 and seen[0].dtype == torch.bfloat16
    column = torch.linspace(-1, 1, 5).double()
    torch.testing.assert_close(found[:, ::2].double(), maps.sum(dim=2) @ column, atol=1e-6, rtol=0)


def test_images_are_normalised_once_to_plus_minus_one():
    model, seen = encoder(), []
    model.trunk.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.zeros(1, 3, 40, 48, dtype=torch.uint8)
    x[:, 1], x[:, 2] = 255, 51
    model(x)
    assert seen[0].shape == (1, 3, 32, 36)
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))


@pytest.mark.parametrize('pooling', ['spatial_softmax', 'average'])
def test_features(pooling):
    model = encoder(pooling=pooling, n_keypoints=10)
    found = model(images(3))
    assert found.shape == (3, model.feature_dim) == (3, 20)
    assert found.min() >= 0


@pytest.mark.parametrize('pooling', ['spatial_softmax', 'average'])
def test_every_parameter_learns(pooling):
    model = encoder(pooling=pooling)
    model(images(4)).square().sum().backward()
    # A softmax does not change where all of a map is raised, so the maps' bias has no say.
    silent = {name for name, value in model.named_parameters()
              if not value.grad.abs().max() > 1e-8}
    assert silent <= {'pool.maps.bias'}


def test_images_of_a_batch_are_independent():
    model, x = encoder().eval(), images(4)
    with torch.inference_mode():
        alone = torch.cat([model(image[None]) for image in x])
        torch.testing.assert_close(model(x), alone, atol=1e-5, rtol=1e-5)
