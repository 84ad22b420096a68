"""Pooling over H and W of NHWC arrays."""

import jax
import jax.numpy as jnp
from jax import lax

from seresnext_jax.ops.cpu.pooling import max_pool_on_cpu
from seresnext_jax.ops.gpu.pooling import max_pool_on_gpu


def max_pool(x: jax.Array) -> jax.Array:
    """3×3 maximum with stride 2 and padding 1: (N, H, W, C) → (N, ⌈H/2⌉, ⌈W/2⌉, C)."""
    return lax.platform_dependent(x, cpu=max_pool_on_cpu, default=max_pool_on_gpu)


def global_mean(x: jax.Array) -> jax.Array:
    """Mean over H and W, accumulated in float32: (N, H, W, C) → (N, C) of x's dtype."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32).astype(x.dtype)
