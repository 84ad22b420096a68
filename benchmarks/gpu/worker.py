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
from seresnext_jax.model.network import ResNet, abstract_variables, build
from seresnext_jax.training.evaluate import validation_smoothing
from seresnext_jax.training.optimizer import make_optimizer
from seresnext_jax.training.precision import POLICIES, init_loss_scale
from seresnext_jax.training.state import TrainState, create
from seresnext_jax.training.step import make_eval_step, make_train_step
from train import batch_shape, step_options


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
    policy = POLICIES[config.precision]
    network = build(config.model, dtype=policy.compute_dtype, bn_group_size=job.plan.bn_group_size)
    optimizer = make_optimizer(config.optim)
    state = abstract_state(config, network, optimizer, mesh)
    batch = batch_shape(config, mesh, passes=job.passes)
    if job.program == "train":
        step = make_train_step(network.apply, optimizer, step_options(config), mesh)
        return step.lower(state, batch, np.float32(0))
    step = make_eval_step(
        network.apply,
        policy=policy,
        topk=config.topk,
        smoothing=validation_smoothing(config),
        mesh=mesh,
    )
    return step.lower(state.variables, batch)


def abstract_state(config: Config, network: ResNet, optimizer: Any, mesh: Mesh) -> TrainState:
    """The shapes of a run's state, the same on every device."""

    def initial(variables: Any) -> TrainState:
        return create(
            variables,
            optimizer=optimizer,
            loss_scale=init_loss_scale(POLICIES[config.precision], config.loss_scale.init),
            seed=config.seed,
            with_ema=config.use_ema is not None,
        )

    def shape(x: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh))

    return jax.tree.map(shape, jax.eval_shape(initial, abstract_variables(network)))


if __name__ == "__main__":
    main()
