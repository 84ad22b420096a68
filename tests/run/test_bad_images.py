"""A run whose images can't be read stops, keeps its last good state, and goes on once repaired."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from seresnext_jax.checkpoint.meta import Progress
from seresnext_jax.config import Config, DataConfig
from seresnext_jax.data.gone import DataGone
from seresnext_jax.plan import resolve
from seresnext_jax.report.console import Console
from seresnext_jax.run.bad_images import saving_before_bad_images
from seresnext_jax.run.log import TrainLog
from seresnext_jax.run.saver import Saver
from seresnext_jax.training.state import create_train_state
from tests.programs import (
    EPOCHS,
    STEPS,
    arrays,
    done,
    error_line,
    event,
    keep_until,
    run,
    same_bits,
    shared,
    tiny,
)

OPTIONS = ("--use-ema", "0.9", "--checkpoint.every-steps", "1", "--checkpoint.keep", "-1")
SKIP = ("--data.on-bad-image", "skip")
BATCH = 32


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    workspace = tmp_path_factory.mktemp("whole") / "run"
    done(tiny(workspace, *OPTIONS))
    return workspace


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A copy of the digits."""
    return Path(shutil.copytree(shared() / "digits", tmp_path / "data"))


def empty(split: Path) -> None:
    for path in split.rglob("*.jpg"):
        path.write_bytes(b"")


def repair(data: Path) -> None:
    shutil.copytree(shared() / "digits", data, dirs_exist_ok=True)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ((), f"of the {STEPS * BATCH} images of epoch 2 could not be decoded"),
        (
            ("--data.max-bad-share", "1", "--max-bad-steps", "2"),
            "none of the images of 2 steps in a row",
        ),
    ],
)
def test_the_last_good_state_is_saved_and_continues_exactly(
    tmp_path: Path, data: Path, whole: Path, limits: tuple[str, ...], message: str
) -> None:
    """From the middle of an epoch; a checkpoint that is older than the state must not do."""
    workspace = Path(shutil.copytree(whole, tmp_path / "run"))
    keep_until(workspace, STEPS + 2)
    empty(data / "train")
    options = (*OPTIONS, *SKIP, "--data.root", str(data), "--resume", "auto")
    line = error_line(run(tiny(workspace, *options, *limits)))
    assert message in line and "check_data.py" in line
    assert f"the state after step {STEPS + 2} is saved: continue with --resume auto" in line
    same_bits(arrays(workspace), arrays(whole, STEPS + 2))

    repair(data)
    done(tiny(workspace, *options, *limits))
    same_bits(arrays(workspace), arrays(whole))
    epochs = [record["metrics"] for record in event(workspace, "epoch")]
    assert [metrics["train.bad_images"] for metrics in epochs] == [0] * EPOCHS
    assert event(workspace, "epoch") == event(whole, "epoch")


@pytest.mark.parametrize(
    ("epoch", "readable", "saved"), [(0, (1.0, 0.0, 0.0), 4), (1, (), 6)], ids=["within", "after"]
)
def test_only_steps_without_an_image_are_repeated(
    epoch: int, readable: tuple[float, ...], saved: int, tmp_path: Path
) -> None:
    """Another bad step has changed the statistics and the loss scale; a finished epoch is over."""
    data = DataConfig(max_bad_share=1.0)
    config = Config(workspace=str(tmp_path), data=data, print_freq=100)
    plan = resolve(config, num_images=6 * config.batch_size, num_devices=1)
    console, progress, report = Console(enabled=False), Progress(), SimpleNamespace()
    loader = SimpleNamespace(fingerprint="", class_names=())
    log = TrainLog(config, plan, progress, report, console, last_epoch=2)  # type: ignore[arg-type]
    saver = Saver(config, plan, loader, console)  # type: ignore[arg-type]
    state = create_train_state(config, {"params": {"w": jnp.ones(3)}, "batch_stats": {}})
    bad = jnp.int32(3)
    state = replace(state, step=jnp.int32(6), skipped_steps=bad, bad_steps=bad)
    with (
        pytest.raises(DataGone, match=f"the state after step {saved} is saved"),
        saving_before_bad_images(saver, progress, log, lambda: state),
        log.epoch(epoch, done=3),
    ):
        for number, share in enumerate(readable, start=1):
            metrics = {"loss": np.nan, "readable": share, "bad_steps": number}
            log.add(3 + number, {name: jnp.float32(value) for name, value in metrics.items()})
        raise DataGone("gone")
    found = arrays(tmp_path)
    counters = [int(found[f"[1]['{name}']"]) for name in ("step", "skipped_steps", "bad_steps")]
    assert counters == [saved, saved - 3, saved - 3]


def test_a_folder_that_goes_away_is_named(tmp_path: Path, data: Path, whole: Path) -> None:
    """It is away when the first evaluation begins: the epoch's state is saved."""
    workspace = tmp_path / "run"
    code = (
        "import sys, shutil, train\n"
        "from seresnext_jax.data import gone\n"
        "gone.RETRY_SECONDS = 0.0\n"
        "validate = train.validate\n"
        "def without(*args):\n"
        f"    shutil.rmtree({str(data)!r})\n"
        "    return validate(*args)\n"
        "train.validate = without\n"
        "from seresnext_jax.cli import run\n"
        "run(train.main)\n"
    )
    _, *options = tiny(workspace, *OPTIONS, *SKIP, "--data.root", str(data))
    line = error_line(run(["-c", code, *options]))
    assert f"the folder {data} is gone" in line
    assert f"the state after step {STEPS} is saved" in line
    repair(data)
    done(tiny(workspace, *OPTIONS, *SKIP, "--data.root", str(data), "--resume", "auto"))
    same_bits(arrays(workspace), arrays(whole))


def test_an_epoch_without_an_image_has_no_loss(tmp_path: Path, data: Path) -> None:
    """Allowed by options that switch the limits off."""
    empty(data / "train")
    workspace = tmp_path / "run"
    options = ("--data.max-bad-share", "1", "--max-bad-steps", "99", "--epochs", "2")
    done(tiny(workspace, *SKIP, "--data.root", str(data), *options))
    for record in event(workspace, "epoch"):
        assert "train.loss" not in record["metrics"]
        assert record["metrics"]["train.bad_images"] == STEPS * BATCH
        assert record["metrics"]["train.skipped_steps"] == STEPS * (record["epoch"] + 1)


def test_an_evaluation_says_what_it_is_about(tmp_path: Path, data: Path, whole: Path) -> None:
    command = [
        *("eval.py", "--weights", str(whole / "checkpoints" / str(STEPS)), *SKIP),
        *("--data.root", str(data), "--data.backend", "folder", "--config", "tests/one_block.py"),
        *("--json", str(tmp_path / "out.json"), "--compilation-cache", str(shared() / "cache")),
    ]
    empty(data / "val" / "3")
    total = len(list((data / "val").rglob("*.jpg")))
    bad = len(list((data / "val" / "3").iterdir()))
    line = error_line(run(command))
    assert f"of the {total} images of the evaluation could not be decoded" in line
    assert not (tmp_path / "out.json").exists()

    result = done([*command, "--data.max-bad-share", "0.5"])  # the fix
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["count"], found["images"]) == (total - bad, total)
    (row,) = [line for line in result.stdout.splitlines() if "images to evaluate" in line]
    assert row.split()[-1] == str(total)

    empty(data / "val")
    line = error_line(run([*command, "--data.max-bad-share", "1"]))
    assert f"none of the {total} images of the evaluation could be decoded" in line
