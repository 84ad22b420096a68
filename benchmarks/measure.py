"""Measures a JAX program's throughput and latency, alone or next to PyTorch, as a table row."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import fmean, median

from benchmarks.flops import PEAK_TFLOPS, forward_macs
from benchmarks.process import Facts, Process, Request, Task
from benchmarks.profile import kind_rows
from benchmarks.table import Row
from seresnext_jax.model.network import ARCHITECTURES
from seresnext_jax.report.meters import percentile

PROFILED_STEPS = 3


@dataclass(frozen=True)
class Effort:
    """How long each program runs, and how it is measured."""

    rounds: int
    """Number of turns of each program."""
    steps: int
    """Steps per turn. Training waits once at the end of a turn, inference after each step."""
    warmup: int
    """Uncounted steps before the first turn."""
    against_torch: bool
    """Whether PyTorch runs too, taking turns with JAX."""
    start_together: bool = False
    """Let both compile at the same time: quicker, but each can disturb the other's compilation time
    and its choice of algorithms."""
    profile: bool = False
    """Also run a few steps under JAX's profiler."""


def measure(task: Task, effort: Effort) -> tuple[Row, list[Row]]:
    """A row about a JAX program, and the rows of its profile (empty if it was not profiled).

    Raises:
      UserError: a program could not be prepared, or its process ended.
    """
    tasks = {"jax": task}
    if effort.against_torch and task.devices == 1:
        tasks["torch"] = replace(task, framework="torch")
    with ExitStack() as stack:
        processes: dict[str, Process] = {}
        for name, one in tasks.items():
            process = processes[name] = Process(one, share_gpu=len(tasks) > 1)
            stack.callback(process.close)
            if not effort.start_together:
                process.facts()
        for process in processes.values():
            process.ask("time_each", effort.warmup)
        seconds: dict[str, list[float]] = {name: [] for name in processes}
        timing: Request = "time_together" if task.work == "train" else "time_each"
        for _ in range(effort.rounds):
            for name, process in processes.items():
                seconds[name] += process.ask(timing, effort.steps)
        ours = processes["jax"]
        row = _row(task, ours.facts(), seconds["jax"])
        images = task.config.batch_size * task.devices
        if task.config.data.root and task.work == "train":
            waits = ours.ask("data_waits", effort.rounds * effort.steps)
            row |= waiting(seconds["jax"], waits, images)
        row |= against(seconds, images)
        return row, kind_rows(ours.ask("profile", PROFILED_STEPS)) if effort.profile else []


def _row(task: Task, facts: Facts, seconds: Sequence[float]) -> Row:
    """One program's row of the table; FLOP/s and GB/s are per device."""
    config, middle = task.config, median(seconds)
    row: Row = {
        "work": task.work,
        "device": facts.device,
        "precision": config.precision,
        "batch": config.batch_size,
        "devices": task.devices,
        "img/s": config.batch_size * task.devices / middle,
    }
    if task.work == "infer":
        row["avg ms"] = 1e3 * fmean(seconds)
        row |= {f"p{p} ms": 1e3 * percentile(seconds, p) for p in (50, 90, 95, 99)}
    macs = config.batch_size * forward_macs(
        ARCHITECTURES[config.model.arch],
        num_classes=config.model.num_classes,
        image_size=config.data.image_size,
    )
    # 2 operations per multiply-add; a training step is about three forward passes.
    row["TFLOP/s"] = 2e-12 * macs * (3 if task.work == "train" else 1) / middle
    peak = PEAK_TFLOPS.get(facts.device, {}).get(config.precision)
    row["MFU"] = row["TFLOP/s"] / peak if peak else None
    if facts.bytes_accessed:
        row["GB/s"] = facts.bytes_accessed / middle / 1e9
    row["compile s"] = facts.compile_seconds
    row["temporary MiB"] = (facts.memory_bytes or 0) / 2**20
    return row


def waiting(seconds: Sequence[float], waits: Sequence[float], images: int) -> Row:
    """Columns: throughput without the time spent waiting for images, and the waiting share.

    Args:
      seconds: average time of a step, for each turn.
      waits: seconds that each step waited; each turn has the same number of steps.
      images: images per step.
    """
    steps = len(waits) // len(seconds)
    turns = [fmean(waits[i : i + steps]) for i in range(0, len(waits), steps)]
    computing = median(s - w for s, w in zip(seconds, turns, strict=True))
    return {"compute img/s": images / computing, "waiting": sum(turns) / sum(seconds)}


def against(seconds: Mapping[str, Sequence[float]], images: int) -> Row:
    """Columns: PyTorch's throughput, and JAX's speed relative to it; {} if only JAX was measured.

    The ratio is the median over pairs of consecutive turns, so that a drift of the machine's speed
    affects both equally.
    """
    if "torch" not in seconds:
        return {}
    ratio = median(t / j for j, t in zip(seconds["jax"], seconds["torch"], strict=True))
    return {"torch img/s": images / median(seconds["torch"]), "jax / torch": ratio}
