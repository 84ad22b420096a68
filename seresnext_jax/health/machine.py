"""Checks of the machine: packages, driver, devices, DALI, compiler."""

import importlib
import os
import re
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from packaging.requirements import Requirement

from seresnext_jax.config import Backend
from seresnext_jax.health.finding import Finding
from seresnext_jax.ops.convolution import conv2d, cpu_kernel_problem

PROJECT = "seresnext-jax"
DRIVER = Path("/proc/driver/nvidia/version")
OLDEST_DRIVER = {"12": 525, "13": 580}
"""The oldest driver release for each major version of CUDA."""
_TOLERANCE = 2e-2
"""Tolerance of a convolution in TF32, relative to its largest value."""


def installed_version(package: str) -> str | None:
    """The version of a package; None: it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_packages(installed: Callable[[str], str | None] = installed_version) -> Finding:
    """Compare package versions with the project's requirements, and JAX's plugins with jaxlib."""
    problems, fixes = [], []
    try:
        texts = requires(PROJECT) or []
    except PackageNotFoundError:
        text = "this project is not installed, so its requirements are unknown"
        return Finding("packages", "warning", text, "pip install -e . in its folder")
    for text in texts:
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        found = installed(needed.name)
        if found is None or not needed.specifier.contains(found, prereleases=True):
            problems.append(f"{needed.name} {found or 'is missing'}")
            fixes.append(f"'{needed.name}{needed.specifier}'")
    jaxlib = installed("jaxlib")
    for cuda in OLDEST_DRIVER:
        for part in ("plugin", "pjrt"):
            name = f"jax-cuda{cuda}-{part}"
            if (found := installed(name)) not in (None, jaxlib):
                problems.append(f"{name} {found} with jaxlib {jaxlib}")
                fixes.append(f"{name}=={jaxlib}")
    if problems:
        return Finding("packages", "problem", ", ".join(problems), f"pip install {' '.join(fixes)}")
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return Finding("packages", "ok", ", ".join(f"{name} {installed(name)}" for name in names))


def check_driver(
    file: Path = DRIVER, installed: Callable[[str], str | None] = installed_version
) -> Finding:
    """Compare NVIDIA's driver with the CUDA version of JAX's plugin."""
    plugins = [cuda for cuda in OLDEST_DRIVER if installed(f"jax-cuda{cuda}-plugin")]
    try:
        found = re.search(r"Kernel Module.*?(\d+)\.(\d+\S*)", file.read_text())
    except OSError:
        return Finding("driver", "ok", "no NVIDIA driver, so JAX runs on the CPU")
    if found is None:
        return Finding("driver", "warning", f"{file} names no version", "look at nvidia-smi")
    text = f"NVIDIA {found[1]}.{found[2]}"
    if not plugins:
        fix = "pip install -e '.[cuda12]', or cuda13 with driver 580 or newer"
        return Finding("driver", "problem", f"{text}, but JAX has no CUDA plugin", fix)
    oldest = min(OLDEST_DRIVER[cuda] for cuda in plugins)
    if int(found[1]) < oldest:
        wants = f"CUDA {plugins[0]} needs {oldest} or newer"
        fix = f"install driver {oldest} or newer" + (
            "; or pip install -e '.[cuda12]'" * (plugins == ["13"] and int(found[1]) >= 525)
        )
        return Finding("driver", "problem", f"{text}: {wants}", fix)
    return Finding("driver", "ok", f"{text}, JAX's plugin for CUDA {' and '.join(plugins)}")


def check_devices(
    find: Callable[[], Sequence[jax.Device]] = jax.devices, driver: Path = DRIVER
) -> Finding:
    """The devices that JAX finds; ``devices`` is missing in `numbers` if JAX does not start."""
    fix = "see the driver above; also check CUDA_VISIBLE_DEVICES and JAX_PLATFORMS"
    try:
        devices = find()
    except Exception as error:  # whatever a device's plugin raises
        platforms = os.environ.get("JAX_PLATFORMS")
        text = f"JAX does not start{f' with JAX_PLATFORMS={platforms}' * bool(platforms)}"
        return Finding("devices", "problem", _with_reason(text, error), fix)
    kinds = sorted({device.device_kind for device in devices})
    text = f"{len(devices)} x {', '.join(kinds)}"
    numbers = {"devices": float(len(devices))}
    if driver.exists() and all(device.platform == "cpu" for device in devices):
        text += ", although there is an NVIDIA GPU"
        return Finding("devices", "problem", text, fix, numbers)
    return Finding("devices", "ok", text, numbers=numbers)


def _with_reason(text: str, error: Exception) -> str:
    """A text with the first line of an error, if it has one."""
    reason = str(error).partition("\n")[0][:160]
    return f"{text}: {reason}" if reason else text


def check_convolution(device: jax.Device) -> Finding:
    """Run a small grouped convolution on a device and compare it with NumPy."""
    name = f"convolution on {device}"
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 6, 6, 32)).astype(np.float32)
    kernel = random.normal(size=(3, 3, 4, 32)).astype(np.float32)
    wanted = _grouped_convolution(x, kernel, groups=8)
    try:
        placed = jax.device_put((jnp.asarray(x), jnp.asarray(kernel)), device)
        found = np.asarray(conv2d(*placed, padding=1, groups=8))
    except Exception as error:  # whatever the device, its driver or its libraries raise
        fix = "end other programs on the device (nvidia-smi lists them); else update the driver"
        return Finding(name, "problem", _with_reason("it fails", error), fix)
    off = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    if not off <= _TOLERANCE:
        fix = "unset XLA_FLAGS; if that does not help, the device or its driver is broken"
        return Finding(name, "problem", f"the result is wrong by {off:.1%}", fix)
    return Finding(name, "ok", f"right within {off:.1e}", numbers={"relative_error": off})


def _grouped_convolution(x: np.ndarray, kernel: np.ndarray, *, groups: int) -> np.ndarray:
    """A 3×3 convolution with padding 1, computed in float64.

    x (N, H, W, C), kernel (3, 3, C / groups, O) → (N, H, W, O).
    """
    n, h, w, _ = x.shape
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    total = 0.0
    for i in range(3):
        for j in range(3):
            taps = kernel[i, j].reshape(kernel.shape[2], groups, -1)
            window = padded[:, i : i + h, j : j + w].reshape(n, h, w, groups, -1)
            total = total + np.einsum("nhwgi,igo->nhwgo", window, taps).reshape(n, h, w, -1)
    return np.asarray(total)


def check_dali(backend: Backend | None) -> Finding:
    """Import DALI.

    Args:
      backend: the input backend of the planned run; None: no run is planned.
    """
    try:
        importlib.import_module("seresnext_jax.data.backends.dali")
    except Exception as error:  # whatever a broken installation raises
        needed = backend in ("dali-cpu", "dali-gpu")
        fix = "pip install -e '.[cuda12]' (or cuda13; on a CPU demo), or --data.backend folder"
        text = _with_reason("it can't be imported", error)
        return Finding("DALI", "problem" if needed else "warning", text, fix)
    packages = ("nvidia-dali-cuda120", "nvidia-dali-cuda130")
    found = [f"{name} {installed_version(name)}" for name in packages if installed_version(name)]
    return Finding("DALI", "ok", ", ".join(found))


def check_compiler(platform: str) -> Finding:
    """Compile the C++ kernel for grouped convolutions, unless it was compiled before.

    Args:
      platform: of the devices that will train, such as ``gpu``.
    """
    if platform != "cpu":
        return Finding("C++ compiler", "ok", "not needed with a GPU")
    if problem := cpu_kernel_problem():
        fix = "install g++ (Debian: apt install g++) or name a compiler in CXX"
        return Finding("C++ compiler", "warning", f"training is slower: {problem}", fix)
    return Finding("C++ compiler", "ok", "the kernel for grouped convolutions is ready")
