"""Compile one program for an absent GPU: the child process of compile.py.

    python -m benchmarks.gpu.worker FILE < JOB

Reads a pickled `Job`, writes the optimized HLO text to FILE, and prints a `Compiled` as JSON. Its
environment, which has to be set before JAX is imported, is that of `compile.child_environment`.
"""

import json
import pickle
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from benchmarks.gpu.job import Job
from benchmarks.gpu.targets import GPUS, GpuName, target_config
from seresnext_jax.config import Config
from seresnext_jax.mesh import make_mesh, replicated
from seresnext_jax.model.initial import init_variables
from seresnext_jax.model.network import ResNet, abstract_variables, make_network
from seresnext_jax.ops.layout import inference_format
from seresnext_jax.training.inference import folded_forward
from seresnext_jax.training.precision import POLICIES
from seresnext_jax.training.state import TrainState, create_train_state
from seresnext_jax.training.step import lower_eval_step, lower_train_step


class Compiled(TypedDict):
    """What the worker tells its parent."""

    seconds: float
    """Compilation; tracing isn't counted."""
    temporary_bytes: int
    """Peak of the temporary buffers of one device."""
    error: str
    """One line, where compilation failed with an exception; else ""."""


def main() -> None:
    """Run the program."""
    job: Job = pickle.load(sys.stdin.buffer)
    try:
        result = compile_job(job, Path(sys.argv[1]))
    except Exception as error:
        reason = str(error).partition("\n")[0]
        failed = Compiled(seconds=0, temporary_bytes=0, error=f"{type(error).__name__}: {reason}")
        print(json.dumps(failed))
        raise
    print(json.dumps(result))


def compile_job(job: Job, hlo_file: Path) -> Compiled:
    """Compile a job's program, and write its HLO text to a file."""
    lowered = lower(job, absent_devices(job.gpu, job.devices))
    started = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - started
    hlo_file.write_text(compiled.as_text() or "")
    memory = compiled.memory_analysis()
    temporary = memory.temp_size_in_bytes if memory else 0
    return Compiled(seconds=seconds, temporary_bytes=temporary, error="")


def absent_devices(gpu: GpuName, count: int) -> Sequence[jax.Device]:
    """`count` GPUs in one machine, to compile for and not to run on."""
    topology = topologies.get_topology_desc(
        gpu, "cuda", target_config=target_config(GPUS[gpu]), topology=f"1x{count}x1"
    )
    return topology.devices


def lower(job: Job, devices: Sequence[jax.Device]) -> jax.stages.Lowered:
    """The program that `train.py` or `eval.py` compiles on these devices, before compilation."""
    config = job.config
    mesh = make_mesh(devices)
    network = make_network(config.model, POLICIES[config.precision].compute_dtype)
    if job.program == "infer":
        return lower_inference(config, network, mesh)
    state = abstract_state(config, network, mesh)
    if job.program == "train":
        return lower_train_step(network.apply, config, mesh, state, passes=job.passes)
    return lower_eval_step(network.apply, config, mesh, state.variables)


def lower_inference(config: Config, network: ResNet, mesh: Mesh) -> jax.stages.Lowered:
    """The forward pass of `classify.py`, with BatchNorm folded."""
    variables = init_variables(network, config.seed)
    forward, variables = folded_forward(network, variables, config.precision)
    everywhere = replicated(mesh)

    def shape(x: Any) -> Any:
        placed = inference_format(x, everywhere)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed)

    size = config.data.image_size
    images = jax.ShapeDtypeStruct((config.batch_size, size, size, 3), np.uint8, sharding=everywhere)
    return forward.lower(jax.tree.map(shape, variables), images)


def abstract_state(config: Config, network: ResNet, mesh: Mesh) -> TrainState:
    """The shapes of a run's state, the same on every device."""

    def shape(x: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh))

    state = jax.eval_shape(partial(create_train_state, config), abstract_variables(network))
    return jax.tree.map(shape, state)


if __name__ == "__main__":
    main()
