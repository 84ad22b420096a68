"""The devices as one ``data`` axis: placing arrays on it, per-device gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seresnext_jax.data.batch import Batch

DATA_AXIS = "data"
BATCH_SPEC = PartitionSpec(None, DATA_AXIS)
"""Batches are (A, N, ...): accumulation first, then the images, which are split over devices."""


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices of all processes (or the given ones) along one axis, process by process."""
    devices = sorted(devices or jax.devices(), key=lambda d: (d.process_index, d.id))
    return Mesh(np.array(devices), (DATA_AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a (A, N, ...) batch array: split along N."""
    return NamedSharding(mesh, BATCH_SPEC)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Place a tree of host arrays, equal on every process, whole onto every device."""
    return jax.device_put(tree, replicated(mesh))


def local_columns(mesh: Mesh, n: int) -> slice:
    """The images of an N-image forward pass that this process has to deliver.

    Raises:
      ValueError: N is not a multiple of the number of devices.
    """
    if n % mesh.size:
        raise ValueError(f"{n} images do not divide over {mesh.size} devices")
    sharding = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    indices = sharding.addressable_devices_indices_map((n,)).values()
    spans = [index[0] for index in indices if index is not None]
    return slice(
        min(s.start or 0 for s in spans), max(n if s.stop is None else s.stop for s in spans)
    )


def put_batch(mesh: Mesh, images: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> Batch:
    """Place this process's columns (A, N / processes, ...) as one global `Batch`."""
    sharding = batch_sharding(mesh)
    place = jax.make_array_from_process_local_data
    return Batch(place(sharding, images), place(sharding, labels), place(sharding, mask))


def abstract_batch(mesh: Mesh, *, passes: int, batch_size: int, image_size: int) -> Batch:
    """The shapes of a `Batch` of `batch_size` images per device and pass."""
    shape = (passes, batch_size * mesh.size)

    def array(extra: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape + extra, dtype, sharding=batch_sharding(mesh))

    images = array((image_size, image_size, 3), np.uint8)
    return Batch(images, array((), np.int32), array((), np.bool_))


def local_value_and_grad(function: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, Any]]:
    """`jax.value_and_grad(has_aux=True)` of the local shard, for use inside `jax.shard_map`.

    Under `shard_map` the gradient with respect to a replicated argument arrives already summed
    over the devices, because the implicit cast of that argument to a device-varying one is
    transposed to a psum. Casting it by hand first keeps the gradient local, so that the caller
    reduces it once, visibly, with `jax.lax.pmean`.
    """

    def value_and_grad(params: Any) -> tuple[Any, Any]:
        return jax.value_and_grad(function, has_aux=True)(vary(params))

    return value_and_grad


def vary(tree: Any) -> Any:
    """Inside `jax.shard_map`: a tree equal on all devices, typed as one that differs by device."""
    return jax.tree.map(lambda x: jax.lax.pcast(x, DATA_AXIS, to="varying"), tree)
