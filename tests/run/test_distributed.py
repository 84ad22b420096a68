"""Several real processes on this machine: one training run, stopped together, never hanging."""

import json
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seresnext_jax.processes.fail import EXIT_OTHERS_LOST
from tests.programs import (
    EPOCHS,
    STEPS,
    TWO,
    arrays,
    done,
    error_line,
    event,
    finish,
    keep_until,
    on_two_devices,
    pausing,
    read_until,
    records,
    same_bits,
    shared,
    simulated,
    start,
    tiny,
)

TRAIN = """
import json, sys
import flax.linen as nn, jax, numpy as np
from pathlib import Path
from seresnext_jax.training.optimizer import make_optimizer
from seresnext_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from seresnext_jax.data.open import open_train, open_val
from seresnext_jax.data.reader import ImageReader
from seresnext_jax.training.evaluate import evaluate
from seresnext_jax.model.layers import BatchNorm
from seresnext_jax.mesh import make_mesh, replicate
from seresnext_jax.training.precision import POLICIES, init_loss_scale
from seresnext_jax.processes.join import initialize_distributed
from seresnext_jax.training.state import create_train_state
from seresnext_jax.training.eval_step import make_eval_step
from seresnext_jax.training.step import make_train_step
root, port, count, rank = sys.argv[1], *map(int, sys.argv[2:])
initialize_distributed(
    coordinator=f"127.0.0.1:{port}", num_processes=count, process_id=rank
)
mesh = make_mesh()
read = {"train": [], "val": []}
image = ImageReader.image
def recording(self, index, *draws):
    read["train" if draws else "val"].append(index)
    return image(self, index, *draws)
ImageReader.image = recording
data = DataConfig(root, "folder", 16, 0, on_bad_image="skip", workers=1)
config = Config(model=ModelConfig(num_classes=2), data=data, batch_size=8 // mesh.size,
                optimizer_batch_size=16, seed=3, topk=2, label_smoothing=0.0)
class Net(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = BatchNorm(2, name="bn")(x, train=train)
        return nn.Dense(2, name="fc")(x.reshape(x.shape[0], -1))
net = Net()
state = replicate(mesh, create_train_state(config,
    net.init(jax.random.key(0), np.zeros((2, 16, 16, 3), np.float32), train=False)))
train = open_train(config, mesh)
val = open_val(config, mesh, num_classes=2)
step = make_train_step(net.apply, config, mesh)
losses = []
for _, batch in zip(range(train.num_steps), train.batches(0)):
    state, metrics = step(state, batch, np.float32(0.01))
    losses.append(float(metrics["loss"]))
seen = sorted(read["train"][: train.num_steps * 16 // count])
check = make_eval_step(net.apply, config, mesh)
result = evaluate(check, state.variables, val, topk=2)
train.close(), val.close()
print(json.dumps({
    "train": seen, "val": read["val"], "losses": losses,
    "bad": val.bad_files, "count": result["count"], "top1": result["top1"],
    "kernel": np.asarray(state.params["fc"]["kernel"]).ravel().tolist(),
}))
"""
"""One process of a run with the real loader and steps and a network that compiles in no time."""


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def two_digits(folder: Path) -> Path:
    """25 images of each of two digits for training, and for validation, where one is no image."""
    for split in ("train", "val"):
        for digit in ("0", "1"):
            (folder / split / digit).mkdir(parents=True)
            for path in sorted((shared() / "digits" / split / digit).iterdir())[:25]:
                shutil.copy(path, folder / split / digit)
    min((folder / "val/0").iterdir()).write_bytes(b"not an image")
    return folder


def train_together(data: Path, processes: int, devices: int) -> list[dict[str, Any]]:
    """What each process of `TRAIN` prints."""
    command = ["-c", TRAIN, str(data), str(free_port()), str(processes)]
    ranks = [start([*command, str(rank)], env=simulated(devices)) for rank in range(processes)]
    results = [finish(rank) for rank in ranks]
    assert [r.returncode for r in results] == [0] * processes, [r.stderr for r in results]
    return [json.loads(result.stdout.splitlines()[-1]) for result in results]


def test_processes_equal_one_and_read_every_image_once(tmp_path: Path) -> None:
    """Two with two devices and four with one, against one with four; one image is broken."""
    data = two_digits(tmp_path)
    images = sum(1 for _ in data.glob("val/*/*"))
    (alone,) = train_together(data, 1, 4)
    for processes, devices in ((2, 2), (4, 1)):
        seen = train_together(data, processes, devices)
        train = [i for s in seen for i in s["train"]]
        assert sorted(train) == alone["train"] and len(set(train)) == 48  # three steps of 2 x 8
        assert {i for s in seen for i in s["val"]} == set(range(images))
        assert sum(len(s["bad"]) for s in seen) == 1
        for one in seen:
            assert one["count"] == alone["count"] == images - 1
            assert one["top1"] == alone["top1"]
            np.testing.assert_allclose(one["losses"], alone["losses"], rtol=1e-5)
            np.testing.assert_allclose(one["kernel"], alone["kernel"], rtol=1e-5, atol=1e-6)


def start_two(
    workspace: Path, *more: str, programs: Sequence[tuple[str, ...]] = (("train.py",),) * 2
) -> list["subprocess.Popen[str]"]:
    """Start a tiny run as two processes of one device each."""
    _, *options = tiny(workspace, *TWO, *more)
    options += ["--distributed.coordinator", f"127.0.0.1:{free_port()}"]
    options += ["--distributed.num-processes", "2", "--distributed.process-id"]
    return [start([*program, *options, str(rank)]) for rank, program in enumerate(programs)]


def finish_two(processes: list["subprocess.Popen[str]"], status: int, seen: str = "") -> str:
    """Wait for both, which must end with `status`; returns what the first one printed."""
    results = [finish(processes[0], seen), finish(processes[1])]
    assert [r.returncode for r in results] == [status] * 2, [r.stderr for r in results]
    assert "step" not in results[1].stdout, "one process speaks"
    return results[0].stdout


@cache
def stopped_twice() -> Path:
    """The workspace of a run in two processes, told to stop in training and in an evaluation."""
    workspace = shared() / "two-processes"
    training = f"step 2/{STEPS}"
    processes = start_two(workspace, programs=[("train.py",), pausing(training)])
    seen = read_until(processes[0], training)
    processes[1].send_signal(signal.SIGTERM)
    assert "stopped; continue with" in finish_two(processes, 75, seen)
    assert not event(workspace, "epoch")

    evaluation = f"epoch {EPOCHS}/{EPOCHS} step {STEPS}/{STEPS}"
    processes = start_two(
        workspace, "--resume", "auto", programs=[pausing(evaluation), ("train.py",)]
    )
    seen = read_until(processes[0], evaluation)
    processes[0].send_signal(signal.SIGINT)
    finish_two(processes, 75, seen)
    assert len(event(workspace, "epoch")) == EPOCHS - 1

    finish_two(start_two(workspace, "--resume", "auto"), 0)
    return workspace


def test_two_processes_stop_together_and_equal_one() -> None:
    """A signal to either of them, in training and in the last evaluation, stops both."""
    state, expected = arrays(stopped_twice()), arrays(on_two_devices())
    assert state.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(state[name], array, rtol=1e-5, atol=1e-6, err_msg=name)
    for one, other in zip(records(stopped_twice()), records(on_two_devices()), strict=True):
        assert one.get("step") == other.get("step")
        assert one["metrics"].get("val.count") == other["metrics"].get("val.count")
    mine, theirs = (
        [record["metrics"]["train.loss"] for record in event(folder, "train")]
        for folder in (stopped_twice(), on_two_devices())
    )
    np.testing.assert_allclose(mine, theirs, rtol=1e-5)


def test_another_number_of_devices_continues(tmp_path: Path) -> None:
    """Twice the batch on one of two devices, normalised in groups of the same size."""
    one = Path(shutil.copytree(on_two_devices(), tmp_path / "run"))
    keep_until(one, STEPS + 4)
    options = ("--batch-size", "32", "--model.bn-group-size", "16", "--run-epochs", "1")
    result = done(tiny(one, *TWO, *options, "--resume", "auto"))
    assert f"continuing after step {STEPS + 4} (epoch 1)" in result.stdout
    assert "--model.bn-group-size" not in result.stderr
    state, expected = arrays(one), arrays(on_two_devices(), 2 * STEPS)
    assert state.keys() == expected.keys()
    for name, array in expected.items():
        distance = np.linalg.norm(np.subtract(state[name], array, dtype=np.float64))
        assert distance <= 1e-3 * np.linalg.norm(array), name


IMPATIENT = """
from seresnext_jax.processes import join
join.HEARTBEAT_TIMEOUT = 5
"""


def finish_lost(process: "subprocess.Popen[str]") -> None:
    """The other process is gone: this one ends soon, not as if it were done or told to stop."""
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    # Either its computation fails first, or the runtime ends it.
    assert process.returncode in (EXIT_OTHERS_LOST, -signal.SIGABRT), err
    if process.returncode == EXIT_OTHERS_LOST:
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert "one of them has probably ended" in line and "--resume auto" in line
        assert "Traceback" not in err


@pytest.mark.parametrize("dead", [0, 1])
def test_others_stop_when_a_process_dies_and_both_continue(dead: int, tmp_path: Path) -> None:
    workspace = tmp_path / "run"
    moment = f"epoch 2/{EPOCHS} step 2/{STEPS}"
    _, code, text = pausing(moment)
    programs: list[tuple[str, ...]]
    programs = [("-c", IMPATIENT + "import train; train.run(train.main)")] * 2
    programs[dead] = ("-c", IMPATIENT + code, text)
    processes = start_two(workspace, programs=programs)
    read_until(processes[0], moment)
    processes[dead].kill()
    finish(processes[dead])
    finish_lost(processes[1 - dead])
    if dead == 1:
        # Another course than that of the other run, and every bit the same.
        finish_two(start_two(workspace, "--resume", "auto"), 0)
        same_bits(arrays(workspace), arrays(stopped_twice()))
        assert records(workspace) == records(stopped_twice())


FAILING = """
import sys
import train
from seresnext_jax.data.backends.dali import DaliLoader
from seresnext_jax.errors import UserError
batches = DaliLoader.batches
def failing(self, start):
    for number, batch in enumerate(batches(self, start)):
        if number == 4 and sys.argv[-1] == "1":
            raise UserError("an image of mine is broken")
        yield batch
DaliLoader.batches = failing
train.run(train.main)
"""


def test_others_stop_when_one_has_an_error(tmp_path: Path) -> None:
    """It says its line and ends at once, though the other is in the middle of a step."""
    processes = start_two(tmp_path / "run", programs=[("-c", FAILING)] * 2)
    assert error_line(finish(processes[1])) == "error: an image of mine is broken"
    finish_lost(processes[0])


def test_another_option_of_a_process_ends_all_in_one_line(tmp_path: Path) -> None:
    """With two seeds, each process would train from random weights of its own."""
    _, *options = tiny(tmp_path, "--distributed.coordinator", f"127.0.0.1:{free_port()}")
    options += ["--distributed.num-processes", "3", "--distributed.process-id"]
    ranks = [["train.py", *options, str(rank)] for rank in range(3)]
    ranks[0] += ["--data.root", "/only/here"]
    ranks[1] += ["--seed", "7"]
    for process in [start(rank) for rank in ranks]:
        line = error_line(finish(process))
        host = socket.gethostname()
        assert line.startswith(f"error: processes 0, 2 on {host} and process 1 on {host} have ")
        assert "different options (--seed: 0 and 7): start all processes with the same" in line
