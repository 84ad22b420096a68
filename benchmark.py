"""Measure training, inference and the input pipeline; beside PyTorch with ``--against torch``.

    python benchmark.py train --batch-sizes 8 --against torch
    python benchmark.py train --batch-sizes 8 --data-root /imagenet
    python benchmark.py infer --batch-sizes 1 8 --against torch
    python benchmark.py data --against torch
    python benchmark.py compile --gpu h100 --precisions fp16 tf32 --batch-sizes 128

Programs that are compared run in turn, step by step, in one process. Warm-up and compilation are
not in the figures; compilation has its own. `compile` needs no GPU (docs/gpu-compile.md).
"""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal

import jax
import tyro

from benchmarks.flops import PEAK_TFLOPS, forward_macs
from benchmarks.gpu.compile import compile_and_print, compiler_versions
from benchmarks.gpu.job import Job, ProgramName
from benchmarks.gpu.targets import GpuName
from benchmarks.programs import Program, jax_infer, jax_train, torch_infer, torch_train
from benchmarks.table import Row, print_header, print_table
from benchmarks.timing import Timing, interleave
from seresnext_jax.cli import load_config, parse, run
from seresnext_jax.config import Config, DataConfig, Precision
from seresnext_jax.errors import UserError
from seresnext_jax.model import ARCHITECTURES
from seresnext_jax.runtime import keep_freed_memory, use_compilation_cache


@dataclass(frozen=True)
class BenchmarkConfig:
    """The options of benchmark.py."""

    what: tyro.conf.Positional[Literal["train", "infer", "data", "compile"]] = "train"
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
    warmup: int = 2
    """Steps before them."""
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
    if options.steps < 1 or options.warmup < 0 or min(counts) < 1:
        raise UserError("--steps, --batch-sizes, --devices and --passes take numbers from 1 on")
    content = compile_steps(options) if options.what == "compile" else measure(options)
    if options.json:
        content = {"command": ["benchmark.py", *argv], **content}
        Path(options.json).write_text(json.dumps(content, indent=2) + "\n")
    return 1 if any(row.get("result", "ok") != "ok" for row in content["rows"]) else 0


def compile_steps(options: BenchmarkConfig) -> dict[str, Any]:
    """Compile each program for each GPU; returns and prints what came of it."""
    hlo_folder = Path(options.hlo) if options.hlo else None
    outcomes = compile_and_print(jobs(options), hlo_folder=hlo_folder, debug=options.debug)
    kinds = [row for outcome in outcomes for row in outcome.kind_rows()]
    if options.kinds:
        print_table(kinds)
    rows = [outcome.row() for outcome in outcomes]
    return {"machine": compiler_versions(), "rows": rows, "kinds": kinds}


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


def measure(options: BenchmarkConfig) -> dict[str, Any]:
    """Run what the options name on this machine; returns and prints what was measured."""
    keep_freed_memory()
    use_compilation_cache(options.compilation_cache)
    if max(options.devices) > jax.device_count():
        raise UserError(
            f"--devices {max(options.devices)} but there are {jax.device_count()}: on a CPU set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={max(options.devices)}"
        )
    header = machine()
    print_header(header)
    measures = {"train": measure_train, "infer": measure_infer, "data": measure_data}
    return {"machine": header, "rows": print_table(measures[options.what](options))}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    device = jax.devices()[0]
    versions = {}
    for name in ("jax", "jaxlib", "torch", "nvidia-dali-cuda120"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "-"
    kind = device.device_kind if device.platform != "cpu" else platform.processor() or "cpu"
    return {"device": kind, "cores": len(os.sched_getaffinity(0)), **versions}


def configs(options: BenchmarkConfig) -> list[Config]:
    """One configuration for each precision and batch size asked for."""
    base = load_config(options.config) if options.config else Config()
    if options.arch:
        base = replace(base, model=replace(base.model, arch=options.arch))
    if options.image_size:
        base = replace(base, data=replace(base.data, image_size=options.image_size))
    data = replace(base.data, root=options.data_root, workers=options.workers)
    base = replace(base, data=data)
    if base.model.arch not in ARCHITECTURES:
        raise UserError(f"--arch {base.model.arch} is unknown: {', '.join(ARCHITECTURES)}")
    return [
        replace(base, precision=precision, batch_size=batch, optimizer_batch_size=-1)
        for precision in options.precisions or (base.precision,)
        for batch in options.batch_sizes
    ]


def gigaflops(config: Config, *, training: bool) -> float:
    """Arithmetic of one image, 2 operations per multiply-add, a training step as 3 forwards."""
    macs = forward_macs(
        ARCHITECTURES[config.model.arch],
        num_classes=config.model.num_classes,
        image_size=config.data.image_size,
    )
    return 2e-9 * macs * (3 if training else 1)


def rates(config: Config, program: Program, timing: Timing, *, training: bool) -> Row:
    """Arithmetic and memory traffic per second and device, and what share of the peak it is."""
    per_call = config.batch_size * gigaflops(config, training=training) / 1e3
    row: Row = {"TFLOP/s": per_call / timing.median}
    if peak := PEAK_TFLOPS.get(jax.devices()[0].device_kind, {}).get(config.precision):
        row["MFU"] = row["TFLOP/s"] / peak
    if program.bytes_accessed:
        row["GB/s"] = program.bytes_accessed / timing.median / 1e9
    return row


def measure_train(options: BenchmarkConfig) -> list[Row]:
    """Training throughput for each precision, batch size and number of devices."""
    rows = []
    for config in configs(options):
        for devices in options.devices:
            program = jax_train(config, devices=devices)
            programs = {"jax": program}
            if options.against and devices == 1:
                programs["torch"] = torch_train(config)
            timings = interleave(
                {name: p.work for name, p in programs.items()},
                warmup=options.warmup,
                steps=options.steps,
            )
            images = config.batch_size * devices
            row: Row = {
                "precision": config.precision,
                "batch": config.batch_size,
                "devices": devices,
                "img/s": images / timings["jax"].median,
                **rates(config, program, timings["jax"], training=True),
                "compile s": program.compile_seconds,
                "temporary MiB": (program.memory_bytes or 0) / 2**20,
            }
            if options.data_root:
                waits = program.waits[-options.steps :]
                row |= waiting(timings["jax"], waits, images)
            rows.append(row | against(timings, images))
    return rows


def waiting(timing: Timing, waits: Sequence[float], images: int) -> Row:
    """Throughput without the time that steps waited for images, and the share of that time."""
    computing = Timing(tuple(s - w for s, w in zip(timing.seconds, waits, strict=True)))
    return {
        "compute img/s": images / computing.median,
        "waiting": sum(waits) / sum(timing.seconds),
    }


def measure_infer(options: BenchmarkConfig) -> list[Row]:
    """Inference throughput and latency for each precision and batch size."""
    rows = []
    for config in configs(options):
        programs = {"jax": jax_infer(config)}
        if options.against:
            programs["torch"] = torch_infer(config)
        timings = interleave(
            {name: p.work for name, p in programs.items()},
            warmup=options.warmup,
            steps=options.steps,
        )
        ours = timings["jax"]
        row: Row = {
            "precision": config.precision,
            "batch": config.batch_size,
            "img/s": config.batch_size / ours.median,
            "avg ms": 1e3 * ours.mean,
            **{f"p{p} ms": 1e3 * ours.at(p) for p in (50, 90, 95, 99)},
            **rates(config, programs["jax"], ours, training=False),
            "compile s": programs["jax"].compile_seconds,
        }
        rows.append(row | against(timings, config.batch_size))
    return rows


def against(timings: dict[str, Timing], images: int) -> Row:
    """PyTorch's throughput, where it was measured, and how many times as fast JAX is.

    That is the median over the pairs of steps that ran one after the other, so that a machine whose
    speed drifts is the same for both.
    """
    if "torch" not in timings:
        return {}
    ours, theirs = timings["jax"], timings["torch"]
    ratio = median(t / j for j, t in zip(ours.seconds, theirs.seconds, strict=True))
    return {"torch img/s": images / theirs.median, "jax / torch": ratio}


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
