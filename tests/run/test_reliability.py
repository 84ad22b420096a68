"""Stopped, killed, damaged or out of space: a run goes on as if nothing had happened.

Every comparison is with one uninterrupted run in float16 with mixup, a moving average and a loss
scale that grows, so that all that a run remembers takes part.
"""

import resource
import shlex
import shutil
import signal
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import pytest

from seresnext_jax.checkpoint.meta import Progress
from seresnext_jax.checkpoint.save import Checkpoints
from seresnext_jax.checkpoint.store import read_meta
from seresnext_jax.config import CheckpointConfig, Config, ModelConfig, Precision
from seresnext_jax.data.batch import Loader
from seresnext_jax.errors import UserError
from seresnext_jax.plan import resolve
from seresnext_jax.report.console import Console
from seresnext_jax.run.saver import Saver
from seresnext_jax.run.start import Start
from seresnext_jax.training.state import TrainState, create_train_state
from tests import soak
from tests.checkpoint.metas import make_meta
from tests.programs import (
    DEADLINE,
    EPOCHS,
    ROOT,
    STEPS,
    arrays,
    done,
    error_line,
    event,
    finish,
    keep_until,
    pausing,
    read_until,
    records,
    run,
    same_bits,
    shared,
    start,
    tiny,
    wait_for,
)

OPTIONS = (
    *("--precision", "fp16", "--mixup", "0.2", "--use-ema", "0.9"),
    *("--loss-scale.growth-interval", "5", "--checkpoint.every-steps", "2"),
    *("--checkpoint.keep", "-1", "--print-freq", "3"),
)
"""Reports and checkpoints fall on different steps, so the mean of an interval is saved too."""
KILLED_AFTER = STEPS + 2
"""The checkpoint in the middle of the second epoch."""
STOPPED = 75


@cache
def whole() -> Path:
    """The uninterrupted run."""
    workspace = shared() / "reliable"
    done(tiny(workspace, *OPTIONS))
    return workspace


@cache
def killed() -> Path:
    """A run that was killed when its report was ahead of its newest checkpoint."""
    workspace = shared() / "killed"
    ahead = f"epoch 2/{EPOCHS} step {KILLED_AFTER + 1 - STEPS}/{STEPS}"
    process = start([*pausing(ahead), *tiny(workspace, *OPTIONS)[1:]])
    read_until(process, ahead)
    wait_for(process, workspace / "checkpoints", str(KILLED_AFTER))
    process.kill()
    assert finish(process).returncode == -signal.SIGKILL
    assert event(workspace, "train")[-1]["step"] > KILLED_AFTER
    keep_until(workspace, KILLED_AFTER)
    return workspace


def copy_of_killed(folder: Path) -> Path:
    """A copy of the killed run, to continue or to damage."""
    return Path(shutil.copytree(killed(), folder / "run"))


def exactly_like_whole(workspace: Path) -> None:
    """Same arrays at the end, and each step reported once with every metric but timings."""
    state = arrays(workspace)
    same_bits(state, arrays(whole()))
    for part in ("params", "batch_stats", "opt_state", "ema", "loss_scale", "seed"):
        assert [name for name in state if part in name], part
    assert records(workspace) == records(whole())


def test_the_uninterrupted_run_uses_all_that_is_saved() -> None:
    scales = [record["metrics"]["train.grad_scale"] for record in event(whole(), "train")]
    assert scales[0] < scales[-1]
    state = arrays(whole())
    ema = [name for name in state if "ema" in name and "params" in name]
    assert ema
    assert any(not np.array_equal(state[n], state[n.replace("['ema']", "")]) for n in ema)


def test_killed_run_continues_exactly(tmp_path: Path) -> None:
    workspace = copy_of_killed(tmp_path)
    out = done(tiny(workspace, *OPTIONS, "--resume", "auto")).stdout
    assert f"continuing after step {KILLED_AFTER} (epoch 1)" in out
    exactly_like_whole(workspace)


def test_killed_while_saving_and_damaged_checkpoints_fall_back(tmp_path: Path) -> None:
    """The newest is cut short, one is an empty folder, and one was being written."""
    workspace = copy_of_killed(tmp_path)
    saved = workspace / "checkpoints"
    newest = saved / str(KILLED_AFTER)
    largest = max((newest / "weights").rglob("*"), key=lambda path: path.stat().st_size)
    with largest.open("r+b") as file:
        file.truncate(largest.stat().st_size // 2)
    unfinished = f"{KILLED_AFTER + 2}.orbax-checkpoint-tmp"
    shutil.copytree(newest / "weights", saved / unfinished / "weights.orbax-checkpoint-tmp")
    (saved / "999").mkdir()

    result = done(tiny(workspace, *OPTIONS, "--resume", "auto"))
    assert f"warning: checkpoint {newest} can't be read" in result.stderr
    assert f"warning: checkpoint {saved / '999'} can't be read" in result.stderr
    assert f"continuing after step {KILLED_AFTER - 2} (epoch 1)" in result.stdout
    exactly_like_whole(workspace)
    assert not list(saved.glob("*orbax-checkpoint-tmp*"))


def small_state() -> TrainState:
    variables = {"params": {"w": jnp.ones(3)}, "batch_stats": {}}
    return create_train_state(Config(), variables)


def test_a_step_that_is_saved_again_is_never_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first checkpoint comes back if the second fails, or if the program was killed in it."""
    state = small_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, make_meta(epoch=1))
        checkpoints.wait()

        def full(*args: object, **kwargs: object) -> bool:
            assert not (tmp_path / "0").exists()
            raise OSError("No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._manager, "save", full)
            with pytest.raises(UserError, match="checkpoint 0 is complete"):
                checkpoints.save(state, make_meta(epoch=2))
        assert checkpoints.steps() == [0]
        checkpoints.save(state, make_meta(epoch=2))
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    assert read_meta(tmp_path / "0").epoch == 2

    (tmp_path / "0").rename(tmp_path / "0.replaced")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [0]


def test_a_named_checkpoint_is_gone_back_to(tmp_path: Path) -> None:
    """From the end of the first epoch; what came after it is set aside."""
    workspace = copy_of_killed(tmp_path)
    named = workspace / "checkpoints" / str(STEPS)
    out = done(tiny(workspace, *OPTIONS, "--resume", str(named))).stdout
    assert f"renamed to {KILLED_AFTER}.later" in out
    assert f"continuing after step {STEPS} (epoch 1)" in out
    exactly_like_whole(workspace)


def test_a_checkpoint_that_does_not_fit_the_run_moves_nothing(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "checkpoints", keep=-1) as checkpoints:
        for step in (1, 2):
            state = replace(small_state(), step=jnp.int32(step))
            checkpoints.save(state, make_meta(step=step))  # of 10 steps in an epoch
    named = tmp_path / "checkpoints/1"
    with saver(tmp_path) as saving, pytest.raises(UserError, match="had steps_per_epoch 10"):
        saving.resume(Start(checkpoint=named), small_state())
    assert {path.name for path in named.parent.iterdir()} == {"1", "2"}


def test_stop_signals_in_compilation_saving_and_evaluation(tmp_path: Path) -> None:
    """Each time the run goes on by the printed command."""
    workspace = tmp_path / "run"
    process = start(tiny(workspace, *OPTIONS))
    seen = read_until(process, "compiling the training step")
    process.send_signal(signal.SIGTERM)
    first = finish(process, seen)
    assert first.returncode == STOPPED, first.stderr
    assert "SIGTERM: stopping after this step" in first.stderr
    assert saved_steps(workspace) == {1}

    process = start([*pausing(f"step 3/{STEPS}"), *continuation(first.stdout)[1:]])
    wait_for(process, workspace / "checkpoints", "2*")  # under way, or just whole
    process.send_signal(signal.SIGTERM)
    second = finish(process)
    assert second.returncode == STOPPED, second.stderr
    assert 2 in saved_steps(workspace) and not event(workspace, "epoch")

    before_evaluation = f"epoch 2/{EPOCHS} step {STEPS}/{STEPS}"
    process = start([*pausing(before_evaluation), *continuation(second.stdout)[1:]])
    seen = read_until(process, before_evaluation)
    process.send_signal(signal.SIGINT)
    third = finish(process, seen)
    assert third.returncode == STOPPED, third.stderr
    assert len(event(workspace, "epoch")) == 1
    assert max(saved_steps(workspace)) == 2 * STEPS

    done(continuation(third.stdout))
    exactly_like_whole(workspace)


def saved_steps(workspace: Path) -> set[int]:
    return {int(p.name) for p in (workspace / "checkpoints").iterdir() if p.name.isdigit()}


def continuation(out: str) -> list[str]:
    """The command that a stopped run prints, without the name of the interpreter."""
    (line,) = [ln for ln in out.splitlines() if ln.startswith("stopped; continue with: ")]
    python, *command = shlex.split(line.removeprefix("stopped; continue with: "))
    assert python == "python"
    return command


def test_a_run_goes_on_without_its_console_and_keeps_its_workspace(tmp_path: Path) -> None:
    """Its reader is killed, as in ``| tee log``; a second run in its workspace is refused."""
    workspace = tmp_path / "run"
    process = start(tiny(workspace, "--run-epochs", "1"))
    read_until(process, "compiling the training step")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    line = error_line(run(tiny(workspace, "--resume", "auto")))
    assert f"in use by another run (process {process.pid} on " in line
    assert process.wait(DEADLINE) == 0
    log = (workspace / "log.txt").read_text()
    assert f"epoch 1/{EPOCHS} step {STEPS}/{STEPS}" in log and "Outcome" in log
    assert "continuing after step" in done(tiny(workspace, "--resume", "auto")).stdout


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_ends_the_program_at_once(second: signal.Signals, tmp_path: Path) -> None:
    """In the middle of a compilation: it does not come to its end."""
    folder = tmp_path / "run"
    process = start([*tiny(folder, *OPTIONS), "--compilation-cache", str(tmp_path / "empty")])
    read_until(process, "compiling the training step")
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while "SIGINT: stopping after this step" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(second)
    result = finish(process)
    assert result.returncode == 128 + second
    assert "compiled the training step" not in result.stdout
    assert not list((folder / "checkpoints").iterdir())


def test_no_space_for_a_checkpoint(tmp_path: Path) -> None:
    """Files may not grow to a checkpoint's size, as on a full disk: the one before is complete."""
    workspace = copy_of_killed(tmp_path)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    line = error_line(run(tiny(workspace, *OPTIONS, "--resume", "auto"), preexec=limit))
    assert f"saving to {workspace / 'checkpoints'} failed" in line
    assert f"checkpoint {KILLED_AFTER} is complete" in line
    assert "--resume auto" in line
    same_bits(arrays(workspace), arrays(whole(), KILLED_AFTER))


def test_steps_without_finite_gradients_stop_the_run(tmp_path: Path) -> None:
    """A learning rate that blows the weights up; what was saved before is kept, and not more."""
    options = ("--optim.lr", "1e6", "--max-bad-steps", "3", "--prof", "10")
    options += ("--checkpoint.every-steps", "1", "--checkpoint.keep", "0")
    line = error_line(run(tiny(tmp_path / "run", *OPTIONS, *options)))
    assert "3 steps in a row" in line
    assert "lower the learning rate" in line
    (kept,) = (tmp_path / "run/checkpoints").iterdir()
    assert read_meta(kept).bad_steps == 0
    state = arrays(tmp_path / "run")
    assert all(np.isfinite(array).all() for name, array in state.items() if "params" in name)


def saver(folder: Path, devices: int = 1, fingerprint: str = "", **options: Any) -> Saver:
    config = Config(workspace=str(folder), **options)
    plan = resolve(config, num_images=12_800, num_devices=devices)
    loader = SimpleNamespace(class_names=(), fingerprint=fingerprint)
    return Saver(config, plan, cast(Loader, loader), Console(enabled=True))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"devices": 2, "batch_size": 64}, ""),
        ({"batch_size": 64, "optimizer_batch_size": 128}, ""),
        ({"batch_size": 128, "model": ModelConfig(bn_group_size=64)}, ""),
        (
            {"batch_size": 128},
            "together, now 128: to train as before, give --model.bn-group-size 64",
        ),
        ({"devices": 2, "batch_size": 64, "fingerprint": "b"}, "continues, but not as it would"),
    ],
)
def test_a_change_of_the_run_is_named_with_its_fix(
    options: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On one device instead of two, or with other images."""
    with saver(tmp_path, devices=2, batch_size=64) as saving:
        saving.save(small_state(), Progress())
    start = Start(newest_in=saving.folder)
    with (
        saver(tmp_path, batch_size=64) as saving,
        pytest.raises(UserError, match=r"128, this one has 64: .*--optimizer-batch-size 128\)"),
    ):
        saving.resume(start, small_state())
    with saver(tmp_path, **options) as saving:
        saving.resume(start, small_state())
    warnings = capsys.readouterr().err
    assert said in warnings and bool(said) == bool(warnings)


@pytest.mark.parametrize(
    ("before", "now", "scale"),
    [("fp16", "fp16", 512), ("fp16", "bf16", 1), ("fp32", "fp16", 128), ("bf16", "tf32", 1)],
)
def test_another_precision_starts_with_its_own_loss_scale(
    before: Precision, now: Precision, scale: float, tmp_path: Path
) -> None:
    with saver(tmp_path, precision=before) as saving:
        state = create_train_state(
            saving._config, {"params": {"w": jnp.ones(3)}, "batch_stats": {}}
        )
        if before == "fp16":
            state = replace(state, loss_scale=replace(state.loss_scale, scale=jnp.float32(512)))
        saving.save(state, Progress())
    new = create_train_state(Config(precision=now), small_state().variables)
    with saver(tmp_path, precision=now) as saving:
        found, _ = saving.resume(Start(newest_in=saving.folder), new)
    assert float(found.loss_scale.scale) == scale


def test_changed_options_are_named_at_a_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that change the weights, such as the length of the schedule."""
    with saver(tmp_path, epochs=40, print_freq=20) as saving:
        saving.save(small_state(), Progress())
    with saver(tmp_path, epochs=90, print_freq=10) as saving:
        saving.resume(Start(newest_in=saving.folder), small_state())
    assert (
        "options that changed since the checkpoint: --epochs: 40 → 90\n" in capsys.readouterr().out
    )
    with saver(tmp_path, epochs=40) as saving:
        saving.resume(Start(newest_in=saving.folder), small_state())
    assert "changed" not in capsys.readouterr().out


def test_minutes_between_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at every tenth step; due until saved."""
    now = 1000.0
    monkeypatch.setattr("seresnext_jax.run.saver.time.monotonic", lambda: now)
    saving = saver(tmp_path, checkpoint=CheckpointConfig(every_minutes=2.0))
    assert not saving.due(10)
    now += 119
    assert not saving.due(20)
    now += 1
    assert [saving.due(step) for step in (21, 30, 31)] == [False, True, True]
    assert not saving.due(100), "the epoch's end saves anyway"


def test_a_save_that_is_due_waits_for_a_good_step(tmp_path: Path) -> None:
    with saver(tmp_path, checkpoint=CheckpointConfig(every_steps=2)) as saving:
        assert saving.due(2)
        saving.save_if_good(replace(small_state(), bad_steps=jnp.int32(1)), Progress())
        assert saving.due(3) and not list(saving.folder.iterdir())
        saving.save_if_good(small_state(), Progress())
        assert not saving.due(5)
    assert [path.name for path in saving.folder.iterdir()] == ["0"]


def test_short_soak() -> None:
    """Killed twice at random moments, the run ends bit for bit like an undisturbed one."""
    soaked = shared() / "soaked"
    command = tiny(soaked, *OPTIONS, "--resume", "auto")
    outcome = soak.soak(whole(), soaked, command, kills=2, seed=1, longest=10.0)
    assert outcome.kills >= 2
    assert outcome.differences == ()


@pytest.mark.parametrize(
    ("status", "restarts", "again"),
    [(0, 0, False), (2, 0, False), (75, 19, True), (137, 3, True), (137, 20, False)]
    + [(134, 0, False), (76, 0, False), (143, 0, True)],
)
def test_the_slurm_example(status: int, restarts: int, again: bool, tmp_path: Path) -> None:
    """It begins again after a stop or a kill, some times, and not after an error."""
    text = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    script = text[text.index("#!/bin/bash") :].partition("```")[0]
    for name, body in (("srun", f"exit {status}"), ("scontrol", 'echo "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": "/", "SLURM_JOB_ID": "17"}
    env["SLURM_RESTART_COUNT"] = str(restarts)
    result = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True)
    assert result.stdout == ("requeue 17\n" if again else "")
    assert result.returncode == status
