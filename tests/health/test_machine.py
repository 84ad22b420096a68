"""Checks of the machine, on machines that are broken in one way each."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seresnext_jax.health import machine
from seresnext_jax.health.machine import (
    check_compiler,
    check_convolution,
    check_dali,
    check_devices,
    check_driver,
    check_packages,
    installed_version,
)

PROPRIETARY = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}.104.05  Sat Aug 19 01:15:15 UTC\n"
OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}.57.08  Release Build\nGCC 12.3\n"
)


def with_packages(**changed: str | None) -> Callable[[str], str | None]:
    """The packages of this machine, some of them in another version or missing."""
    named = {name.replace("_", "-"): found for name, found in changed.items()}
    return lambda name: named.get(name, installed_version(name))


# ---- packages and driver -------------------------------------------------------------------------


def test_the_packages_of_the_tests_are_enough() -> None:
    found = check_packages()
    assert found.status == "ok", found
    assert f"jax {jax.__version__}" in found.detail


@pytest.mark.parametrize(
    ("changed", "detail", "fix"),
    [
        ({"flax": None}, "flax is missing", "pip install 'flax<0.13,>=0.12.8'"),
        ({"numpy": "1.26.4"}, "numpy 1.26.4", "pip install 'numpy<3,>=2.0'"),
        (
            {"jax_cuda12_plugin": "0.9.0"},
            f"jax-cuda12-plugin 0.9.0 with jaxlib {installed_version('jaxlib')}",
            f"pip install jax-cuda12-plugin=={installed_version('jaxlib')}",
        ),
    ],
)
def test_a_wrong_package_is_named(changed: dict[str, str | None], detail: str, fix: str) -> None:
    found = check_packages(with_packages(**changed))
    assert (found.status, found.detail, found.fix) == ("problem", detail, fix)


def test_a_checkout_that_is_not_installed_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PROJECT", "absent-project")
    found = check_packages()
    assert (found.status, found.fix) == ("warning", "pip install -e . in its folder")


@pytest.mark.parametrize("text", [PROPRIETARY, OPEN])
@pytest.mark.parametrize(
    ("driver", "plugin", "status", "words"),
    [
        (525, "12", "ok", "for CUDA 12"),
        (470, "12", "problem", "install driver 525 or newer"),
        (570, "13", "problem", "install driver 580 or newer; or pip install -e '.[cuda12]'"),
        (580, "13", "ok", "for CUDA 13"),
        (580, "", "problem", "pip install -e '.[cuda12]'"),
    ],
)
def test_the_driver_has_to_suit_jaxs_plugin(
    tmp_path: Path, text: str, driver: int, plugin: str, status: str, words: str
) -> None:
    (tmp_path / "version").write_text(text.format(driver))
    none: dict[str, str | None] = {"jax_cuda12_plugin": None, "jax_cuda13_plugin": None}
    packages = with_packages(**none | ({f"jax_cuda{plugin}_plugin": "1"} if plugin else {}))
    found = check_driver(tmp_path / "version", packages)
    assert found.status == status
    assert words in (found.fix or found.detail)
    assert f"{driver}." in found.detail


def test_without_a_driver_there_is_no_gpu(tmp_path: Path) -> None:
    assert check_driver(tmp_path / "absent").status == "ok"


# ---- devices -------------------------------------------------------------------------------------


def test_a_gpu_that_jax_does_not_see_is_a_problem(tmp_path: Path) -> None:
    assert check_devices(driver=tmp_path / "absent").status == "ok"
    (tmp_path / "version").write_text("")
    found = check_devices(driver=tmp_path / "version")
    assert found.status == "problem" and "although there is an NVIDIA GPU" in found.detail
    gpu: Any = SimpleNamespace(platform="gpu", device_kind="NVIDIA A100")
    assert check_devices(lambda: [gpu, gpu], tmp_path / "version").detail == "2 x NVIDIA A100"


def test_jax_that_does_not_start_is_a_problem_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> list[jax.Device]:
        raise RuntimeError("Unable to initialize backend 'cuda': no GPU\nmore lines")

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    found = check_devices(fail, tmp_path / "absent")
    text = "JAX does not start with JAX_PLATFORMS=cuda: Unable to initialize backend 'cuda': no GPU"
    assert (found.status, found.detail, found.numbers) == ("problem", text, {})
    assert found.fix.endswith("JAX_PLATFORMS")


def test_every_device_computes_a_convolution() -> None:
    for device in jax.devices()[:2]:
        found = check_convolution(device)
        assert found.status == "ok", found
        assert found.numbers["relative_error"] < 1e-5


@pytest.mark.parametrize("wrong", [1.1, np.nan])
def test_a_device_that_computes_wrong_numbers_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    conv2d = machine.conv2d
    monkeypatch.setattr(machine, "conv2d", lambda *x, **more: wrong * conv2d(*x, **more))
    found = check_convolution(jax.devices()[0])
    assert found.status == "problem" and "the result is wrong by" in found.detail


def test_a_device_that_fails_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: jnp.ndarray, **__: int) -> None:
        raise RuntimeError("CUDNN_STATUS_NOT_INITIALIZED\nmore lines")

    monkeypatch.setattr(machine, "conv2d", fail)
    found = check_convolution(jax.devices()[0])
    assert (found.status, found.detail) == ("problem", "it fails: CUDNN_STATUS_NOT_INITIALIZED")
    assert "nvidia-smi" in found.fix


# ---- DALI and compiler ---------------------------------------------------------------------------


def test_dali_is_there() -> None:
    assert check_dali("dali-cpu").status == "ok"


def test_missing_dali_is_a_problem_for_a_run_that_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "seresnext_jax.data.backends.dali", raising=False)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    found = check_dali("dali-cpu")
    assert found.status == "problem" and "nvidia.dali" in found.detail
    assert "--data.backend folder" in found.fix
    assert check_dali("folder").status == "warning", "the fix"
    assert check_dali(None).status == "warning"


def test_a_broken_dali_is_a_problem_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise OSError("libnvcuvid.so: cannot open shared object file")

    monkeypatch.setattr(machine.importlib, "import_module", broken)
    found = check_dali("dali-gpu")
    assert found.detail.startswith("it can't be imported: libnvcuvid.so")
    assert found.status == "problem" and check_dali("folder").status == "warning"


def test_a_missing_compiler_is_a_warning_and_its_fix_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # nothing is compiled there yet
    monkeypatch.setenv("CXX", "/absent/c++")
    found = check_compiler("cpu")
    assert found.status == "warning"
    assert "the C++ compiler '/absent/c++' was not found" in found.detail
    assert "name a compiler in CXX" in found.fix
    assert check_compiler("gpu").status == "ok"
    compiler = shutil.which("c++")
    if compiler:
        monkeypatch.setenv("CXX", compiler)
        assert check_compiler("cpu").status == "ok"
