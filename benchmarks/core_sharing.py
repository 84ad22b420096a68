"""Measures DALI in several processes of one host, which share its cores."""

import multiprocessing
import socket
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import islice

import jax

from benchmarks.table import Row
from seresnext_jax.config import Config
from seresnext_jax.data.open import decoding_threads, open_train
from seresnext_jax.mesh import make_mesh
from seresnext_jax.processes import initialize_distributed


def measure_processes(
    config: Config, processes: int, devices: int, *, warmup: int, steps: int
) -> Row:
    """Images per second of `processes` processes with `devices` simulated devices in all."""
    config = replace(config, data=replace(config.data, backend="dali-cpu", index=""))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        several = [
            pool.submit(_measure, config, (port, processes, rank), devices, warmup, steps)
            for rank in range(processes)
        ]
        found = [one.result() for one in several]
    threads, seconds = found[0]
    return {
        "processes": processes,
        "devices of each": devices // processes,
        "threads of each": threads,
        "img/s of all": devices * config.batch_size * steps / seconds,
    }


def _measure(
    config: Config, place: tuple[int, int, int], devices: int, warmup: int, steps: int
) -> tuple[int, float]:
    """This process's decoding threads, and the seconds of `steps` batches."""
    port, processes, rank = place
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices // processes)
    if processes > 1:
        initialize_distributed(
            coordinator=f"127.0.0.1:{port}", num_processes=processes, process_id=rank
        )
    mesh = make_mesh()
    loader = open_train(config, mesh)
    batches = loader.batches(0)
    for _ in islice(batches, warmup + config.data.prefetch + 1):
        pass
    began = time.perf_counter()
    for batch in islice(batches, steps):
        jax.block_until_ready(batch)
    seconds = time.perf_counter() - began
    loader.close()
    return decoding_threads(config.data, mesh, on_gpu=False), seconds
