"""Checks whether the memory that the compiler plans for a training step fits the device."""

import os
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from seresnext_jax.config import Config
from seresnext_jax.errors import UserError, fixable_by_the_user
from seresnext_jax.health.finding import Finding, problem_of, shown_bytes
from seresnext_jax.mesh import replicated
from seresnext_jax.model.network import abstract_variables, make_network
from seresnext_jax.plan import divide_batch
from seresnext_jax.training.precision import POLICIES
from seresnext_jax.training.state import TrainState, create_train_state
from seresnext_jax.training.step import lower_train_step

_CLOSE = 0.9
"""A step that needs more than this share of the memory gets a warning."""


def abstract_state(config: Config, mesh: Mesh) -> TrainState:
    """Shapes and dtypes of a run's training state, replicated over the mesh."""
    network = make_network(config.model, POLICIES[config.precision].compute_dtype)
    state = jax.eval_shape(partial(create_train_state, config), abstract_variables(network))

    def placed(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh))

    return jax.tree.map(placed, state)


def size_in_bytes(tree: Any) -> int:
    """The total size of the arrays in a tree, or of arrays with its shapes and dtypes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def check_memory(config: Config, mesh: Mesh) -> Finding:
    """Compile the training step for the devices, and compare its memory with theirs."""
    try:
        needed = step_bytes(config, mesh)
    except Exception as error:
        known = fixable_by_the_user(error)
        if known is None:
            raise
        return problem_of("memory", known)
    return judge_memory(needed, available_bytes(mesh), config.batch_size)


def step_bytes(config: Config, mesh: Mesh) -> int:
    """Bytes per device that the compiled training step takes: its arguments, results and buffers.

    Raises:
      UserError: the batch sizes do not divide, or the backend reports no memory.
    """
    passes, _ = divide_batch(config, mesh.size)
    network = make_network(config.model, POLICIES[config.precision].compute_dtype)
    state = abstract_state(config, mesh)
    compiled = lower_train_step(network.apply, config, mesh, state, passes=passes).compile()
    memory = compiled.memory_analysis()
    if memory is None:
        raise UserError("this backend reports no memory: compile for another one")
    # Results that reuse the memory of arguments are in both sizes.
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return int(memory.argument_size_in_bytes + results + memory.temp_size_in_bytes)


def available_bytes(mesh: Mesh) -> int:
    """The memory of one device in bytes; CPU devices share the machine's equally."""
    device = mesh.local_devices[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit:
        return int(limit)
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return machine // len(mesh.local_devices)


def judge_memory(needed: int, available: int, batch_size: int) -> Finding:
    """The finding for a step that takes `needed` of `available` bytes per device."""
    text = f"a training step takes {shown_bytes(needed)} per device, of {shown_bytes(available)}"
    numbers = {"step_bytes": float(needed), "device_bytes": float(available)}
    fits = available / needed
    smaller = max(1, int(batch_size * min(1.0, _CLOSE * fits)))
    fix = (
        f"--batch-size {smaller} or less; --optimizer-batch-size keeps the step's images in "
        "several passes"
    )
    if needed > available:
        return Finding("memory", "problem", text, fix, numbers)
    if needed > _CLOSE * available:
        return Finding("memory", "warning", f"{text}, which is close", fix, numbers)
    return Finding("memory", "ok", text, numbers=numbers)
