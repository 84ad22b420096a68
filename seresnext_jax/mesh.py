"""A mesh of all devices along one ``data`` axis, and local gradients inside `jax.shard_map`."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seresnext_jax.errors import UserError

DATA_AXIS = "data"
BATCH_SPEC = PartitionSpec(None, DATA_AXIS)
"""Batches are (A, N, ...): A forward passes of N images, which are split over the devices."""


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices of all processes (or the given ones) along one axis, process by process.

    Raises:
      UserError: JAX does not start with the platforms in JAX_PLATFORMS.
    """
    devices = sorted(devices or _all_devices(), key=lambda d: (d.process_index, d.id))
    return Mesh(np.array(devices), (DATA_AXIS,))


def _all_devices() -> Sequence[jax.Device]:
    platforms = os.environ.get("JAX_PLATFORMS")
    try:
        return jax.devices()
    except (AssertionError, RuntimeError) as error:  # what JAX raises depends on the platform
        if not platforms:
            raise
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"JAX does not start with JAX_PLATFORMS={platforms}{f' ({reason})' * bool(reason)}: "
            "unset it, or run doctor.py to see what is missing"
        ) from error


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device has a full copy of."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a (A, N, ...) batch array: split along N."""
    return NamedSharding(mesh, BATCH_SPEC)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Copy a tree of host arrays to every device; the arrays must be equal on all processes."""
    return jax.device_put(tree, replicated(mesh))


def local_value_and_grad(function: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, Any]]:
    """`jax.value_and_grad(has_aux=True)` of the local shard, for use inside `jax.shard_map`.

    Under `shard_map` the gradient with respect to a replicated argument arrives already summed
    over the devices, because the implicit cast of that argument to a device-varying one is
    transposed to a psum. An explicit cast before the differentiation keeps the gradient local, so
    that the caller reduces it once, with `jax.lax.pmean`.
    """
    value_and_grad = jax.value_and_grad(function, has_aux=True)
    return lambda params: value_and_grad(vary(params))


def vary(tree: Any) -> Any:
    """Inside `jax.shard_map`, cast a tree that is equal on all devices to a device-varying type."""
    return jax.tree.map(lambda x: jax.lax.pcast(x, DATA_AXIS, to="varying"), tree)
