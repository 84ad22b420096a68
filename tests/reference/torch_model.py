"""NVIDIA's ResNet family in PyTorch, with the original's state-dict names and order."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Architecture:
    """The numbers that define one network of the family."""

    block: Literal["basic", "bottleneck"]
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1."""
    layers: tuple[int, ...]
    """Blocks of each stage."""
    widths: tuple[int, ...]
    """Channels inside the blocks of each stage."""
    expansion: int
    """Output channels of a block / its width."""
    cardinality: int = 1
    """Groups of the 3x3 convolutions."""
    stem_width: int = 64
    """Output channels of the first convolution."""
    squeeze: int | None = None
    """Hidden units of every squeeze-and-excitation, whatever the block's width; None: without."""


RESNET = (64, 128, 256, 512)
RESNEXT_32X4D = (128, 256, 512, 1024)
RESNEXT_32X8D = (256, 512, 1024, 2048)

ARCHITECTURES = {
    "resnet18": Architecture("basic", (2, 2, 2, 2), RESNET, 1),
    "resnet34": Architecture("basic", (3, 4, 6, 3), RESNET, 1),
    "resnet50": Architecture("bottleneck", (3, 4, 6, 3), RESNET, 4),
    "resnet101": Architecture("bottleneck", (3, 4, 23, 3), RESNET, 4),
    "resnet152": Architecture("bottleneck", (3, 8, 36, 3), RESNET, 4),
    "resnext50-32x4d": Architecture("bottleneck", (3, 4, 6, 3), RESNEXT_32X4D, 2, 32),
    "resnext101-32x4d": Architecture("bottleneck", (3, 4, 23, 3), RESNEXT_32X4D, 2, 32),
    "resnext101-32x8d": Architecture("bottleneck", (3, 4, 23, 3), RESNEXT_32X8D, 1, 32),
    # The original names this one but defines it nowhere: 32x8d with its 1x1 convolutions left out.
    "resnext101-32x8d-basic": Architecture("basic", (3, 4, 23, 3), RESNEXT_32X8D, 1, 32),
    "se-resnext101-32x4d": Architecture(
        "bottleneck", (3, 4, 23, 3), RESNEXT_32X4D, 2, 32, squeeze=16
    ),
}
"""The named networks; all have a stem of 64 channels."""


def convolution(
    in_channels: int, out_channels: int, size: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A size x size convolution without bias, padded symmetrically by size // 2."""
    return nn.Conv2d(
        in_channels, out_channels, size, stride, padding=size // 2, groups=groups, bias=False
    )


def downsampling(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The projection of a block's shortcut; None where the shapes already agree."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        convolution(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels)
    )


class SqueezeAndExcitation(nn.Module):
    """Channel weights in (0, 1): mean over the image, linear, ReLU, linear, sigmoid."""

    def __init__(self, channels: int, hidden: int) -> None:
        """Both linear layers have a bias."""
        super().__init__()
        self.squeeze = nn.Linear(channels, hidden)
        self.expand = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, 1, 1)."""
        hidden = F.relu(self.squeeze(x.mean((2, 3))))
        return torch.sigmoid(self.expand(hidden))[:, :, None, None]


class Block(nn.Module):
    """A residual block; the subclass adds the convolutions, then calls `add_shortcut`."""

    downsample: nn.Sequential | None
    squeeze: SqueezeAndExcitation | None

    def add_shortcut(
        self, in_channels: int, out_channels: int, stride: int, hidden: int | None
    ) -> None:
        """Add what follows the convolutions in the state dict."""
        self.downsample = downsampling(in_channels, out_channels, stride)
        self.squeeze = None if hidden is None else SqueezeAndExcitation(out_channels, hidden)

    def branch(self, x: Tensor) -> Tensor:
        """The convolutions, up to the last BatchNorm."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H / stride, W / stride)."""
        out = self.branch(x)
        residual = x if self.downsample is None else self.downsample(x)
        if self.squeeze is None:
            return F.relu(residual + out, inplace=True)
        return F.relu(torch.addcmul(residual, out, self.squeeze(out)), inplace=True)


class BasicBlock(Block):
    """3x3 (with the stride), 3x3; both grouped where the cardinality says so."""

    def __init__(self, arch: Architecture, in_channels: int, width: int, stride: int) -> None:
        """A block from in_channels to width x expansion channels."""
        super().__init__()
        out_channels = width * arch.expansion
        self.conv1 = convolution(in_channels, width, 3, stride, arch.cardinality)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, out_channels, 3, groups=arch.cardinality)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.add_shortcut(in_channels, out_channels, stride, arch.squeeze)

    def branch(self, x: Tensor) -> Tensor:
        """The convolutions, up to the last BatchNorm."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.bn2(self.conv2(out))


class Bottleneck(Block):
    """1x1, grouped 3x3 (with the stride: "v1.5"), 1x1."""

    def __init__(self, arch: Architecture, in_channels: int, width: int, stride: int) -> None:
        """A block from in_channels to width x expansion channels."""
        super().__init__()
        out_channels = width * arch.expansion
        self.conv1 = convolution(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3, stride, arch.cardinality)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = convolution(width, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.add_shortcut(in_channels, out_channels, stride, arch.squeeze)

    def branch(self, x: Tensor) -> Tensor:
        """The convolutions, up to the last BatchNorm."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        return self.bn3(self.conv3(out))


class ResNet(nn.Module):
    """The network, initialised as the original (Kaiming normal, fan_in)."""

    def __init__(self, arch: Architecture, num_classes: int = 1000) -> None:
        """Stages halve the image, but the first."""
        super().__init__()
        block = Bottleneck if arch.block == "bottleneck" else BasicBlock
        self.conv1 = convolution(3, arch.stem_width, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(arch.stem_width)
        self.layers = nn.ModuleList()
        channels = arch.stem_width
        for stage, (depth, width) in enumerate(zip(arch.layers, arch.widths, strict=True)):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(arch, channels, width, stride))
                channels = width * arch.expansion
            self.layers.append(nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    def forward_features(self, x: Tensor) -> StateDict:
        """Normalised images (N, 3, H, W) -> "layer1" ... "layer4" (N, C, h, w), "classifier"."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        features = {}
        for number, stage in enumerate(self.layers, start=1):
            x = features[f"layer{number}"] = stage(x)
        features["classifier"] = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> logits (N, num_classes)."""
        return self.forward_features(x)["classifier"]


@torch.no_grad()
def randomize_like_trained(model: ResNet, seed: int, image_size: int = 224) -> None:
    """Give weights and statistics in which no two channels are alike; leave the model in eval mode.

    Running statistics are those of random images, then perturbed by some ten percent, so that a
    mistake in them shows. The classifier is scaled to logits that span 8 (max - min) on the images.
    """
    rng = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=rng)
        elif isinstance(module, nn.Linear):
            module.weight.normal_(0, 2 * module.in_features**-0.5, generator=rng)
            module.bias.normal_(0, 0.5, generator=rng)
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5, generator=rng)
            module.bias.normal_(0, 0.1, generator=rng)
    for block in model.modules():
        if isinstance(block, Bottleneck):
            block.bn3.weight.mul_(0.3)  # or the sum of the branches grows from block to block
        elif isinstance(block, BasicBlock):
            block.bn2.weight.mul_(0.3)

    count = 2 * max(1, 224 // image_size) ** 2  # enough pixels for the last stage's statistics
    images = torch.randn(count, 3, image_size, image_size, generator=rng)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches, here of one
    model.train()
    model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        assert norm.running_mean is not None and norm.running_var is not None
        shift = torch.empty_like(norm.running_mean).normal_(0, 0.1, generator=rng)
        norm.running_mean += shift * norm.running_var.sqrt()
        norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.8, 1.25, generator=rng)
    model.eval()
    logits = model(images)
    scale = 8 / (logits.max() - logits.min())
    model.fc.weight.mul_(scale)
    model.fc.bias.mul_(scale)


def to_old_names(state: Mapping[str, Tensor]) -> StateDict:
    """The names up to 2021-10: ``layer1.`` where the current ones say ``layers.0.``."""
    return {
        re.sub(r"\blayers\.(\d+)", lambda match: f"layer{int(match[1]) + 1}", name): value
        for name, value in state.items()
    }


def with_prefix(state: Mapping[str, Tensor], prefix: str = "module.") -> StateDict:
    """The names with a prefix, as DistributedDataParallel gives them."""
    return {prefix + name: value for name, value in state.items()}


def se_as_conv(state: Mapping[str, Tensor]) -> StateDict:
    """Squeeze-and-excitation weights as 1x1 convolutions: (out, in) -> (out, in, 1, 1)."""
    linear = (".squeeze.squeeze.weight", ".squeeze.expand.weight")
    return {
        name: value[:, :, None, None] if name.endswith(linear) else value
        for name, value in state.items()
    }
