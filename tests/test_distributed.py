"""Several real processes on this machine: one training run, stopped together, never hanging."""

import json
import signal
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.programs import (
    COMPILE_FAST,
    STEPS,
    TWO,
    arrays,
    event,
    finish,
    on_two_devices,
    read_until,
    records,
    simulated,
    start,
    tiny,
)

READ = """
import json, sys
from seresnext_jax.data.sampler import Sampler
from seresnext_jax.mesh import initialize_distributed, local_columns, make_mesh
port, count, rank = map(int, sys.argv[1:])
initialize_distributed(coordinator=f"127.0.0.1:{port}", num_processes=count, process_id=rank)
columns = local_columns(make_mesh(), 8)
train = Sampler("train", 50, 3, 2, 8, columns)
val = Sampler("val", 50, 3, 1, 8, columns)
steps = [rows for rows, _ in zip(train.rows(0), range(train.num_steps))]
seen = {
    "columns": [columns.start, columns.stop],
    "train": [int(i) for rows in steps for i in rows.index],
    "val": [int(i) for rows in val.rows(0) for i in rows.index[rows.mask]],
}
print(json.dumps(seen))
"""
"""One process of a run: which of 50 images it reads in an epoch."""


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_two(
    workspace: Path, *more: str, program: tuple[str, ...] = ("train.py",)
) -> list["subprocess.Popen[str]"]:
    """Start a tiny run as two processes of one device each."""
    _, *options = tiny(workspace, *TWO, *more)
    options += ["--distributed.coordinator", f"127.0.0.1:{free_port()}"]
    options += ["--distributed.num-processes", "2", "--distributed.process-id"]
    return [start([*program, *options, str(rank)], env=COMPILE_FAST) for rank in range(2)]


@pytest.mark.parametrize(("processes", "devices"), [(2, 2), (4, 1)])
def test_every_image_is_read_once(processes: int, devices: int) -> None:
    port = str(free_port())
    ranks = [
        start(["-c", READ, port, str(processes), str(rank)], env=simulated(devices))
        for rank in range(processes)
    ]
    results = [finish(rank) for rank in ranks]
    assert [result.returncode for result in results] == [0] * processes, results[0].stderr
    seen = [json.loads(result.stdout.splitlines()[-1]) for result in results]
    width = 8 // processes
    assert [s["columns"] for s in seen] == [[r * width, (r + 1) * width] for r in range(processes)]
    assert sorted(i for s in seen for i in s["val"]) == list(range(50))
    train = [i for s in seen for i in s["train"]]
    assert len(set(train)) == len(train) == 48  # three steps of two passes of eight


def test_two_processes_stop_together_and_equal_one(tmp_path: Path) -> None:
    """SIGTERM to one of them; continued, they end where one process with two devices does."""
    workspace = tmp_path / "run"
    first, second = start_two(workspace)
    seen = read_until(first, f"step 2/{STEPS}")
    second.send_signal(signal.SIGTERM)
    stopped = [finish(first, seen), finish(second)]
    assert [result.returncode for result in stopped] == [75, 75], stopped[0].stderr
    assert "stopped; continue with" in stopped[0].stdout
    assert "step" not in stopped[1].stdout  # one process speaks

    finished = [finish(process) for process in start_two(workspace, "--resume", "auto")]
    assert [result.returncode for result in finished] == [0, 0], finished[0].stderr
    state, expected = arrays(workspace), arrays(on_two_devices())
    assert state.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(state[name], array, rtol=1e-5, atol=1e-6, err_msg=name)
    for one, other in zip(records(workspace), records(on_two_devices()), strict=True):
        assert one.get("step") == other.get("step")
        assert one["metrics"].get("val.count") == other["metrics"].get("val.count")
    mine, theirs = (
        [record["metrics"]["train.loss"] for record in event(folder, "train")]
        for folder in (workspace, on_two_devices())
    )
    np.testing.assert_allclose(mine, theirs, rtol=1e-5)


IMPATIENT = """
from seresnext_jax import mesh
mesh.HEARTBEAT_TIMEOUT = 5
import train
train.run(train.main)
"""


@pytest.mark.parametrize("dead", [0, 1])
def test_others_stop_when_a_process_dies(dead: int, tmp_path: Path) -> None:
    """With a signal or an error, not as if they were done or told to stop."""
    processes = start_two(tmp_path / "run", "--epochs", "500", program=("-c", IMPATIENT))
    read_until(processes[0], f"step 2/{STEPS}")
    processes[dead].kill()
    finish(processes[dead])
    other = processes[1 - dead]
    try:
        other.communicate(timeout=60)
    finally:
        other.kill()
    assert other.returncode not in (0, 2, 75)


ALONE = """
import sys
from jax.experimental import multihost_utils
from seresnext_jax import mesh
from seresnext_jax.cli import run
from seresnext_jax.errors import UserError
mesh.SHUTDOWN_TIMEOUT = 5
def main(argv):
    port, rank = map(int, argv)
    mesh.initialize_distributed(
        coordinator=f"127.0.0.1:{port}", num_processes=2, process_id=rank
    )
    multihost_utils.sync_global_devices("together")
    if rank == 1:
        raise UserError("an image of mine is broken")
    multihost_utils.sync_global_devices("alone")
run(main)
"""


def test_others_stop_when_one_has_an_error() -> None:
    """It says its line, and nobody waits for it for ever."""
    port = str(free_port())
    ranks = [start(["-c", ALONE, port, str(rank)]) for rank in range(2)]
    try:
        errors = [rank.communicate(timeout=60)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert "error: an image of mine is broken\n" in errors[1]
    assert 0 not in [rank.returncode for rank in ranks]
