"""The suite of measurements on a GPU, in order of importance, for as long as there is time.

A round is never shortened: when the longest round so far would no longer fit, the next one is left
out and listed. A round that fails is listed, and the suite continues. Within a round JAX and
PyTorch compile at the same time, then take turns.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.measure import Effort, measure
from benchmarks.process import Task, Work
from benchmarks.table import Row, print_table
from seresnext_jax.config import Config, Precision
from seresnext_jax.errors import UserError

ROUNDS: tuple[tuple[Work, Precision, int], ...] = (
    ("train", "fp16", 128),
    ("infer", "fp16", 128),
    ("infer", "fp16", 1),
    ("train", "bf16", 128),
    ("train", "tf32", 128),
    ("infer", "fp16", 256),
    ("infer", "fp16", 8),
    ("infer", "fp16", 32),
    ("train", "fp16", 256),
    ("train", "bf16", 256),
    ("infer", "bf16", 128),
    ("infer", "tf32", 128),
)
"""Work, precision and images per step."""

TRAINING = Effort(
    rounds=4, steps=10, warmup=5, against_torch=True, start_together=True, profile=True
)
INFERENCE = replace(TRAINING, rounds=5, steps=40, warmup=20, profile=False)


@dataclass
class Findings:
    """What was measured so far."""

    rows: list[Row] = field(default_factory=list)
    profiles: list[Row] = field(default_factory=list)
    """The time of a training step by kind of kernel, for each program."""
    failed: list[str] = field(default_factory=list)
    """Rounds that ended with an error, and the GPU tests if one failed."""
    left_out: list[str] = field(default_factory=list)
    """Rounds that were left out for lack of time."""


def run_suite(base: Config, *, minutes: float) -> Iterator[Findings]:
    """Measure and print, round by round; yields the findings so far after each round.

    Args:
      base: the configuration; each round has its own precision and batch size.
      minutes: the time limit, including compilation.
    """
    deadline = time.monotonic() + 60 * minutes
    longest = 0.0
    findings = Findings()
    tested = False
    for work, precision, batch in ROUNDS:
        name = f"{work} {precision} batch {batch}"
        started = time.monotonic()
        if started + longest > deadline:
            findings.left_out.append(name)
            continue
        config = replace(base, precision=precision, batch_size=batch, optimizer_batch_size=-1)
        try:
            effort = TRAINING if work == "train" else INFERENCE
            row, profile = measure(Task("jax", work, config), effort)
        except UserError as error:
            print(f"{name}: {error}", flush=True)
            findings.failed.append(name)
        else:
            findings.rows += print_table([row])
            findings.profiles += [{"program": name, **line} for line in print_table(profile)]
            if not tested and row["device"] != "cpu":
                tested = True
                if not gpu_tests_pass():
                    findings.failed.append("the tests that need a GPU")
        longest = max(longest, time.monotonic() - started)
        yield findings
    for name in findings.left_out:
        print(f"left out, {minutes:g} minutes are over: {name}")
    yield findings


def gpu_tests_pass() -> bool:
    """Run the tests that need a GPU, all in one file; returns whether they pass."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/data/test_dali.py"]
    return subprocess.run(command, cwd=Path(__file__).parent.parent).returncode == 0
