"""The programs as real processes, on tiny runs of the handwritten digits.

They are compiled without optimisation, which takes half as long.
"""

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from seresnext_jax.checkpoint.store import find_checkpoint, read_arrays
from seresnext_jax.data.digits import write_digits

ROOT = Path(__file__).parent.parent
DEADLINE = 240.0
"""Seconds after which a process that does not end is a failure."""
STEPS = 6
"""Steps of a tiny epoch."""
EPOCHS = 3
DIGITS, ONE_BLOCK = "configs/digits.py", "tests/one_block.py"
"""Config files for a tiny run: with the demo's network, and with one that compiles in seconds."""
_ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
}
_TIMED = ("ips", "time", "latency")
"""Parts of the names of metrics that depend on the clock."""


@cache
def shared() -> Path:
    """A folder of this test session, with the digits and a compilation cache."""
    folder = Path(tempfile.mkdtemp(prefix="seresnext-jax-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_digits(folder / "digits")
    return folder


def tiny(workspace: Path, *more: str, config: str = ONE_BLOCK) -> list[str]:
    """The command line of a run of `EPOCHS` epochs of `STEPS` steps; later options win."""
    return [
        *("train.py", "--config", config, "--workspace", str(workspace)),
        *("--data.root", str(shared() / "digits"), "--compilation-cache", str(shared() / "cache")),
        *("--epochs", str(EPOCHS), "--optim.warmup", "1"),
        *("--prof", str(STEPS), "--print-freq", "2", *more),
    ]


TWO = ("--batch-size", "16", "--checkpoint.every-steps", "2", "--checkpoint.keep", "-1")
"""The options of a tiny run on two devices."""


@cache
def on_two_devices() -> Path:
    """The workspace of an uninterrupted run on two simulated devices."""
    workspace = shared() / "two-devices"
    done(tiny(workspace, *TWO), env=simulated(2))
    return workspace


PAUSING = """
import sys, threading
import train
from seresnext_jax.report.console import Console
from seresnext_jax.run import stop
text, signalled = sys.argv.pop(1), threading.Event()
note, announce = Console.note, stop._announce
def pause(self, line):
    note(self, line)
    assert text not in line or signalled.wait(240)
def announce_and_go_on(name):
    announce(name)
    signalled.set()
Console.note, stop._announce = pause, announce_and_go_on
train.run(train.main)
"""


def pausing(text: str) -> tuple[str, ...]:
    """Instead of ``train.py``: it waits for a signal after it has printed a line with `text`.

    So the signal comes at that moment, however busy the machine is.
    """
    return ("-c", PAUSING, text)


def simulated(devices: int) -> dict[str, str]:
    """The environment of a program with so many devices."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    return {"XLA_FLAGS": f"{_ENVIRONMENT['XLA_FLAGS']} {flag}"}


def start(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    preexec: Callable[[], None] | None = None,
) -> "subprocess.Popen[str]":
    """Start a program of this repository; its output is not buffered."""
    plain = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**plain, **_ENVIRONMENT, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=preexec,
    )


def finish(process: "subprocess.Popen[str]", seen: str = "") -> "subprocess.CompletedProcess[str]":
    """Wait for a program's end; `seen` is what was read of its output already."""
    try:
        out, err = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, seen + out, err)


def run(command: Sequence[str], **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a program of this repository to its end."""
    return finish(start(command, **options))


def done(command: Sequence[str], **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a program that must succeed."""
    result = run(command, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def read_until(process: "subprocess.Popen[str]", text: str) -> str:
    """Read a program's output until a line that holds `text`; returns what was read."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    _, err = process.communicate()
    raise AssertionError(f"{text!r} did not appear in:\n{''.join(lines)}{err}")


def wait_for(process: "subprocess.Popen[str]", folder: Path, pattern: str) -> None:
    """Return as soon as something in `folder` has a name like `pattern`."""
    deadline = time.monotonic() + DEADLINE
    while not any(folder.glob(pattern)):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"{folder / pattern} did not appear:\n{out}{err}")
        time.sleep(0.005)


def error_line(result: "subprocess.CompletedProcess[str]") -> str:
    """The one line of an error from outside: status 2, no traceback."""
    assert result.returncode == 2, result.stdout + result.stderr
    lines = result.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    others = [line for line in lines if not line.startswith(("error: ", "warning: "))]
    assert len(errors) == 1 and not others, result.stderr
    return errors[0]


def arrays(workspace: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """Every array of a checkpoint (the newest without `step`), by its path."""
    folder = workspace / "checkpoints" / str(step) if step is not None else workspace
    checkpoint = find_checkpoint(folder)
    assert checkpoint is not None, f"no checkpoint in {folder}"
    tree = (read_arrays(checkpoint, "weights"), read_arrays(checkpoint, "training"))
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree.leaves_with_path(tree)}


def keep_until(workspace: Path, step: int) -> None:
    """Delete the checkpoints after `step`."""
    for newer in (workspace / "checkpoints").iterdir():
        if newer.name.isdigit() and int(newer.name) > step:
            shutil.rmtree(newer)


def same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    """Two states have the same arrays, bit for bit."""
    assert a.keys() == b.keys()
    different = [
        name
        for name in a
        if (a[name].dtype, a[name].shape) != (b[name].dtype, b[name].shape)
        or a[name].tobytes() != b[name].tobytes()
    ]
    assert not different, f"{len(different)} of {len(a)} arrays differ, such as {different[:3]}"


def records(workspace: Path) -> list[dict[str, Any]]:
    """A run's report without the configuration and what the clock decides."""
    found = []
    for line in (workspace / "report.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record.pop("time") and record["event"] == "parameters":
            continue
        metrics = record["metrics"].items()
        kept = {k: v for k, v in metrics if not any(part in k.split(".")[-1] for part in _TIMED)}
        found.append({**record, "metrics": kept})
    return found


def event(workspace: Path, name: str) -> list[dict[str, Any]]:
    """The records of one kind."""
    return [record for record in records(workspace) if record["event"] == name]
