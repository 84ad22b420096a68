"""What the processes of a run tell each other: numbers, hosts, and when they are ready."""

import json
import os
import socket
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def sum_over_processes(number: int) -> int:
    """The sum of a number over the processes; all of them must call this."""
    return int(np.sum(multihost_utils.process_allgather(np.int32(number))))


def everyones(value: Any) -> list[Any]:
    """The value of each process, by rank; all processes must call this.

    Args:
      value: this process's, as JSON has it: text, numbers, and lists of them.
    """
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(text.size))
    padded = np.pad(text, (0, sizes.max() - text.size))
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def processes_on_this_host() -> int:
    """The number of this run's processes on this machine; all processes must call this."""
    host = socket.gethostname()
    return everyones(host).count(host)


def cores_on_this_host() -> int:
    """The number of logical CPUs of this machine in the union of its processes' CPU affinities.

    A scheduler may bind each process to different CPUs. All processes must call this.
    """
    here = socket.gethostname()
    found = everyones([here, sorted(os.sched_getaffinity(0))])
    return len({cpu for host, cpus in found if host == here for cpu in cpus})


def processes_by(key: str) -> dict[str, str]:
    """Group the processes of this run by a key; all of them must call this.

    Args:
      key: the key of this process.

    Returns:
      For each key, the ranks and hosts of its processes: ``processes 0, 1 on node1``.
    """
    found: dict[str, tuple[list[str], dict[str, None]]] = {}
    for number, (their_key, host) in enumerate(everyones([key, socket.gethostname()])):
        numbers, hosts = found.setdefault(their_key, ([], {}))
        numbers.append(str(number))
        hosts[host] = None
    return {
        their_key: f"process{'es' * (len(numbers) > 1)} {', '.join(numbers)} on {', '.join(hosts)}"
        for their_key, (numbers, hosts) in found.items()
    }


def on_one_process(action: Callable[[], None]) -> None:
    """Run `action`, such as a change of shared files, on process 0; all processes must call this.

    The other processes wait until it has finished.
    """
    if jax.process_index() == 0:
        action()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("seresnext_jax.on_one_process")
