"""Conv, Dense, BatchNorm and SqueezeExcite with PyTorch's semantics and initialisers.

Parameters are float32; each layer casts them to the type of its input. NHWC throughout. Sub-module
names are the original's, so that a path reads like its state-dict key.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from seresnext_jax.ops.convolution import conv2d
from seresnext_jax.ops.pooling import global_mean

FanMode = Literal["fan_in", "fan_out"]


class Conv(nn.Module):
    """Convolution without bias, Kaiming-normal (He et al. 2015, not truncated)."""

    features: int
    kernel_size: int
    stride: int = 1
    groups: int = 1
    init_mode: FanMode = "fan_in"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, C) → (N, ⌈H / stride⌉, ⌈W / stride⌉, features); pads kernel_size // 2."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1] // self.groups, self.features)
        initialiser = nn.initializers.variance_scaling(2.0, self.init_mode, "normal")
        kernel = self.param("kernel", initialiser, shape, jnp.float32)
        return conv2d(
            x,
            kernel.astype(x.dtype),
            stride=self.stride,
            padding=self.kernel_size // 2,
            groups=self.groups,
        )


class Dense(nn.Module):
    """Linear layer with bias; both start uniform within ±1/√inputs, as `torch.nn.Linear` does."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, C) of any float type → (N, features) float32."""
        bound = x.shape[-1] ** -0.5

        def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        kernel = self.param("kernel", uniform, (x.shape[-1], self.features))
        bias = self.param("bias", uniform, (self.features,))
        return jnp.dot(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32) + bias


class BatchNorm(nn.Module):
    """Batch normalisation as `torch.nn.BatchNorm2d`: eps 1e-5, momentum 0.1, float32 statistics.

    Normalises with the biased variance and keeps the unbiased one. Statistics are those of
    `group_size` images (0: all images of this device); the running averages are updated with the
    mean over the groups.
    """

    group_size: int = 0
    scale_init: float = 1.0
    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(N, H, W, C) → the same shape and type.

        Raises:
          ValueError: in training, a group holds a single value per channel.
        """
        channels = x.shape[-1]
        constant = nn.initializers.constant
        scale = self.param("scale", constant(self.scale_init), (channels,), jnp.float32)
        bias = self.param("bias", constant(0.0), (channels,), jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        if not train:
            return self._normalise(x, mean.value, var.value, scale, bias)

        groups = 1 if self.group_size == 0 else x.shape[0] // self.group_size
        grouped = x.reshape(groups, -1, *x.shape[1:])
        count = grouped.shape[1] * grouped.shape[2] * grouped.shape[3]
        if count < 2:
            raise ValueError("BatchNorm in training needs more than one value per channel")
        batch_mean, batch_var = self._statistics(grouped, shift=mean.value)
        if not self.is_initializing():
            unbiased = batch_var * (count / (count - 1))
            mean.value = self._running(mean.value, batch_mean)
            var.value = self._running(var.value, unbiased)
        return self._normalise(grouped, batch_mean, batch_var, scale, bias).reshape(x.shape)

    def _statistics(self, x: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and biased variance of each group in one pass: (G, N, H, W, C) → (G, 1, 1, 1, C).

        The squares are taken about the running mean, so that their difference does not cancel
        where the mean is large against the deviation.
        """
        shift = jax.lax.stop_gradient(shift)
        shifted = x.astype(jnp.float32) - shift
        mean = jnp.mean(shifted, axis=(1, 2, 3), keepdims=True)
        square = jnp.mean(jnp.square(shifted), axis=(1, 2, 3), keepdims=True)
        return mean + shift, jnp.maximum(square - jnp.square(mean), 0.0)

    def _normalise(
        self, x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array
    ) -> jax.Array:
        slope = scale * jax.lax.rsqrt(var + self.epsilon)
        return (x * slope + (bias - mean * slope)).astype(x.dtype)

    def _running(self, old: jax.Array, batch: jax.Array) -> jax.Array:
        new = jnp.mean(jax.lax.stop_gradient(batch), axis=(0, 1, 2, 3))
        return (1 - self.momentum) * old + self.momentum * new


class SqueezeExcite(nn.Module):
    """Channel gate of Hu et al. 2018; `squeeze` is an absolute width, not a share of C."""

    squeeze: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, C) → factors in (0, 1) of shape (N, 1, 1, C), float32."""
        pooled = global_mean(x)
        hidden = nn.relu(Dense(self.squeeze, name="squeeze")(pooled)).astype(x.dtype)
        gate = nn.sigmoid(Dense(x.shape[-1], name="expand")(hidden))
        return gate[:, None, None, :]
