"""pack_data.py, and training from its shards: the same run, bit for bit."""

import signal
from functools import cache
from pathlib import Path

import pytest

from tests.programs import (
    TWO,
    arrays,
    done,
    error_line,
    finish,
    on_two_devices,
    pausing,
    read_until,
    records,
    run,
    same_bits,
    shared,
    simulated,
    start,
    tiny,
)

PACK = ("pack_data.py", "--images-per-shard", "100")


@cache
def shards() -> Path:
    """The digits as shards."""
    out = shared() / "shards"
    done([*PACK, "--data.root", str(shared() / "digits"), "--out", str(out)])
    return out


def test_both_splits_are_packed_and_a_second_start_has_nothing_to_do() -> None:
    out = shards()
    assert len(list((out / "train").glob("*.tar"))) == 15
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
    again = done([*PACK, "--data.root", str(shared() / "digits"), "--out", str(out)]).stdout
    assert "train: 1438 images in 15 shards; each image was read back and equals its file" in again
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.*")} == files


def test_a_run_from_shards_is_the_run_from_folders(tmp_path: Path) -> None:
    workspace = tmp_path / "run"
    done(tiny(workspace, *TWO, "--data.root", str(shards())), env=simulated(2))
    same_bits(arrays(workspace), arrays(on_two_devices()))
    assert records(workspace) == records(on_two_devices())


def test_a_run_changes_from_folders_to_shards(tmp_path: Path) -> None:
    """In the middle of an epoch; it has no warning to give."""
    workspace = tmp_path / "run"
    middle = "epoch 2/3 step 4/6"
    process = start([*pausing(middle), *tiny(workspace, *TWO)[1:]], env=simulated(2))
    read_until(process, middle)
    process.send_signal(signal.SIGTERM)
    assert finish(process).returncode == 75
    options = ("--data.root", str(shards()), "--resume", "auto")
    rest = done(tiny(workspace, *TWO, *options), env=simulated(2))
    assert "not as it would have" not in rest.stderr
    same_bits(arrays(workspace), arrays(on_two_devices()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data.root", "{digits}"), "--out is missing: name a folder for the shards"),
        (("--out", "{new}"), "--data.root is missing"),
        (("--data.root", "{digits}/train", "--out", "{new}"), "has neither train/ nor val/: give"),
    ],
)
def test_wrong_options_are_one_line(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    names = {"digits": shared() / "digits", "new": tmp_path / "new"}
    line = error_line(run([*PACK, *(option.format(**names) for option in options)]))
    assert message in line
    assert not (tmp_path / "new").exists()


def test_a_killed_packer_goes_on(tmp_path: Path) -> None:
    """Killed as a process; until it is done, no run takes the folder for a dataset."""
    command = [*PACK, "--data.root", str(shared() / "digits"), "--out", str(tmp_path)]
    process = start(command)
    read_until(process, "packing train")
    process.kill()
    finish(process)
    line = error_line(run(tiny(tmp_path / "run", "--data.root", str(tmp_path))))
    assert "not packed completely: run python pack_data.py again" in line or "val" in line
    done(command)
    for path in (shards() / "train").glob("*.tar"):
        assert (tmp_path / "train" / path.name).read_bytes() == path.read_bytes()
