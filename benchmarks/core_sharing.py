"""Measures DALI in several processes of one host, which share its cores."""

import multiprocessing
import socket
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import jax

from benchmarks.input import batch_rate, open_loader
from benchmarks.table import Row
from seresnext_jax.config import Config
from seresnext_jax.data.open import decoding_threads
from seresnext_jax.mesh import make_mesh
from seresnext_jax.processes.join import initialize_distributed


def measure_processes(
    config: Config, processes: int, devices: int, *, warmup: int, steps: int
) -> Row:
    """Measure `processes` processes that divide `devices` simulated devices equally.

    `devices` must be a multiple of `processes`.
    """
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
    threads, rate = found[0]
    return {
        "processes": processes,
        "devices of each": devices // processes,
        "threads of each": threads,
        "img/s of all": rate,
    }


def _measure(
    config: Config, place: tuple[int, int, int], devices: int, warmup: int, steps: int
) -> tuple[int, float]:
    """This process's decoding threads, and the images per second of all processes.

    Args:
      place: the coordinator's port, the number of processes, and this one's rank.
    """
    port, processes, rank = place
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices // processes)
    if processes > 1:
        initialize_distributed(
            coordinator=f"127.0.0.1:{port}", num_processes=processes, process_id=rank
        )
    mesh = make_mesh()
    loader = open_loader(config, mesh)
    images, skipped = devices * config.batch_size, warmup + config.data.prefetch
    rate = batch_rate(loader.batches(0), images, skipped, steps)
    loader.close()
    return decoding_threads(config.data, mesh, on_gpu=False), rate
