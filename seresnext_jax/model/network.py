"""The ResNet family as one network and a table of architectures.

NVIDIA: image_classification/models/resnet.py. A parameter's path is its state-dict key there, with
``/`` for ``.``: ``layers/0/2/conv1/kernel`` is ``layers.0.2.conv1.weight``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from seresnext_jax.config import ModelConfig
from seresnext_jax.errors import UserError
from seresnext_jax.model.layers import (
    BatchNorm,
    Conv,
    Dense,
    FanMode,
    FoldedBatchNorm,
    SqueezeExcite,
)
from seresnext_jax.ops.activation import inner_relu, output_relu
from seresnext_jax.ops.normalization import scale_shift_and_add
from seresnext_jax.ops.pooling import global_mean, max_pool


@dataclass(frozen=True)
class Architecture:
    """An architecture of the ResNet family; one row of `ARCHITECTURES`."""

    block: Literal["basic", "bottleneck"]
    layers: tuple[int, ...]
    """Blocks of each stage."""
    widths: tuple[int, ...]
    """Channels of each stage's 3×3 convolutions."""
    expansion: int
    """Output channels of a block / its width."""
    cardinality: int = 1
    """Groups of the 3×3 convolutions."""
    stem_width: int = 64
    squeeze: int | None = None
    """Width of the squeeze in every block's SE gate, absolute; None: no gate."""

    @property
    def last_norm(self) -> str:
        """Name of the last BatchNorm of each block."""
        return "bn2" if self.block == "basic" else "bn3"


_RESNET = (64, 128, 256, 512)
_WIDTH_4D = (128, 256, 512, 1024)
_WIDTH_8D = (256, 512, 1024, 2048)

ARCHITECTURES: dict[str, Architecture] = {
    "resnet18": Architecture("basic", (2, 2, 2, 2), _RESNET, 1),
    "resnet34": Architecture("basic", (3, 4, 6, 3), _RESNET, 1),
    "resnet50": Architecture("bottleneck", (3, 4, 6, 3), _RESNET, 4),
    "resnet101": Architecture("bottleneck", (3, 4, 23, 3), _RESNET, 4),
    "resnet152": Architecture("bottleneck", (3, 8, 36, 3), _RESNET, 4),
    "resnext50-32x4d": Architecture("bottleneck", (3, 4, 6, 3), _WIDTH_4D, 2, 32),
    "resnext101-32x4d": Architecture("bottleneck", (3, 4, 23, 3), _WIDTH_4D, 2, 32),
    "resnext101-32x8d": Architecture("bottleneck", (3, 4, 23, 3), _WIDTH_8D, 1, 32),
    # The original lists this name without a definition. Here both 3×3 convolutions have 32 groups.
    "resnext101-32x8d-basic": Architecture("basic", (3, 4, 23, 3), _WIDTH_8D, 1, 32),
    "se-resnext101-32x4d": Architecture("bottleneck", (3, 4, 23, 3), _WIDTH_4D, 2, 32, squeeze=16),
    # Not in the original: small enough to train on a laptop in a minute.
    "se-resnext-tiny": Architecture(
        "bottleneck", (1, 1, 1, 1), (32, 64, 128, 256), 2, 8, stem_width=32, squeeze=16
    ),
}

CONV_INIT: dict[str, FanMode] = {
    "fan_in": "fan_in",
    "fan_out": "fan_out",
    "classic": "fan_out",
    "fanin": "fan_in",
    "grp-fanin": "fan_in",
    "grp-fanout": "fan_out",
}
"""The initialiser of each `ModelConfig.conv_init`: the two modes, and the model-config names of
the original's 20.06 release, whose grp- variants differ from the plain ones in name only."""


@dataclass(frozen=True)
class Options:
    """The settings that all blocks of a network share."""

    arch: Architecture
    init_mode: FanMode = "fan_in"
    """Fan mode of the convolutions' initialiser."""
    last_bn_0_init: bool = False
    bn_group_size: int = 0
    """Images normalised together; 0: all images of this device."""
    folded: bool = False
    """Whether BatchNorm is folded into the convolutions (fold.py), for inference only."""
    portable: bool = False
    """Whether to use XLA's own operations only, not the C++ kernel for CPUs."""

    def conv(
        self, name: str, features: int, kernel_size: int, stride: int = 1, groups: int = 1
    ) -> Conv:
        """A convolution without bias."""
        return Conv(features, kernel_size, stride, groups, self.init_mode, self.portable, name=name)

    def norm(self, name: str, scale_init: float = 1.0) -> BatchNorm | FoldedBatchNorm:
        """The normalisation after a convolution."""
        if self.folded:
            return FoldedBatchNorm(name=name)
        return BatchNorm(self.bn_group_size, scale_init, name=name)


FEATURES = ("layer1", "layer2", "layer3", "layer4", "classifier")
"""The names of the outputs that `ResNet.extract_features` can return."""


class Downsample(nn.Module):
    """The shortcut where a block changes resolution or width: 1×1 convolution and BatchNorm."""

    options: Options
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(N, H, W, C) → (N, ⌈H / stride⌉, ⌈W / stride⌉, features)."""
        x = self.options.conv("0", self.features, 1, self.stride)(x)
        return self.options.norm("1")(x, train=train)


class Block(nn.Module):
    """A residual block: basic (3×3, 3×3) or bottleneck (1×1, 3×3, 1×1; the stride in the 3×3)."""

    options: Options
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(N, H, W, C) → (N, ⌈H / stride⌉, ⌈W / stride⌉, width × expansion), of x's dtype."""
        options, arch = self.options, self.options.arch
        features = self.width * arch.expansion
        residual = x
        if self.stride != 1 or x.shape[-1] != features:
            residual = Downsample(options, features, self.stride, name="downsample")(x, train=train)

        # (channels, kernel size, stride, groups) of conv1, conv2, ...
        groups = arch.cardinality
        if arch.block == "basic":
            convs = [(self.width, 3, self.stride, groups), (features, 3, 1, groups)]
        else:
            convs = [
                (self.width, 1, 1, 1),
                (self.width, 3, self.stride, groups),
                (features, 1, 1, 1),
            ]
        last = len(convs)
        for i, (channels, size, stride, groups) in enumerate(convs, start=1):
            x = options.conv(f"conv{i}", channels, size, stride, groups)(x)
            if i < last:
                x = inner_relu(options.norm(f"bn{i}")(x, train=train))

        norm = options.norm(arch.last_norm, scale_init=0.0 if options.last_bn_0_init else 1.0)
        slope, offset, image_means = norm.affine(x, train=train)
        # BatchNorm, gate and addition are one pass over x, as all their factors are (N, C).
        slope, offset = (jnp.repeat(a, x.shape[0] // len(a), axis=0) for a in (slope, offset))
        if arch.squeeze is not None:
            pooled = (slope * image_means + offset).astype(x.dtype)
            gate = SqueezeExcite(arch.squeeze, name="squeeze")(pooled)
            slope, offset = slope * gate, offset * gate
        return output_relu(scale_shift_and_add(x, slope, offset, residual))


class Stage(nn.Module):
    """Blocks of one width; the first one has the stride."""

    options: Options
    index: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(N, H, W, C) → (N, ⌈H / s⌉, ⌈W / s⌉, width × expansion), s = 1 in stage 0, else 2."""
        arch = self.options.arch
        for i in range(arch.layers[self.index]):
            stride = 2 if i == 0 and self.index > 0 else 1
            x = Block(self.options, arch.widths[self.index], stride, name=str(i))(x, train=train)
        return x


class Stages(nn.Module):
    """The stages in turn, under the path ``layers``."""

    options: Options

    @nn.compact
    def __call__(self, x: jax.Array, *, count: int, train: bool) -> list[jax.Array]:
        """The outputs of the first `count` stages, each of the shape that `Stage` returns."""
        outputs = []
        for i in range(count):
            x = Stage(self.options, i, name=str(i))(x, train=train)
            outputs.append(x)
        return outputs


class ResNet(nn.Module):
    """The network of every architecture in the table."""

    options: Options
    num_classes: int
    dtype: jnp.dtype
    """Dtype of the activations."""

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits (N, num_classes), float32, of normalised images (N, H, W, 3)."""
        return self.extract_features(x, ("classifier",), train=train)["classifier"]

    @nn.compact
    def extract_features(
        self, x: jax.Array, layers: Sequence[str] = FEATURES, *, train: bool = False
    ) -> dict[str, jax.Array]:
        """Outputs of the named stages; nothing after the last of them is computed.

        Args:
          x: normalised images (N, H, W, 3).
          layers: some of `FEATURES`.

        Returns:
          The outputs by name: ``layer1`` is (N, ⌈H/4⌉, ⌈W/4⌉, C), and each later stage halves H and
          W; ``classifier`` is the logits (N, num_classes), float32.

        Raises:
          ValueError: an unknown name, or no name.
        """
        if unknown := set(layers) - set(FEATURES):
            raise ValueError(f"unknown features {sorted(unknown)}: choose from {FEATURES}")
        x = x.astype(self.dtype)
        options = self.options
        x = options.conv("conv1", options.arch.stem_width, 7, 2)(x)
        x = nn.relu(options.norm("bn1")(x, train=train))
        x = max_pool(x)
        depth = max(FEATURES.index(name) + 1 for name in layers)
        outputs = Stages(options, name="layers")(x, count=min(depth, 4), train=train)
        features = dict(zip(FEATURES, outputs, strict=False))
        if "classifier" in layers:
            features["classifier"] = Dense(self.num_classes, name="fc")(global_mean(outputs[-1]))
        return {name: features[name] for name in layers}


def find_architecture(name: str) -> Architecture:
    """The architecture with this name in the table.

    Raises:
      UserError: there is none.
    """
    if name not in ARCHITECTURES:
        choices = ", ".join(ARCHITECTURES)
        raise UserError(f"--model.arch {name!r} is unknown: choose from {choices}")
    return ARCHITECTURES[name]


def make_network(config: ModelConfig, dtype: jnp.dtype) -> ResNet:
    """The network that a config names; its activations have the dtype `dtype`.

    Raises:
      UserError: an unknown architecture.
    """
    options = Options(
        arch=find_architecture(config.arch),
        init_mode=CONV_INIT[config.conv_init],
        last_bn_0_init=config.last_bn_0_init,
        bn_group_size=config.bn_group_size,
    )
    return ResNet(options, config.num_classes, dtype)


def abstract_variables(network: ResNet) -> Any:
    """Shapes and dtypes of a network's params and batch_stats; nothing is computed."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(partial(network.init, train=False), key, image)
