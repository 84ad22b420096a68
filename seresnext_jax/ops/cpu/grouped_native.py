"""Grouped 3×3 convolution on a CPU by the kernel in grouped_native.cc.

XLA's CPU backend has no fast one. grouped_blocks.py is used for convolutions that this kernel does
not support, and for all grouped convolutions on machines without a C++ compiler.
"""

import warnings
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seresnext_jax.ops.cpu.native import CompilationError, load_library
from seresnext_jax.ops.reference import conv2d_reference

_SOURCE = Path(__file__).with_name("grouped_native.cc")
_TARGETS = ("grouped_forward", "grouped_input_gradient", "grouped_kernel_gradient")
_GROUP_WIDTHS = (4, 8, 16, 32, 64)
_SLAB = 32
"""Supported channels per group, and the channels of a slab (see grouped_native.cc)."""


@cache
def is_available() -> bool:
    """Whether the kernel runs on this machine; compiles it if necessary, warns if that fails."""
    try:
        library = load_library(_SOURCE)
    except CompilationError as error:
        warnings.warn(
            "grouped convolutions run without their C++ kernel, so that a training step on this "
            f"CPU takes about a fifth longer: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    for name in _TARGETS:
        jax.ffi.register_ffi_target(
            f"seresnext_jax.{name}", jax.ffi.pycapsule(getattr(library, name)), platform="cpu"
        )
    return True


def compilation_problem() -> str:
    """Compile the kernel if necessary; returns why it can't be compiled or loaded, "" if it can."""
    try:
        load_library(_SOURCE)
    except CompilationError as error:
        return str(error)
    return ""


def is_supported(x: jax.Array, kernel: jax.Array, padding: int, groups: int) -> bool:
    """Whether the kernel supports this convolution of `conv2d`."""
    *taps, group_in, out = kernel.shape
    return (
        taps == [3, 3]
        and padding == 1
        and x.dtype == jnp.float32
        and x.shape[-1] == out == group_in * groups
        and group_in in _GROUP_WIDTHS
        and out % _SLAB == 0
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def grouped_by_kernel(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`conv2d` with padding 1 of x (N, H, W, C) and a kernel (3, 3, C / groups, C), float32.

    Inside `jax.shard_map`, x and the kernel must vary over the same mesh axes (`mesh.vary`).
    """
    groups = kernel.shape[3] // kernel.shape[2]
    plain = partial(conv2d_reference, stride=stride, padding=1, groups=groups)
    return _call("grouped_forward", jax.eval_shape(plain, x, kernel), x, kernel, stride)


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return grouped_by_kernel(x, kernel, stride), (x, kernel)


def _backward(
    stride: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    return (
        _call("grouped_input_gradient", jax.typeof(x), gradient, kernel, stride),
        _call("grouped_kernel_gradient", jax.typeof(kernel), x, gradient, stride),
    )


grouped_by_kernel.defvjp(_forward, _backward)


def _call(name: str, result: Any, first: jax.Array, second: jax.Array, stride: int) -> jax.Array:
    """Call a handler of grouped_native.cc with two float32 arrays of rank 4.

    Args:
      result: the result's shape and dtype, and the mesh axes over which it varies.
    """
    call = jax.ffi.ffi_call(f"seresnext_jax.{name}", result, vmap_method="sequential")
    return call(first, second, stride=np.int64(stride))
