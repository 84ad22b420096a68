"""The hardware and software versions that a run uses, for its report."""

import os
import platform
import socket
from collections import Counter
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax

import seresnext_jax

_PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow"),
    *("nvidia-dali-cuda120", "nvidia-dali-cuda130"),
)
_CPU, _DRIVER = Path("/proc/cpuinfo"), Path("/proc/driver/nvidia/version")


def describe_environment() -> dict[str, str]:
    """What one must know to repeat a measurement: readable values by name, without unknown ones."""
    kinds = Counter(device.device_kind for device in jax.devices())
    client = jax.devices()[0].client.platform_version.partition("\n")[0]
    found = {
        "devices": ", ".join(f"{number} x {kind}" for kind, number in kinds.items()),
        "platform": client,
        "NVIDIA driver": _line_with(_DRIVER, "NVRM version:"),
        "processes": str(jax.process_count()),
        "host": socket.gethostname(),
        "CPU": f"{_line_with(_CPU, 'model name') or platform.machine()}, {_cores()} cores",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "system": platform.platform(),
        "Python": platform.python_version(),
        "seresnext_jax": seresnext_jax.__version__,
    }
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return {name: value for name, value in found.items() if value}


def _cores() -> int:
    """The number of logical CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def _line_with(file: Path, name: str) -> str:
    """The value of the first ``name: value`` line of a file; "" if there is none."""
    with suppress(OSError):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(name):
                return line.partition(":")[2].strip()
    return ""
