"""Images to features: a ResNet-18 with GroupNorm a camera (Chi et al. 2023, section III-B)."""

from __future__ import annotations

from importlib.metadata import version

import torch
from torch import nn
from torch.nn import functional

from diffusion_policy_ros.policy.config import CameraSpec, VisionConfig

if torch.version.cuda is None and '+cpu' not in version('torchvision'):
    # PyPI's torchvision is built for PyPI's CUDA torch. Beside a CPU torch its compiled operators
    # do not load, and its import then fails on these two names; nothing here calls them.
    _OPERATORS = torch.library.Library('torchvision', 'DEF')
    _OPERATORS.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    _OPERATORS.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')

from torchvision.models.resnet import BasicBlock  # noqa: I100

CHANNELS_PER_GROUP = 16


def group_norm(channels: int) -> nn.GroupNorm:
    """Return the norm that stands for BatchNorm, which an average of weights would break."""
    return nn.GroupNorm(channels // CHANNELS_PER_GROUP, channels)


def crop(images: torch.Tensor, corners: torch.Tensor | None, height: int,
         width: int) -> torch.Tensor:
    """
    Cut (N, C, H, W) images to (N, C, height, width).

    Args:
        images: any dtype.
        corners: (N, 2) top and left of each image's own crop, or None for the centre.
        height: of the crop.
        width: of the crop.
    """
    if corners is None or images.shape[2:] == (height, width):
        top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
        return images[:, :, top:top + height, left:left + width]
    # Every place that a crop can have is a view; one indexing copies those asked for.
    places = images.unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 4, 5, 1)
    number = torch.arange(len(images), device=images.device)
    return places[number, corners[:, 0], corners[:, 1]].permute(0, 3, 1, 2)


class ResNet18(nn.Module):
    """
    The convolutions of He et al. 2016's 18-layer network, of any width.

    At `base_width` 64 the parameters are named and shaped as in torchvision's `resnet18`.
    """

    def __init__(self, base_width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, base_width, 7, stride=2, padding=3, bias=False)
        self.bn1 = group_norm(base_width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(base_width, base_width, stride=1)
        self.layer2 = _stage(base_width, 2 * base_width, stride=2)
        self.layer3 = _stage(2 * base_width, 4 * base_width, stride=2)
        self.layer4 = _stage(4 * base_width, 8 * base_width, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, 3, H, W) to (N, 8 base_width, H/32, W/32), each halving rounded up."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def _stage(n_in: int, n_out: int, stride: int) -> nn.Sequential:
    downsample = None
    if stride != 1:
        downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride=stride, bias=False),
                                   group_norm(n_out))
    return nn.Sequential(BasicBlock(n_in, n_out, stride, downsample, norm_layer=group_norm),
                         BasicBlock(n_out, n_out, norm_layer=group_norm))


class SpatialSoftmax(nn.Module):
    """
    Expected image coordinates of learned key points (Finn et al. 2016, section V).

    A 1x1 convolution draws one map for each key point, its softmax is a distribution over pixels.
    """

    def __init__(self, channels: int, n_keypoints: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(channels, n_keypoints, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, 2 n_keypoints): x and y of each from -1 (left, top) to 1."""
        height, width = x.shape[2:]
        maps = self.maps(x).flatten(2).float().softmax(dim=2)      # (N, n_keypoints, H * W)
        y, x = torch.meshgrid(torch.linspace(-1, 1, height, device=maps.device),
                              torch.linspace(-1, 1, width, device=maps.device), indexing='ij')
        grid = torch.stack([x.flatten(), y.flatten()], dim=1)      # (H * W, 2)
        with torch.autocast(maps.device.type, enabled=False):  # whose bfloat16 is 0.002 off
            return (maps @ grid).flatten(1)


class ImageEncoder(nn.Module):
    """One camera's images to `feature_dim` numbers each."""

    def __init__(self, camera: CameraSpec, config: VisionConfig) -> None:
        super().__init__()
        self.camera, self.config = camera, config
        self.trunk = ResNet18(config.base_width)
        channels = 8 * config.base_width
        self.feature_dim = 2 * config.n_keypoints
        if config.pooling == 'spatial_softmax':
            self.pool = SpatialSoftmax(channels, config.n_keypoints)
            self.head = nn.Linear(2 * config.n_keypoints, self.feature_dim)
        else:
            self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.head = nn.Linear(channels, self.feature_dim)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor, corners: torch.Tensor | None = None) -> torch.Tensor:
        """
        Map (N, 3, H, W) uint8 to (N, feature_dim).

        Args:
            images: RGB from 0 to 255; they are brought to [-1, 1] here and nowhere else.
            corners: (N, 2) of random crops, or None for the centre.
        """
        images = crop(images, corners, self.config.crop_height, self.config.crop_width)
        images = images.to(self.head.weight.dtype, memory_format=torch.channels_last, copy=True)
        features = self.pool(self.trunk(images.div_(127.5).sub_(1)))
        return functional.relu(self.head(features))
