"""Measure training, inference and the input pipeline; compare them with ``--against torch``.

    python benchmark.py train --batch-sizes 8 --against torch
    python benchmark.py train --batch-sizes 8 --data.root /imagenet
    python benchmark.py infer --batch-sizes 1 8 --against torch
    python benchmark.py data --against torch
    python benchmark.py data --no-decode --data.root /imagenet --batch-sizes 1024 --steps 200
    python benchmark.py compile --gpu h100 --precisions fp16 tf32 --batch-sizes 128
    python benchmark.py gpu --minutes 8 --json runs/bench-gpu.json

Each program runs in its own process; programs that are compared take turns, some steps of one, then
some of the other. The figures exclude warm-up and compilation; compilation has its own figure.
`compile` needs no GPU (docs/gpu-compile.md). `gpu` measures training and inference on a GPU, the
most important first, for at most --minutes, and runs the tests that need a GPU.
"""

import json
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import tyro

from benchmarks.gpu.compile import Job, ProgramName, compile_jobs, compiler_versions
from benchmarks.gpu.targets import GpuName
from benchmarks.measure import Effort, measure
from benchmarks.process import Task, Work
from benchmarks.suite import run_suite
from benchmarks.table import print_header, print_table
from seresnext_jax.cli import check_output, parse, run, write_output
from seresnext_jax.config import Config, DataConfig, Precision
from seresnext_jax.config_files import load_config
from seresnext_jax.errors import UserError
from seresnext_jax.health.machine import installed_version
from seresnext_jax.model.network import find_architecture


@dataclass(frozen=True)
class Model:
    """The network."""

    arch: str = ""
    """All but data: an architecture; empty: the config's."""


@dataclass(frozen=True)
class Data:
    """The images."""

    root: str = ""
    """train, data, gpu: a folder that contains train/. Empty: training uses synthetic images on
    the device; data uses 256 photographs of 500 x 375."""
    image_size: int = 0
    """All: side of the images in pixels; 0: the config's."""
    workers: int = 2
    """train, data, gpu: decoding threads, or PyTorch's processes, that read the images."""
    on_bad_image: Literal["error", "skip"] = "error"
    """train, data, gpu: what to do with a file that can't be decoded: stop, or leave it out."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """The options of benchmark.py; the help of each begins with the measurements that use it."""

    what: tyro.conf.Positional[Literal["train", "infer", "data", "compile", "gpu"]] = "train"
    """What to measure; compile: whether the training and the evaluation step compile for a GPU
    that this machine may lack, and how much memory traffic they cause."""
    config: str = ""
    """All: a config file for everything that has no option here; empty: the defaults of
    train.py."""
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    precisions: tuple[Precision, ...] = ()
    """train, infer, compile: precisions to measure; empty: the config's."""
    batch_sizes: tuple[int, ...] = (8,)
    """All but gpu: images per device and forward pass; data takes the largest."""
    devices: tuple[int, ...] = (1,)
    """train, compile: numbers of devices; data: numbers of GPUs for --rate."""
    steps: int = 10
    """train, infer, data: counted steps of each program."""
    turn: int = 1
    """train, infer: steps that a program runs before it is the other one's turn. On a GPU use 10:
    training then waits for the device once in ten steps."""
    warmup: int = 2
    """train, infer, data: uncounted steps at the beginning."""
    against: Literal["", "torch"] = ""
    """train, infer, data: also measure PyTorch, taking turns with JAX: with channels_last, and on
    a GPU with autocast and torch.compile."""
    decode: bool = True
    """data: whether to decode the images; otherwise only listing and feeding DALI are measured."""
    files: tuple[int, ...] = ()
    """data with --no-decode: measure folders of this many files, in 1,000 classes, instead of
    --data.root."""
    rate: float = 0.0
    """data: images per second that one GPU trains; also print what --devices GPUs need."""
    processes: tuple[int, ...] = ()
    """data: instead of the backends, measure DALI on the CPU in this many processes of this host,
    which share the largest of --devices."""
    minutes: float = 8.0
    """gpu: time limit of the measurements."""
    gpu: tuple[GpuName, ...] = ("h100",)
    """compile: the GPUs."""
    programs: tuple[ProgramName, ...] = ("train", "eval")
    """compile: the steps."""
    passes: tuple[int, ...] = (1,)
    """compile: numbers of forward passes that the training step accumulates."""
    kinds: bool = False
    """compile: also print the memory traffic of each kind of kernel."""
    hlo: str = ""
    """compile: a folder for the optimized HLO text of the programs."""
    compilation_cache: str = Config.compilation_cache
    """train, infer, gpu: folder of JAX's persistent compilation cache; empty: none, to measure a
    cold compilation."""
    json: str = ""
    """All: also write the rows to this file."""
    debug: bool = False
    """All: show the traceback of an error."""


def main(argv: list[str]) -> int:
    """Run the program; returns its exit status: 1 if a program failed."""
    options = parse(BenchmarkConfig(), argv, program="benchmark.py", description=__doc__ or "")
    check_output("--json", options.json)
    counts = options.batch_sizes + options.devices + options.passes
    counts += options.files + options.processes
    if min(*counts, options.steps, options.turn, options.data.workers) < 1 or options.warmup < 0:
        raise UserError(
            "--steps, --turn, --batch-sizes, --devices, --passes, --files, --processes and "
            "--data.workers must be at least 1, --warmup at least 0"
        )
    if options.steps % options.turn:
        raise UserError(
            f"--steps {options.steps} is not a multiple of --turn {options.turn}: give "
            f"--steps {options.turn * -(-options.steps // options.turn)}"
        )
    status = 0
    header = compiler_versions() if options.what == "compile" else machine()
    print_header(header)
    for content in MEASURE[options.what](options):
        whole = {"command": ["benchmark.py", *argv], "machine": header, **content}
        write_output("--json", options.json, json.dumps(whole, indent=2) + "\n")
        failed = [row for row in content["rows"] if row.get("result", "ok") != "ok"]
        status = 1 if failed or content.get("failed") else 0
    return status


def configs(options: BenchmarkConfig) -> list[Config]:
    """One configuration for each precision and batch size asked for."""
    base = load_config(options.config) if options.config else Config()
    arch = options.model.arch or base.model.arch
    find_architecture(arch)
    data = replace(
        base.data,
        root=os.path.expanduser(options.data.root),
        image_size=options.data.image_size or base.data.image_size,
        workers=options.data.workers,
        on_bad_image=options.data.on_bad_image,
    )
    base = replace(base, model=replace(base.model, arch=arch), data=data)
    return [
        replace(
            base,
            precision=precision,
            batch_size=batch,
            optimizer_batch_size=-1,
            compilation_cache=options.compilation_cache,
        )
        for precision in options.precisions or (base.precision,)
        for batch in options.batch_sizes
    ]


# Each of these prints its tables and yields what it has measured so far, for the JSON file.


def measure_programs(options: BenchmarkConfig) -> Iterator[dict[str, Any]]:
    """Training or inference for each precision, batch size and number of devices."""
    work: Work = "train" if options.what == "train" else "infer"
    effort = Effort(
        rounds=options.steps // options.turn,
        steps=options.turn,
        warmup=options.warmup,
        against_torch=bool(options.against),
    )
    tasks = product(configs(options), options.devices if work == "train" else (1,))
    rows = (measure(Task("jax", work, config, n), effort)[0] for config, n in tasks)
    yield {"rows": print_table(rows)}


def measure_data(options: BenchmarkConfig) -> Iterator[dict[str, Any]]:
    """Images per second that each input backend decodes and crops for training."""
    from benchmarks.input import measure_backends, needs, write_photographs

    data = configs(options)[0].data
    with TemporaryDirectory() as photographs:
        if not data.root:
            write_photographs(Path(photographs))
            data = replace(data, root=photographs)
        if not options.decode:
            yield {"rows": print_table(measure_listing(options, data))}
            return
        if options.processes:
            yield {"rows": print_table(measure_sharing(options, data))}
            return
        rows = print_table(
            measure_backends(
                data,
                batch_size=max(options.batch_sizes),
                warmup=options.warmup,
                steps=options.steps,
                with_torch=bool(options.against),
            )
        )
        needed = []
        if options.rate:
            needed = print_table(needs(rows, data, options.devices, options.rate))
    yield {"rows": rows, "needs": needed}


def measure_sharing(options: BenchmarkConfig, data: DataConfig) -> Iterator[dict[str, Any]]:
    """Several processes of this host, each with its part of the devices."""
    from benchmarks.core_sharing import measure_processes
    from benchmarks.input import with_classes

    config = replace(configs(options)[0], batch_size=max(options.batch_sizes))
    config, devices = with_classes(config, data), max(options.devices)
    for processes in options.processes:
        if devices % processes:
            raise UserError(
                f"{devices} devices do not divide over {processes} processes: give --devices "
                f"{processes}, or other --processes"
            )
        effort = {"warmup": options.warmup, "steps": options.steps}
        yield measure_processes(config, processes, devices, **effort)


def measure_listing(options: BenchmarkConfig, data: DataConfig) -> Iterator[dict[str, Any]]:
    """Listing the files and feeding DALI, without decoding."""
    from benchmarks.feed import many_files, measure_feed
    from benchmarks.input import with_classes

    config = replace(configs(options)[0], batch_size=max(options.batch_sizes))
    if not options.files:
        yield from measure_feed(with_classes(config, data), options.steps)
    for number in options.files:
        with many_files(number) as root:
            there = replace(data, root=str(root))
            yield from measure_feed(with_classes(config, there), options.steps)


def measure_gpu(options: BenchmarkConfig) -> Iterator[dict[str, Any]]:
    """Training, inference and the tests that need a GPU."""
    return map(asdict, run_suite(configs(options)[0], minutes=options.minutes))


def compile_programs(options: BenchmarkConfig) -> Iterator[dict[str, Any]]:
    """Whether each program compiles for each GPU, and how much memory traffic it causes."""
    outcomes = compile_jobs(jobs(options), hlo_folder=options.hlo, debug=options.debug)
    kinds = [row for outcome in outcomes for row in outcome.kind_rows()]
    if options.kinds:
        print_table(kinds)
    yield {"rows": [outcome.row() for outcome in outcomes], "kinds": kinds}


MEASURE: dict[str, Callable[[BenchmarkConfig], Iterator[dict[str, Any]]]] = {
    "train": measure_programs,
    "infer": measure_programs,
    "data": measure_data,
    "gpu": measure_gpu,
    "compile": compile_programs,
}


def jobs(options: BenchmarkConfig) -> list[Job]:
    """Every combination of the options. The passes apply only to training steps."""
    found = []
    for gpu, config, devices in product(options.gpu, configs(options), options.devices):
        for program in options.programs:
            for passes in options.passes if program == "train" else (1,):
                images = config.batch_size * devices * passes
                config = replace(config, optimizer_batch_size=images)
                found.append(Job(gpu, program, config, devices))
    return found


def machine() -> dict[str, Any]:
    """The machine and the versions. The rows name the GPU, which only their processes know."""
    packages = ("jax", "jaxlib", "torch", "nvidia-dali-cuda120")
    versions = {name: installed_version(name) or "-" for name in packages}
    return {"cpu": platform.processor() or "-", "cores": len(os.sched_getaffinity(0)), **versions}


if __name__ == "__main__":
    run(main)
