"""Everything that is measured on a GPU, in order of importance, for as long as there is time.

Rounds that do not fit any more are named, not shortened. Within a round JAX and PyTorch compile at
the same time and then run in turn.
"""

import subprocess
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.measure import Effort, measure
from benchmarks.process import ROOT, Task, Work
from benchmarks.table import print_table
from seresnext_jax.config import Config, Precision

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
class Clock:
    """The time that is left, and what a round took."""

    deadline: float
    """By `time.monotonic`."""
    longest: float = 0.0
    """Seconds of the longest round up to now."""

    def allows_another(self) -> bool:
        """Whether a round as long as the longest would end in time."""
        return time.monotonic() + self.longest <= self.deadline


def run_suite(base: Config, *, minutes: float, cache: str, against_torch: bool) -> dict[str, Any]:
    """Measure and print; returns the rows, the profiles and the result of the GPU tests.

    Args:
      base: the network and its image size.
      minutes: what may be spent, including compilation.
    """
    clock = Clock(time.monotonic() + 60 * minutes)
    content: dict[str, Any] = {"rows": [], "profiles": [], "left out": [], "gpu tests": "not run"}
    for work, precision, batch in ROUNDS:
        name = f"{work} {precision} batch {batch}"
        if not clock.allows_another():
            content["left out"].append(name)
            continue
        started = time.monotonic()
        config = replace(base, precision=precision, batch_size=batch, optimizer_batch_size=-1)
        effort = replace(TRAINING if work == "train" else INFERENCE, against_torch=against_torch)
        row, profile = measure(Task("jax", work, config, compilation_cache=cache), effort)
        content["rows"] += print_table([row])
        content["profiles"] += [{"program": name, **line} for line in profile]
        print_table(profile)
        clock.longest = max(clock.longest, time.monotonic() - started)
        if content["gpu tests"] == "not run" and row["device"] != "cpu":
            content["gpu tests"] = run_gpu_tests()
            print(f"pytest -m gpu: {content['gpu tests']}", flush=True)
    for name in content["left out"]:
        print(f"left out, {minutes:g} minutes are over: {name}")
    return content


def run_gpu_tests() -> str:
    """The last line of what pytest prints about the tests that need a GPU."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = done.stdout.strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"
