"""The devices as one ``data`` axis: placing arrays on it, per-device gradients, several hosts."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seresnext_jax.data.batch import Batch
from seresnext_jax.errors import UserError

DATA_AXIS = "data"
BATCH_SPEC = PartitionSpec(None, DATA_AXIS)
"""Batches are (A, N, ...): accumulation first, then the images, which are split over devices."""

HEARTBEAT_TIMEOUT = 30
"""Seconds without a sign of life from one process after which the others abort; JAX says 100."""
SHUTDOWN_TIMEOUT = 60
"""Seconds that a process waits at its end for the others before all abort; JAX says 300."""
EXIT_OTHERS_LOST = 76
"""Exit status of a process whose computation with the others failed (sysexits: EX_PROTOCOL)."""


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


def sum_over_processes(number: int) -> int:
    """The sum of every process's number; all of them must ask."""
    return int(np.sum(multihost_utils.process_allgather(np.int32(number))))


def initialize_distributed(*, coordinator: str, num_processes: int, process_id: int) -> None:
    """Join the other processes of this run, if there are any; call before any other JAX function.

    Taken from the arguments, else from torchrun's variables (MASTER_ADDR, MASTER_PORT,
    WORLD_SIZE, RANK, LOCAL_RANK), else from Slurm or Open MPI, which JAX recognises itself.

    Raises:
      UserError: the arguments or variables are incomplete, or are no numbers or no address.
    """
    local_device = None
    if coordinator or num_processes or process_id >= 0:
        if not (coordinator and num_processes and process_id >= 0):
            raise UserError(
                "--distributed.coordinator, --distributed.num-processes and "
                "--distributed.process-id belong together: give all three or none"
            )
    elif _variable("WORLD_SIZE", 1) > 1 and {"MASTER_ADDR", "RANK"} <= os.environ.keys():
        port = _variable("MASTER_PORT", 29500)
        coordinator = f"{os.environ['MASTER_ADDR']}:{port}"
        num_processes, process_id = _variable("WORLD_SIZE", 1), _variable("RANK", 0)
        if _variable("LOCAL_WORLD_SIZE", 1) > 1:  # else the one process of a host has all its GPUs
            local_device = _variable("LOCAL_RANK", 0)
    elif _variable("SLURM_NTASKS", 1) > 1 or _variable("OMPI_COMM_WORLD_SIZE", 1) > 1:
        _join()
        return
    if num_processes > 1:
        if process_id >= num_processes:
            raise UserError(
                f"the process has the number {process_id} of {num_processes}: they count from 0 to "
                f"{num_processes - 1} (--distributed.process-id, or RANK of torchrun)"
            )
        if not re.fullmatch(r"\S+:\d{1,5}", coordinator):
            raise UserError(
                f"the coordinator {coordinator!r} is no host:port: give the address of process 0 "
                "and a free port, such as --distributed.coordinator node1:29500"
            )
        _join(
            coordinator_address=coordinator,
            num_processes=num_processes,
            process_id=process_id,
            local_device_ids=local_device,
        )


def _join(**where: Any) -> None:
    # JAX would take SIGTERM for itself; signals.py is there for it.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
        **where,
    )


def _variable(name: str, default: int) -> int:
    """A number from the environment."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UserError(f"the environment variable {name} is {text!r}: it must be a whole number")
    return int(text)


Main = Callable[[list[str]], int]


def fails_alone(main: Main) -> Main:
    """Let an error in one of several processes end that process at once, without the others.

    They are in a computation that waits for this one, and to leave in order would mean to wait for
    them in turn. Without it their computation fails, or JAX misses its heartbeat and ends them.
    """

    @wraps(main)
    def guarded(argv: list[str]) -> int:
        try:
            return main(argv)
        except Exception as error:
            if not jax.distributed.is_initialized():
                raise
            status = _explain(error, debug="--debug" in argv)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    return guarded


def _explain(error: Exception, *, debug: bool) -> int:
    """Print why this process ends before the others; returns its exit status."""
    expected = isinstance(error, UserError | jax.errors.JaxRuntimeError)
    if debug or not expected:
        traceback.print_exc()
    if not expected:
        return 1
    if isinstance(error, UserError):
        print(f"error: {error}", file=sys.stderr)
        return 2
    cause = str(error).partition("\n")[0][:200]
    print(
        f"error: a computation with the other processes failed ({cause}): one of them has ended, "
        "its output says why; then start all of them again with --resume auto",
        file=sys.stderr,
    )
    return EXIT_OTHERS_LOST
