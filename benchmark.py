"""Measure training, inference and the input pipeline; beside PyTorch with ``--against torch``.

    python benchmark.py train --batch-sizes 8 --against torch
    python benchmark.py train --batch-sizes 8 --data-root /imagenet
    python benchmark.py infer --batch-sizes 1 8 --against torch
    python benchmark.py data --against torch
    python benchmark.py compile --gpu h100 --precisions fp16 tf32 --batch-sizes 128
    python benchmark.py gpu --minutes 8 --json runs/bench-gpu.json

Each program runs in its own process; programs that are compared run in turn, some steps of one,
then some of the other. Warm-up and compilation are not in the figures; compilation has its own.
`compile` needs no GPU (docs/gpu-compile.md). `gpu` measures training and inference on a GPU, the
most important first, for as many minutes as it is given, and runs the tests that need one.
"""

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import tyro

from benchmarks.gpu.compile import compile_and_print, compiler_versions
from benchmarks.gpu.job import Job, ProgramName
from benchmarks.gpu.suite import run_suite
from benchmarks.gpu.targets import GpuName
from benchmarks.measure import Effort, measure
from benchmarks.process import Task, Work
from benchmarks.table import Row, print_header, print_table
from seresnext_jax.cli import load_config, parse, run
from seresnext_jax.config import Config, DataConfig, Precision
from seresnext_jax.errors import UserError
from seresnext_jax.model.network import ARCHITECTURES


@dataclass(frozen=True)
class BenchmarkConfig:
    """The options of benchmark.py."""

    what: tyro.conf.Positional[Literal["train", "infer", "data", "compile", "gpu"]] = "train"
    """What to measure; compile: whether the training and the evaluation step compile for a GPU
    that this machine need not have, and what they move in its memory."""
    config: str = ""
    """A config file for the network, its image size and precision; empty: se-resnext101-32x4d."""
    arch: str = ""
    """Another architecture than the config's."""
    precisions: tuple[Precision, ...] = ()
    """Precisions to measure; empty: the config's."""
    batch_sizes: tuple[int, ...] = (8,)
    """Images per device and forward pass."""
    image_size: int = 0
    """Side of the images in pixels; 0: the config's."""
    devices: tuple[int, ...] = (1,)
    """Numbers of devices to train on, or to compile for."""
    steps: int = 10
    """Counted steps of each program."""
    turn: int = 1
    """Steps that a program runs before it is the other one's turn. On a GPU give 10: training then
    waits for the device once in ten steps."""
    warmup: int = 2
    """Steps before them."""
    minutes: float = 8.0
    """How long `gpu` may measure."""
    against: Literal["", "torch"] = ""
    """Measure PyTorch in turn with JAX: channels_last; on a GPU autocast and torch.compile too."""
    data_root: str = ""
    """A folder that holds train/, for `data` and `train`. Empty: 256 photographs of 500 x 375 for
    `data`, synthetic images on the device for `train`."""
    workers: int = 2
    """Decoding threads, or processes, that read the dataset."""
    gpu: tuple[GpuName, ...] = ("h100",)
    """GPUs to compile for."""
    programs: tuple[ProgramName, ...] = ("train", "eval")
    """Steps to compile."""
    passes: tuple[int, ...] = (1,)
    """Numbers of forward passes that the compiled training step accumulates."""
    kinds: bool = False
    """Also print the memory traffic of each kind of kernel of the compiled programs."""
    hlo: str = ""
    """A folder for the optimized HLO text of the compiled programs."""
    compilation_cache: str = Config.compilation_cache
    """Folder of JAX's persistent compilation cache; empty: none, to see a cold compilation."""
    json: str = ""
    """Also write the rows to this file."""
    debug: bool = False
    """Show the traceback of an error."""


def main(argv: list[str]) -> int:
    """Run the program; returns its exit status: 1 if a program did not compile."""
    options = parse(BenchmarkConfig(), argv, program="benchmark.py", description=__doc__ or "")
    counts = options.batch_sizes + options.devices + options.passes
    if min(*counts, options.steps, options.turn) < 1 or options.warmup < 0:
        raise UserError(
            "--steps, --turn, --batch-sizes, --devices and --passes take numbers from 1 on"
        )
    if options.steps % options.turn:
        raise UserError(
            f"--steps {options.steps} is not a multiple of --turn {options.turn}: give "
            f"--steps {options.turn * -(-options.steps // options.turn)}"
        )
    status = 0
    measured = compile_steps(options) if options.what == "compile" else measure_here(options)
    for content in measured:
        if options.json:
            content = {"command": ["benchmark.py", *argv], **content}
            Path(options.json).write_text(json.dumps(content, indent=2) + "\n")
        failed = [row for row in content["rows"] if row.get("result", "ok") != "ok"]
        status = 1 if failed or content.get("failed") else 0
    return status


def compile_steps(options: BenchmarkConfig) -> Iterator[dict[str, Any]]:
    """Compile each program for each GPU; prints what came of it, and yields it for the JSON."""
    hlo_folder = Path(options.hlo) if options.hlo else None
    outcomes = compile_and_print(jobs(options), hlo_folder=hlo_folder, debug=options.debug)
    kinds = [row for outcome in outcomes for row in outcome.kind_rows()]
    if options.kinds:
        print_table(kinds)
    rows = [outcome.row() for outcome in outcomes]
    yield {"machine": compiler_versions(), "rows": rows, "kinds": kinds}


def jobs(options: BenchmarkConfig) -> list[Job]:
    """Every combination of the options. Passes are those of a training step."""
    found = []
    for gpu, config, devices in product(options.gpu, configs(options), options.devices):
        for program in options.programs:
            for passes in options.passes if program == "train" else (1,):
                images = config.batch_size * devices * passes
                config = replace(config, optimizer_batch_size=images)
                found.append(Job(gpu, program, config, devices))
    return found


def measure_here(options: BenchmarkConfig) -> Iterator[dict[str, Any]]:
    """Run what the options name on this machine; prints what was measured.

    Yields what there is up to now for the JSON, so an interruption loses only what was running.
    """
    header = machine()
    print_header(header)
    if options.what == "gpu":
        cache = cache_folder(options)
        for findings in run_suite(configs(options)[0], minutes=options.minutes, cache=cache):
            yield {"machine": header, **asdict(findings)}
        return
    rows = measure_data(options) if options.what == "data" else measure_programs(options)
    yield {"machine": header, "rows": print_table(rows)}


def machine() -> dict[str, Any]:
    """What the figures are measured with. A GPU is named in their rows, by who runs on it."""
    versions = {}
    for name in ("jax", "jaxlib", "torch", "nvidia-dali-cuda120"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "-"
    return {"cpu": platform.processor() or "-", "cores": len(os.sched_getaffinity(0)), **versions}


def measure_programs(options: BenchmarkConfig) -> Iterator[Row]:
    """Training or inference for each precision, batch size and number of devices."""
    work: Work = "train" if options.what == "train" else "infer"
    effort = Effort(
        rounds=options.steps // options.turn,
        steps=options.turn,
        warmup=options.warmup,
        against_torch=bool(options.against),
    )
    for config in configs(options):
        for devices in options.devices if work == "train" else (1,):
            task = Task("jax", work, config, devices, cache_folder(options))
            yield measure(task, effort)[0]


def cache_folder(options: BenchmarkConfig) -> str:
    """The compilation cache as an absolute path; empty: none."""
    folder = options.compilation_cache
    return os.path.abspath(os.path.expanduser(folder)) if folder else ""


def configs(options: BenchmarkConfig) -> list[Config]:
    """One configuration for each precision and batch size asked for."""
    base = load_config(options.config) if options.config else Config()
    if options.arch:
        base = replace(base, model=replace(base.model, arch=options.arch))
    if options.image_size:
        base = replace(base, data=replace(base.data, image_size=options.image_size))
    root = os.path.abspath(os.path.expanduser(options.data_root)) if options.data_root else ""
    data = replace(base.data, root=root, workers=options.workers)
    base = replace(base, data=data)
    if base.model.arch not in ARCHITECTURES:
        raise UserError(f"--arch {base.model.arch} is unknown: {', '.join(ARCHITECTURES)}")
    return [
        replace(base, precision=precision, batch_size=batch, optimizer_batch_size=-1)
        for precision in options.precisions or (base.precision,)
        for batch in options.batch_sizes
    ]


def measure_data(options: BenchmarkConfig) -> list[Row]:
    """Images per second that each input backend decodes and crops for training."""
    from benchmarks.input import measure_backends, write_photographs

    with TemporaryDirectory() as photographs:
        if not options.data_root:
            write_photographs(Path(photographs))
        data = DataConfig(
            root=options.data_root or photographs,
            image_size=options.image_size or 224,
            workers=options.workers,
        )
        return measure_backends(
            data,
            batch_size=max(options.batch_sizes),
            warmup=options.warmup,
            steps=options.steps,
            with_torch=bool(options.against),
        )


if __name__ == "__main__":
    run(main)
