"""Binds the threads of a process to CPU cores near its GPUs.

The CUDA driver gives the PCI address of each GPU, and Linux the cores near that address.
"""

import ctypes
import os
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from seresnext_jax.processes.agree import everyones
from seresnext_jax.report.console import Console

_SYSTEM = Path("/sys")


def local_gpus(mesh: Mesh) -> list[int]:
    """The CUDA device ordinals of this process's GPUs in the mesh; empty without a GPU."""
    return [d.local_hardware_id for d in mesh.local_devices if d.platform == "gpu"]


def bind_to_gpus(gpus: list[int], console: Console) -> None:
    """Bind this process, all its threads included, to its share of the cores near its GPUs.

    Processes on one host that have the same cores near their GPUs divide them. Without a GPU, or if
    no usable core near it is known, a line says so and nothing changes. All processes must call
    this.

    Args:
      gpus: the result of `local_gpus`.
    """
    near: set[int] = set()
    problem = "" if gpus else "this process has no GPU"
    try:
        for gpu in gpus:
            near |= cpus_near(pci_address(gpu))
    except (OSError, ValueError) as error:
        problem = f"the cores near its GPUs are not known ({error})"
    near &= os.sched_getaffinity(0)
    if not problem and not near:
        problem = "a scheduler has bound this process to cores away from its GPUs"
    number, count = _place_among_equals(near)
    if problem:
        console.note(f"--distributed.gpu-affinity changes nothing: {problem}")
        return
    cpus = share(near, number, count)
    bind_threads(cpus)
    console.note(f"bound to {len(cpus)} logical CPUs near GPU {', '.join(map(str, gpus))}")


def pci_address(gpu: int) -> str:
    """The PCI address of this process's CUDA device `gpu`, such as ``0000:07:00.0``.

    Raises:
      OSError: there is no driver, or it does not know the device.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    device, address = ctypes.c_int(), ctypes.create_string_buffer(64)
    calls: list[Callable[[], int]] = [
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(device), gpu),
        lambda: driver.cuDeviceGetPCIBusId(address, len(address), device),
    ]
    for call in calls:
        if status := call():
            raise OSError(f"the CUDA driver returned error {status} for GPU {gpu}")
    return address.value.decode().lower()


def cpus_near(pci_address: str, system: Path = _SYSTEM) -> set[int]:
    """The logical CPUs that Linux lists as near a PCI address.

    Raises:
      OSError or ValueError: Linux does not know them.
    """
    return parse_cpus((system / "bus/pci/devices" / pci_address / "local_cpulist").read_text())


def parse_cpus(text: str) -> set[int]:
    """Parse Linux's list of CPUs: ``0-3,8`` → {0, 1, 2, 3, 8}; ValueError if it is malformed."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cpus |= set(range(int(first), int(last or first) + 1))
    return cpus


def share(cpus: Iterable[int], number: int, count: int, system: Path = _SYSTEM) -> set[int]:
    """The CPUs of process `number` (from 0) of `count`: whole cores, next to each other.

    If there are fewer cores than processes, each process may use all of them.
    """
    cores: dict[int, set[int]] = {}
    for cpu in sorted(cpus):
        threads = {cpu}
        with suppress(OSError, ValueError):
            folder = system / f"devices/system/cpu/cpu{cpu}/topology"
            threads = parse_cpus((folder / "thread_siblings_list").read_text())
        cores.setdefault(min(threads), set()).add(cpu)
    if len(cores) < count:
        return set(cpus)
    own = np.array_split(sorted(cores), count)[number]
    return set().union(*(cores[int(core)] for core in own))


def bind_threads(cpus: set[int]) -> None:
    """Bind every thread of this process; threads that they start later inherit the binding."""
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread), cpus)


def _place_among_equals(near: set[int]) -> tuple[int, int]:
    """The rank of this process among those on its host with the same cores, and their count."""
    mine = [socket.gethostname(), sorted(near)]
    all_of_them = everyones(mine)
    return all_of_them[: jax.process_index()].count(mine), all_of_them.count(mine)
