"""Throughput and latency of a program, alone or beside PyTorch's, as rows of a table."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import median

from benchmarks.flops import PEAK_TFLOPS, forward_macs
from benchmarks.process import Facts, Process, Task
from benchmarks.profile import kind_rows
from benchmarks.table import Row
from benchmarks.timing import Timing, interleave
from seresnext_jax.config import Config
from seresnext_jax.model.network import ARCHITECTURES

PROFILED_STEPS = 3


@dataclass(frozen=True)
class Effort:
    """How much is run for a figure."""

    rounds: int
    """Turns of each program."""
    steps: int
    """Steps of a turn. Training waits once at its end, inference after each step."""
    warmup: int
    """Uncounted steps before them."""
    against_torch: bool
    """Whether PyTorch runs in turn with JAX."""
    start_together: bool = False
    """Let both compile at the same time: quicker, but each can disturb the other's compilation time
    and its choice of algorithms."""
    profile: bool = False
    """Also run a few steps under JAX's profiler."""


def measure(task: Task, effort: Effort) -> tuple[Row, list[Row]]:
    """A row about a JAX program, and the rows of its profile, empty if it was not profiled.

    Raises:
      UserError: a program could not be made ready.
    """
    tasks = {"jax": task}
    if effort.against_torch and task.devices == 1:
        tasks["torch"] = replace(task, framework="torch")
    with ExitStack() as stack:
        processes: dict[str, Process] = {}
        for name, one in tasks.items():
            process = Process(one, share_gpu=len(tasks) > 1)
            processes[name] = stack.enter_context(process)
            if not effort.start_together:
                processes[name].facts()
        for process in processes.values():
            process.time_each(effort.warmup)
        timed = {
            name: process.time_together if task.work == "train" else process.time_each
            for name, process in processes.items()
        }
        timings = interleave(timed, rounds=effort.rounds, steps=effort.steps)
        ours = processes["jax"]
        row = _row(task, ours.facts(), timings["jax"])
        if task.config.data.root and task.work == "train":
            waits = ours.data_waits(effort.rounds * effort.steps)
            row |= waiting(timings["jax"], waits, images=images_per_step(task))
        row |= against(timings, images_per_step(task))
        return row, kind_rows(ours.profile(PROFILED_STEPS)) if effort.profile else []


def images_per_step(task: Task) -> int:
    """Images of a step on all devices."""
    return task.config.batch_size * task.devices


def _row(task: Task, facts: Facts, timing: Timing) -> Row:
    row: Row = {
        "work": task.work,
        "device": facts.device,
        "precision": task.config.precision,
        "batch": task.config.batch_size,
        "devices": task.devices,
        "img/s": images_per_step(task) / timing.median,
    }
    if task.work == "infer":
        row["avg ms"] = 1e3 * timing.mean
        row |= {f"p{p} ms": 1e3 * timing.at(p) for p in (50, 90, 95, 99)}
    return {
        **row,
        **_rates(task, facts, timing),
        "compile s": facts.compile_seconds,
        "temporary MiB": (facts.memory_bytes or 0) / 2**20,
    }


def _rates(task: Task, facts: Facts, timing: Timing) -> Row:
    """Arithmetic and memory traffic per second and device, and what share of the peak it is."""
    config = task.config
    per_step = config.batch_size * gigaflops(config, training=task.work == "train") / 1e3
    row: Row = {"TFLOP/s": per_step / timing.median}
    peak = PEAK_TFLOPS.get(facts.device, {}).get(config.precision)
    row["MFU"] = row["TFLOP/s"] / peak if peak else None
    if facts.bytes_accessed:
        row["GB/s"] = facts.bytes_accessed / timing.median / 1e9
    return row


def gigaflops(config: Config, *, training: bool) -> float:
    """Arithmetic of one image, 2 operations per multiply-add, a training step as 3 forwards."""
    macs = forward_macs(
        ARCHITECTURES[config.model.arch],
        num_classes=config.model.num_classes,
        image_size=config.data.image_size,
    )
    return 2e-9 * macs * (3 if training else 1)


def waiting(timing: Timing, waits: Sequence[float], images: int) -> Row:
    """Throughput without the time that steps waited for images, and the share of that time.

    Args:
      timing: of turns of as many steps as there are waits for each.
      waits: seconds of each step.
    """
    steps = len(waits) // len(timing.seconds)
    turns = [sum(waits[i : i + steps]) / steps for i in range(0, len(waits), steps)]
    computing = Timing(tuple(s - w for s, w in zip(timing.seconds, turns, strict=True)))
    return {
        "compute img/s": images / computing.median,
        "waiting": sum(turns) / sum(timing.seconds),
    }


def against(timings: dict[str, Timing], images: int) -> Row:
    """PyTorch's throughput, where it was measured, and how many times as fast JAX is.

    That is the median over the pairs of turns that ran one after the other, so that a machine whose
    speed drifts is the same for both.
    """
    if "torch" not in timings:
        return {}
    ours, theirs = timings["jax"], timings["torch"]
    ratio = median(t / j for j, t in zip(ours.seconds, theirs.seconds, strict=True))
    row: Row = {"torch img/s": images / theirs.median}
    return row | {"jax / torch": ratio}
