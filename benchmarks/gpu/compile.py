"""Compiles programs for absent GPUs, each in its own process, and reports the results.

XLA's compiler may abort its process. So each program is compiled in a child process (worker.py):
if that dies, only its program fails.
"""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from benchmarks.gpu.targets import GPUS, REACHABLE, GpuName
from benchmarks.gpu.traffic import Kernel, by_kind, describe_collectives, read_kernels
from benchmarks.table import Row, print_table
from seresnext_jax.config import Config
from seresnext_jax.errors import UserError
from seresnext_jax.health.machine import installed_version
from seresnext_jax.plan import Plan, resolve

ROOT = Path(__file__).parent.parent.parent
WORKER = ("-m", "benchmarks.gpu.worker")
"""Python's arguments for compiling a job."""
COMPILER_TOOLS = "nvidia-cuda-nvcc-cu12"
"""The package with ptxas and libdevice. The one for CUDA 12 assembles for every GPU in the table
and for both of JAX's plugins; the one for CUDA 13 refuses the V100."""

ProgramName = Literal["train", "eval", "infer"]


@dataclass(frozen=True)
class Job:
    """One program to compile: a step of a configuration, for a GPU that may be absent."""

    gpu: GpuName
    program: ProgramName
    config: Config
    """Its optimizer batch decides the number of forward passes of a training step."""
    devices: int

    @property
    def plan(self) -> Plan:
        """The plan of a run on a dataset with exactly the images of one step.

        Raises:
          UserError: a field of the configuration is out of range, or its batches do not divide.
        """
        config = self.config
        images = max(config.optimizer_batch_size, config.batch_size * self.devices)
        return resolve(config, num_images=images, num_devices=self.devices)

    @property
    def passes(self) -> int:
        """Forward passes in one call of the program."""
        return self.plan.accumulation if self.program == "train" else 1

    @property
    def name(self) -> str:
        """The job's parameters as a file name without suffix."""
        config = self.config
        return (
            f"{self.gpu}-{self.program}-{config.model.arch}-{config.precision}"
            f"-batch{config.batch_size}x{self.devices}x{self.passes}-{config.data.image_size}px"
        )


@dataclass(frozen=True)
class Outcome:
    """The result of compiling a job."""

    job: Job
    seconds: float = 0.0
    temporary_bytes: int = 0
    kernels: tuple[Kernel, ...] = ()
    error: str = ""
    """One line; "": it compiled."""
    output: str = ""
    """What the child wrote to its standard error."""

    def row(self) -> Row:
        """The job and its figures, for a table and for JSON; without figures if it failed."""
        config = self.job.config
        traffic = sum(kernel.bytes for kernel in self.kernels)
        bandwidth = REACHABLE * GPUS[self.job.gpu].bandwidth
        figures = {
            "seconds": self.seconds,
            "temporary MiB": self.temporary_bytes / 2**20,
            "kernels": len(self.kernels),
            "GB": traffic / 1e9,
            "least ms": 1e3 * traffic / bandwidth,
            "collectives": describe_collectives(self.kernels),
        }
        return {
            "gpu": self.job.gpu,
            "program": self.job.program,
            "arch": config.model.arch,
            "precision": config.precision,
            "batch": config.batch_size,
            "devices": self.job.devices,
            "passes": self.job.passes,
            **(dict.fromkeys(figures) if self.error else figures),
            "result": self.error or "ok",
        }

    def kind_rows(self) -> list[Row]:
        """The traffic of each kind of kernel, largest first."""
        return [
            {"program": self.job.name, "kind": kind, "kernels": count, "GB": size / 1e9}
            for kind, (count, size) in by_kind(self.kernels).items()
        ]


def compile_jobs(
    jobs: Sequence[Job], *, hlo_folder: str = "", debug: bool = False
) -> list[Outcome]:
    """Compile the jobs one after the other; prints a table of the outcomes.

    Args:
      hlo_folder: where to keep the optimized HLO text of each program; "": it is not kept.
      debug: also print what the compiler logged about a program that failed.

    Raises:
      UserError: the folder cannot be created.
    """
    outcomes: list[Outcome] = []

    def rows(folder: Path) -> Iterator[Row]:
        for job in jobs:
            outcomes.append(compile_job(job, folder / f"{job.name}.hlo"))
            yield outcomes[-1].row()

    with TemporaryDirectory() as scratch:
        folder = Path(hlo_folder or scratch).absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--hlo {hlo_folder}: {error.strerror}; give a folder") from error
        print_table(rows(folder))
    failed = [outcome for outcome in outcomes if outcome.error]
    for outcome in failed if debug else ():
        print(f"\n{outcome.job.name}:\n{outcome.output}", file=sys.stderr)
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} programs compiled")
    return outcomes


def compiler_versions() -> dict[str, str]:
    """The versions of the packages that compile, by package.

    Raises:
      UserError: one is missing, or the versions of JAX and its plugin differ; says what to install.
    """
    found = {name: installed_version(name) or "" for name in ("jax", "jaxlib", COMPILER_TOOLS)}
    for cuda in ("12", "13"):
        plugin, runtime = f"jax-cuda{cuda}-plugin", f"jax-cuda{cuda}-pjrt"
        if (
            found[COMPILER_TOOLS]
            and installed_version(plugin) == installed_version(runtime) == found["jaxlib"]
        ):
            return {**found, plugin: found["jaxlib"]}
    raise UserError(
        f"compiling for a GPU needs {COMPILER_TOOLS}, and jax-cuda12-plugin or jax-cuda13-plugin "
        f"of jaxlib's version {found['jaxlib']}: pip install -e '.[compile]', or make gpu-compile, "
        "which has its own environment"
    )


def compile_job(job: Job, hlo_file: Path) -> Outcome:
    """Compile a program in a child process, and keep its HLO text in a file."""
    child = subprocess.run(
        [sys.executable, *WORKER, str(hlo_file)],
        input=pickle.dumps(job),
        capture_output=True,
        cwd=ROOT,
        env=child_environment(),
    )
    output = child.stderr.decode(errors="replace")
    if child.returncode < 0 or not child.stdout:
        return Outcome(job, error=last_words(child.returncode, output), output=output)
    told = json.loads(child.stdout)
    kernels = () if told["error"] else tuple(read_kernels(hlo_file.read_text()))
    return Outcome(job, **told, kernels=kernels, output=output)


def child_environment() -> dict[str, str]:
    """The worker's environment: JAX runs on the CPU; XLA uses no cache and no autotuning.

    The user's XLA_FLAGS come last, so they override these.
    """
    tools = distribution(COMPILER_TOOLS).locate_file("nvidia/cuda_nvcc")
    flags = f"--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={tools}"
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "XLA_FLAGS": f"{flags} {os.environ.get('XLA_FLAGS', '')}".strip(),
    }


def last_words(status: int, output: str) -> str:
    """One line on a child that ended without a result: how it ended, and its last logged error.

    Args:
      status: its exit status, negative for a signal.
      output: its standard error. XLA's lines are ``F1231 23:59:59.123456  4711 file.cc:7] text``.
    """
    how = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
    errors = re.findall(r"^[EF]\d{4} .*?(\S+:\d+)\] (.*)", output, re.MULTILINE)
    place, text = errors[-1] if errors else ("", "")
    why = f"{text.strip()} ({place})" if text else "it logged no error"
    return f"the compiler ended with {how}: {why}"
