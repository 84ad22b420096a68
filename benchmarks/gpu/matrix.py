"""Compile the project's programs for absent GPUs, in the combinations of a table.

    python -m benchmarks.gpu.matrix            # all of them; half an hour on two cores
    python -m benchmarks.gpu.matrix --short    # what a change is likely to break; 5 minutes

The tables below contain every recipe, in one of its two lengths, on its own machine. They also
contain every architecture, precision, GPU, number of devices and number of forward passes, but not
all combinations of them.
"""

from dataclasses import dataclass

from benchmarks.gpu.compile import ROOT, Job, ProgramName, compile_jobs, compiler_versions
from benchmarks.gpu.targets import GpuName
from benchmarks.table import print_header
from seresnext_jax.cli import parse, run
from seresnext_jax.config import Config, ModelConfig, Precision
from seresnext_jax.config_files import load_config

FULL, TINY = "se-resnext101-32x4d", "se-resnext-tiny"
TRAIN: tuple[ProgramName, ...] = ("train",)
BOTH: tuple[ProgramName, ...] = ("train", "eval")


def combination(
    gpu: GpuName,
    arch: str,
    precision: Precision,
    batch: int,
    devices: int,
    passes: int,
    programs: tuple[ProgramName, ...],
) -> list[Job]:
    """The jobs for the given programs of one architecture with the default options."""
    config = Config(
        model=ModelConfig(arch=arch),
        precision=precision,
        batch_size=batch,
        optimizer_batch_size=batch * devices * passes,
    )
    return [Job(gpu, program, config, devices) for program in programs]


def recipe(gpu: GpuName, name: str) -> list[Job]:
    """The training step of a file in configs/, on eight devices as on the original's machine."""
    return [Job(gpu, "train", load_config(str(ROOT / "configs" / f"{name}.py")), 8)]


def short() -> list[Job]:
    """The full network's training step where it matters most, and a small network for the rest."""
    return [
        # GPU, architecture, precision, batch, devices, passes, programs
        *combination("h100", FULL, "fp16", 128, 1, 1, TRAIN),
        *combination("h100", FULL, "tf32", 128, 1, 1, TRAIN),
        *combination("a100", TINY, "bf16", 32, 8, 2, TRAIN),
        *combination("t4", TINY, "fp32", 32, 1, 1, BOTH),
        *combination("v100", TINY, "fp16", 32, 8, 1, TRAIN),
    ]


def everything() -> list[Job]:
    """Every recipe and architecture."""
    return [
        *recipe("a100", "dgxa100_amp_90e"),
        *recipe("a100", "dgxa100_tf32_250e"),
        *recipe("v100", "dgx1v_amp_250e"),
        *recipe("v100", "dgx1v_fp32_90e"),
        *recipe("t4", "t4_amp_90e"),
        *recipe("t4", "t4_fp32_250e"),
        # GPU, architecture, precision, batch, devices, passes, programs
        *combination("h100", FULL, "fp16", 128, 1, 1, BOTH),
        *combination("h100", FULL, "bf16", 256, 8, 2, TRAIN),
        *combination("h100", FULL, "tf32", 128, 1, 2, TRAIN),
        *combination("h100", "resnet18", "fp32", 256, 8, 1, BOTH),
        *combination("h100", "resnet50", "fp16", 256, 8, 1, TRAIN),
        *combination("h100", "resnext50-32x4d", "tf32", 128, 8, 1, BOTH),
        *combination("h100", "resnext101-32x8d", "bf16", 64, 1, 2, TRAIN),
        *combination("h100", TINY, "fp16", 256, 1, 2, BOTH),
        *combination("a100", "resnet34", "bf16", 256, 1, 2, BOTH),
        *combination("a100", "resnet101", "tf32", 128, 1, 1, TRAIN),
        *combination("a100", "resnext101-32x8d-basic", "fp16", 64, 8, 1, TRAIN),
        *combination("a100", TINY, "fp32", 256, 8, 2, TRAIN),
        *combination("v100", "resnet152", "fp32", 64, 1, 1, TRAIN),
        *combination("t4", "resnext101-32x4d", "fp16", 64, 1, 2, TRAIN),
    ]


@dataclass(frozen=True)
class MatrixConfig:
    """The options of matrix.py."""

    short: bool = False
    """Only the short table."""
    debug: bool = False
    """Show what the compiler logged of a program that failed."""


def main(argv: list[str]) -> int:
    """Run the program; returns its exit status: 1 if a program did not compile."""
    options = parse(MatrixConfig(), argv, program="matrix", description=__doc__ or "")
    print_header(compiler_versions())
    outcomes = compile_jobs(short() if options.short else everything(), debug=options.debug)
    return 1 if any(outcome.error for outcome in outcomes) else 0


if __name__ == "__main__":
    run(main)
