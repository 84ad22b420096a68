"""Compile one program for an absent GPU: the child process of compile.py.

    python -m benchmarks.gpu.worker FILE < JOB

Reads a pickled `Job`, writes the optimized HLO text to FILE, and prints the figures or the error as
JSON. `compile.child_environment` sets its environment before JAX is imported.
"""

import json
import pickle
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from benchmarks.gpu.compile import Job
from benchmarks.gpu.targets import GPUS, GpuName, target_config
from seresnext_jax.health.memory import abstract_state
from seresnext_jax.mesh import make_mesh, replicated
from seresnext_jax.model.initial import init_variables
from seresnext_jax.model.network import make_network
from seresnext_jax.ops.layout import inference_format
from seresnext_jax.training.eval_step import lower_eval_step
from seresnext_jax.training.inference import folded_forward
from seresnext_jax.training.precision import POLICIES
from seresnext_jax.training.step import lower_train_step


def main() -> None:
    """Compile the job on standard input; print the result."""
    job: Job = pickle.load(sys.stdin.buffer)
    try:
        lowered = lower(job, absent_devices(job.gpu, job.devices))
        started = time.perf_counter()
        compiled = lowered.compile()
        seconds = time.perf_counter() - started
        Path(sys.argv[1]).write_text(compiled.as_text() or "")
        memory = compiled.memory_analysis()
    except Exception as error:
        reason = str(error).partition("\n")[0]
        print(json.dumps({"error": f"{type(error).__name__}: {reason}"}))
        raise
    temporary = memory.temp_size_in_bytes if memory else 0
    print(json.dumps({"seconds": seconds, "temporary_bytes": temporary, "error": ""}))


def absent_devices(gpu: GpuName, count: int) -> Sequence[jax.Device]:
    """`count` GPUs in one machine, to compile for but not to run on."""
    topology = topologies.get_topology_desc(
        gpu, "cuda", target_config=target_config(GPUS[gpu]), topology=f"1x{count}x1"
    )
    return topology.devices


def lower(job: Job, devices: Sequence[jax.Device]) -> jax.stages.Lowered:
    """The program that `train.py`, `eval.py` or `classify.py` compiles on these devices."""
    config = job.config
    mesh = make_mesh(devices)
    everywhere = replicated(mesh)
    network = make_network(config.model, POLICIES[config.precision].compute_dtype)

    if job.program == "infer":
        variables = init_variables(network, config.seed)
        forward, variables = folded_forward(network, variables, config.precision)
        size = config.data.image_size
        shape = (config.batch_size, size, size, 3)
        images = jax.ShapeDtypeStruct(shape, np.uint8, sharding=everywhere)

        def placed(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=inference_format(x, everywhere))

        return forward.lower(jax.tree.map(placed, variables), images)
    state = abstract_state(config, mesh)
    if job.program == "train":
        return lower_train_step(network.apply, config, mesh, state, passes=job.passes)
    return lower_eval_step(network.apply, config, mesh, state.variables)


if __name__ == "__main__":
    main()
