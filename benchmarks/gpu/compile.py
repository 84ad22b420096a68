"""Compile programs for absent GPUs, each in a process of its own, and say what came of it.

XLA's compiler may abort its process. So a child compiles (worker.py), and what ends it is the
result of that program alone.
"""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.gpu.job import Job
from benchmarks.gpu.targets import GPUS, REACHABLE
from benchmarks.gpu.traffic import Kernel, by_kind, describe_collectives, read_kernels
from benchmarks.table import Row, print_header, print_table
from seresnext_jax.errors import UserError

ROOT = Path(__file__).parent.parent.parent
WORKER = ("-m", "benchmarks.gpu.worker")
"""What Python runs to compile a job."""
COMPILER_TOOLS = "nvidia-cuda-nvcc-cu12"
"""The package of ptxas and libdevice. That of CUDA 12 assembles for every GPU of the table and for
both of JAX's plugins; that of CUDA 13 refuses the V100."""


@dataclass(frozen=True)
class Outcome:
    """What came of compiling a job."""

    job: Job
    seconds: float = 0.0
    temporary_bytes: int = 0
    kernels: tuple[Kernel, ...] = ()
    error: str = ""
    """One line; "": it compiled."""
    output: str = ""
    """What the child wrote to its standard error."""

    def row(self) -> Row:
        """The job and its figures, for a table and for JSON; of a failed one no figures."""
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
        """The traffic of each kind of kernel, the largest first."""
        return [
            {"program": self.job.name, "kind": kind, "kernels": count, "GB": size / 1e9}
            for kind, (count, size) in by_kind(self.kernels).items()
        ]


def compiler_versions() -> dict[str, str]:
    """The packages that compile, and their versions.

    Raises:
      UserError: one is missing, or JAX's plugin is not of JAX's version; says what to install.
    """
    found = {name: _version(name) for name in ("jax", "jaxlib", COMPILER_TOOLS)}
    for cuda in ("12", "13"):
        plugin, runtime = f"jax-cuda{cuda}-plugin", f"jax-cuda{cuda}-pjrt"
        if found[COMPILER_TOOLS] and _version(plugin) == _version(runtime) == found["jaxlib"]:
            return {**found, plugin: found["jaxlib"]}
    raise UserError(
        f"compiling for a GPU needs {COMPILER_TOOLS}, and jax-cuda12-plugin or jax-cuda13-plugin "
        f"of jaxlib's version {found['jaxlib']}: pip install -e '.[compile]', or make gpu-compile, "
        "which has its own environment"
    )


def compile_all(jobs: Iterable[Job], hlo_folder: Path | None = None) -> Iterator[Outcome]:
    """Compile the jobs one after the other.

    Args:
      hlo_folder: where each program's optimized HLO text is kept; it is made if it isn't there.
    """
    with TemporaryDirectory() as scratch:
        folder = hlo_folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for job in jobs:
            yield _compile(job, folder.absolute() / f"{job.name}.hlo")


def compile_and_print(
    jobs: Sequence[Job], *, hlo_folder: Path | None = None, debug: bool = False
) -> list[Outcome]:
    """Compile the jobs and print a table of the outcomes, each as soon as it is there.

    Args:
      hlo_folder: as in `compile_all`.
      debug: also print what the compiler logged of a program that failed.

    Raises:
      UserError: a package that compiles is missing.
    """
    print_header(compiler_versions())
    outcomes: list[Outcome] = []

    def rows() -> Iterator[Row]:
        for outcome in compile_all(jobs, hlo_folder):
            outcomes.append(outcome)
            yield outcome.row()

    print_table(rows())
    failed = [outcome for outcome in outcomes if outcome.error]
    for outcome in failed if debug else ():
        print(f"\n{outcome.job.name}:\n{outcome.output}", file=sys.stderr)
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} programs compiled")
    return outcomes


def child_environment() -> dict[str, str]:
    """The worker's environment: JAX stays on the CPU, and XLA compiles anew and measures nothing.

    XLA_FLAGS of the user's come last and win, to see what they change.
    """
    tools = distribution(COMPILER_TOOLS).locate_file("nvidia/cuda_nvcc")
    flags = f"--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={tools}"
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "XLA_FLAGS": f"{flags} {os.environ.get('XLA_FLAGS', '')}".strip(),
    }


def _compile(job: Job, hlo_file: Path) -> Outcome:
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
    if told["error"]:
        return Outcome(job, error=told["error"], output=output)
    kernels = tuple(read_kernels(hlo_file.read_text()))
    return Outcome(job, told["seconds"], told["temporary_bytes"], kernels, output=output)


def last_words(status: int, output: str) -> str:
    """One line on a child that ended without a result: how, and the last error that it logged.

    Args:
      status: its exit status, negative for a signal.
      output: its standard error. XLA's lines are ``F1231 23:59:59.123456  4711 file.cc:7] text``.
    """
    how = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
    errors = re.findall(r"^[EF]\d{4} .*?(\S+:\d+)\] (.*)", output, re.MULTILINE)
    place, text = errors[-1] if errors else ("", "")
    why = f"{text.strip()} ({place})" if text else "it logged no error"
    return f"the compiler ended with {how}: {why}"


def _version(package: str) -> str:
    """A package's version; "" if it isn't installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
