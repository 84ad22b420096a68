"""Places batches: selects this process's images, and makes a global `Batch` of their arrays."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seresnext_jax.data.batch import Batch
from seresnext_jax.data.sampler import Sampler
from seresnext_jax.mesh import DATA_AXIS, batch_sharding


def local_columns(mesh: Mesh, n: int) -> slice:
    """The range of images in an N-image forward pass that this process must provide.

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
    """Shapes, dtypes and shardings of a `Batch` of `batch_size` images per device and pass."""
    shape = (passes, batch_size * mesh.size)

    def array(extra: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape + extra, dtype, sharding=batch_sharding(mesh))

    images = array((image_size, image_size, 3), np.uint8)
    return Batch(images, array((), np.int32), array((), np.bool_))


def place(
    mesh: Mesh, sampler: Sampler, images: np.ndarray, labels: np.ndarray, mask: np.ndarray
) -> Batch:
    """Place a step's rows (R, ...) of this process on the devices as one global batch."""

    def by_pass(rows: np.ndarray) -> np.ndarray:
        return rows.reshape(sampler.accumulation, -1, *rows.shape[1:])

    return put_batch(mesh, by_pass(images), by_pass(labels), by_pass(mask))
