"""One run per workspace, and a run whose console goes away."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from seresnext_jax.errors import UserError
from seresnext_jax.report.console import Console
from seresnext_jax.run.workspace import locked, open_workspace
from tests.programs import ROOT

HOLDER = """
import sys
from pathlib import Path
from seresnext_jax.report.console import Console
from seresnext_jax.run.workspace import open_workspace
console = Console(enabled=True)
with open_workspace(Path(sys.argv[1]), console):
    console.note("ready")
    sys.stdin.readline()
    console.note("a note")
    console.warn("a warning")
    print("more", file=sys.stderr)
"""


def hold(workspace: Path) -> "subprocess.Popen[str]":
    """A process that has the workspace open until it reads a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(workspace)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_second_run_is_refused_until_the_first_ends_in_any_way(tmp_path: Path) -> None:
    console = Console(enabled=True)
    process = hold(tmp_path / "run")
    with (
        pytest.raises(UserError, match=rf"in use by another run \(process {process.pid} on "),
        open_workspace(tmp_path / "run", console),
    ):
        pass
    with open_workspace(tmp_path / "another", console):
        pass
    process.kill()
    process.communicate()
    with open_workspace(tmp_path / "run", console):
        pass
    with open_workspace(tmp_path / "run", console):
        pass


def test_a_full_disk_is_one_line_and_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    console = Console(enabled=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with (
            pytest.raises(UserError, match="run can't be written .No space left on device.: free"),
            open_workspace(tmp_path / "run", console),
        ):
            pass
    with open_workspace(tmp_path / "run", console):  # space was freed
        pass


def test_a_console_that_goes_away_does_not_end_the_run(tmp_path: Path) -> None:
    """What is printed afterwards is in the log."""
    process = hold(tmp_path / "run")
    assert process.stdin and process.stdout and process.stderr
    process.stdout.close()
    process.stderr.close()
    process.stdin.write("\n")
    process.stdin.close()
    assert process.wait(60) == 0
    lines = (tmp_path / "run/log.txt").read_text().splitlines()
    assert [line[21:] for line in lines] == ["ready", "a note", "warning: a warning"]


def test_an_error_is_in_the_log(tmp_path: Path) -> None:
    console = Console(enabled=True)
    for error in (UserError("an option is wrong"), ValueError("a bug")):
        with pytest.raises(type(error)), open_workspace(tmp_path, console):
            raise error
    text = (tmp_path / "log.txt").read_text()
    assert "  error: an option is wrong\n" in text
    assert "Traceback" in text and "ValueError: a bug\n" in text


def test_a_run_that_is_refused_leaves_no_workspace(tmp_path: Path) -> None:
    workspace = tmp_path / "run"
    for made in (False, True):
        with pytest.raises(UserError), open_workspace(workspace, Console(enabled=True)):
            raise UserError("refused")
        assert workspace.exists() == made
        workspace.mkdir(exist_ok=True)


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path, Console(enabled=True)):
        pass
    assert "has no locks (No locks available)" in capsys.readouterr().err


def test_only_process_0_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others learn from it whether the workspace is taken."""
    process = hold(tmp_path)
    monkeypatch.setattr("jax.process_index", lambda: 1)
    monkeypatch.setattr("jax.process_count", lambda: 2)
    for taken in (0, 1):
        monkeypatch.setattr("seresnext_jax.run.workspace.sum_over_processes", lambda _, n=taken: n)
        if taken:
            with pytest.raises(UserError, match="in use by another run:"):
                locked(tmp_path, Console(enabled=False)).__enter__()
        else:
            with locked(tmp_path, Console(enabled=False)):
                pass
    process.communicate("\n")
