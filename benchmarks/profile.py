"""Measures a step's time on the device, by kind of kernel."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import jax

from benchmarks.table import Row

_KINDS = {
    "communication": r"all-reduce|all-gather|reduce-scatter|nccl",
    "convolutions": r"conv(?!ert)|cudnn",
    "matrix products": r"gemm|dot|cublas|matmul",
    "reductions": r"reduce",
    "copies and transposes": r"copy|transpose|memcpy|memset",
    "elementwise": r"fusion|loop|wrapped|broadcast|select|add|multiply|convert",
}
"""Patterns of XLA's operation names, by kind; the first match counts."""


def profile_steps(
    dispatch: Callable[[], None], wait: Callable[[], None], steps: int
) -> dict[str, float]:
    """Milliseconds per step by XLA operation, largest first; names lose their trailing numbers.

    On a GPU, the events of its streams count; on a CPU, the events of XLA's threads, which overlap.
    """
    with TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                dispatch()
            wait()
        (file,) = Path(folder).rglob("*.xplane.pb")
        planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    gpus = [plane for plane in planes if "/device:GPU" in plane.name]
    nanoseconds: Counter[str] = Counter()
    for plane in gpus or planes:
        for line in plane.lines:
            for event in line.events:
                if operation := dict(event.stats).get("hlo_op"):
                    nanoseconds[re.sub(r"[.\d]+$", "", str(operation))] += event.duration_ns
    return {name: ns / steps / 1e6 for name, ns in nanoseconds.most_common()}


def kind_rows(operations: Mapping[str, float]) -> list[Row]:
    """The milliseconds by kind of operation, largest first.

    Args:
      operations: as from `profile_steps`, largest first.
    """
    total: dict[str, float] = {}
    largest: dict[str, str] = {}
    for name, ms in operations.items():
        kind = next((k for k, pattern in _KINDS.items() if re.search(pattern, name)), "other")
        total[kind] = total.get(kind, 0.0) + ms
        largest.setdefault(kind, name)
    whole = sum(total.values())
    return [
        {"kind": kind, "ms": ms, "share": ms / whole, "largest": largest[kind]}
        for kind, ms in sorted(total.items(), key=lambda item: -item[1])
    ]
