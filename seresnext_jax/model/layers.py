"""The network's layers, with PyTorch's semantics and the original's initialisers.

Feature maps are NHWC. Parameters are float32, except those of a folded network, which have its
dtype; Conv and Dense cast their kernels to the dtype of the input.
Sub-module names are the original's, so that a path reads like its state-dict key.
"""

import math
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from seresnext_jax.ops.convolution import conv2d
from seresnext_jax.ops.normalization import batch_statistics, scale_and_shift

FanMode = Literal["fan_in", "fan_out"]


def kaiming_std(shape: tuple[int, ...], mode: FanMode) -> float:
    """Standard deviation of a kernel (kh, kw, I, O) by He et al. 2015: √(2 / fan)."""
    kh, kw, fan_in, fan_out = shape
    return math.sqrt(2 / (kh * kw * (fan_in if mode == "fan_in" else fan_out)))


def linear_bound(inputs: int) -> float:
    """Bound of a linear layer's uniform kernel and bias, as in `torch.nn.Linear`: 1/√inputs."""
    return inputs**-0.5


class Conv(nn.Module):
    """Convolution without bias, Kaiming-normal (He et al. 2015, not truncated)."""

    features: int
    kernel_size: int
    stride: int = 1
    groups: int = 1
    init_mode: FanMode = "fan_in"
    portable: bool = False
    """See `conv2d`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, C) → (N, ⌈H / stride⌉, ⌈W / stride⌉, features); pads kernel_size // 2."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1] // self.groups, self.features)
        normal = nn.initializers.normal(kaiming_std(shape, self.init_mode))
        kernel = self.param("kernel", normal, shape, jnp.float32)
        return conv2d(
            x,
            kernel.astype(x.dtype),
            stride=self.stride,
            padding=self.kernel_size // 2,
            groups=self.groups,
            portable=self.portable,
        )


class Dense(nn.Module):
    """Linear layer with bias; both start uniform within ±1/√inputs, as `torch.nn.Linear` does."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, C) of any float dtype → (N, features) float32."""
        bound = linear_bound(x.shape[-1])

        def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        kernel = self.param("kernel", uniform, (x.shape[-1], self.features))
        bias = self.param("bias", uniform, (self.features,))
        return jnp.dot(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32) + bias


class Affine(NamedTuple):
    """BatchNorm of an input x as ``slope · x + offset``, and the means of x over each image."""

    slope: jax.Array
    """(G, C) float32; one row for each group of images that are normalised together."""
    offset: jax.Array
    """(G, C) float32."""
    image_means: jax.Array
    """(N, C) float32: the mean of x over each image's pixels."""


class BatchNorm(nn.Module):
    """Batch normalisation as `torch.nn.BatchNorm2d`: eps 1e-5, momentum 0.1, float32 statistics.

    Training normalises with the biased variance; the running average is of the unbiased one.
    Statistics are computed over `group_size` images (0: all images of this device), and their mean
    over the groups updates the running averages.
    """

    group_size: int = 0
    scale_init: float = 1.0
    momentum: float = 0.1
    epsilon: float = 1e-5

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(N, H, W, C) → the same shape and dtype.

        Raises:
          ValueError: in training, a group has a single value per channel.
        """
        slope, offset, _ = self.affine(x, train=train)
        return scale_and_shift(x, slope, offset)

    @nn.compact
    def affine(self, x: jax.Array, *, train: bool) -> Affine:
        """Compute the normalisation of x (N, H, W, C) without applying it.

        The caller can then fuse it with the next operations into one pass over x. In training, this
        updates the running statistics.

        Raises:
          ValueError: in training, a group has a single value per channel.
        """
        channels = x.shape[-1]
        constant = nn.initializers.constant
        scale = self.param("scale", constant(self.scale_init), (channels,), jnp.float32)
        bias = self.param("bias", constant(0.0), (channels,), jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        if not train:
            image_means = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
            slope, offset = self._affine(mean.value, var.value, scale, bias)
            return Affine(slope[None], offset[None], image_means)

        groups = 1 if self.group_size == 0 else x.shape[0] // self.group_size
        count = x.shape[0] // groups * x.shape[1] * x.shape[2]
        if count < 2:
            raise ValueError("BatchNorm in training needs more than one value per channel")
        shift = jax.lax.stop_gradient(mean.value)
        image_means, group_mean, group_var = batch_statistics(x, shift, groups=groups)
        if not self.is_initializing():
            mean.value = self._running(mean.value, group_mean)
            var.value = self._running(var.value, group_var * (count / (count - 1)))
        return Affine(*self._affine(group_mean, group_var, scale, bias), image_means)

    def _affine(
        self, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        slope = scale * jax.lax.rsqrt(var + self.epsilon)
        return slope, bias - mean * slope

    def _running(self, old: jax.Array, groups: jax.Array) -> jax.Array:
        new = jnp.mean(jax.lax.stop_gradient(groups), axis=0)
        return (1 - self.momentum) * old + self.momentum * new


class FoldedBatchNorm(nn.Module):
    """What is left of a BatchNorm after its slope is folded into a kernel: a bias (fold.py)."""

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """As `BatchNorm`, in evaluation only."""
        _, bias, _ = self.affine(x, train=train)
        return x + bias.astype(x.dtype)

    @nn.compact
    def affine(self, x: jax.Array, *, train: bool) -> Affine:
        """As `BatchNorm.affine`; the slope is 1.

        Raises:
          ValueError: in training.
        """
        if train:
            raise ValueError("a network whose BatchNorm was folded can't be trained")
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), x.dtype)
        bias = bias[None].astype(jnp.float32)
        return Affine(jnp.ones_like(bias), bias, jnp.mean(x, axis=(1, 2), dtype=jnp.float32))


class SqueezeExcite(nn.Module):
    """Channel gate of Hu et al. 2018; `squeeze` is an absolute width, not a share of C."""

    squeeze: int

    @nn.compact
    def __call__(self, pooled: jax.Array) -> jax.Array:
        """Means over the pixels (N, C) → factors in (0, 1) of the same shape, float32."""
        hidden = nn.relu(Dense(self.squeeze, name="squeeze")(pooled)).astype(pooled.dtype)
        return nn.sigmoid(Dense(pooled.shape[-1], name="expand")(hidden))
