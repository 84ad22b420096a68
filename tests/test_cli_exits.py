"""How a program ends: its exit status, and what it prints about an error."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from seresnext_jax.cli import run
from tests.command_line import read
from tests.programs import ROOT


def exit_of(monkeypatch: pytest.MonkeyPatch, main: Any, *argv: str) -> Any:
    """The status that `run` exits with."""
    monkeypatch.setattr(sys, "argv", ["program", *argv])
    with pytest.raises(SystemExit) as stop:
        run(main)
    return stop.value.code


def test_run_hands_over_the_arguments_and_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    assert not exit_of(monkeypatch, seen.extend, "a", "--b")
    assert seen == ["a", "--b"]
    assert exit_of(monkeypatch, lambda argv: 3) == 3


def test_run_prints_a_user_s_error_as_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_of(monkeypatch, lambda argv: read(*argv), "--epoch", "3") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: unknown option --epoch: did you mean --epochs?")
    assert err.count("\n") == 1


def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_of(monkeypatch, lambda argv: read(*argv), "--epochs", "0", "--debug") == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("error: --epochs is 0")


def test_ctrl_c_ends_with_one_line_and_status_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: list[str]) -> None:
        raise KeyboardInterrupt

    assert exit_of(monkeypatch, main) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_a_device_without_enough_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told by the runtime, and asks for smaller batches."""

    def main(argv: list[str]) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    assert exit_of(monkeypatch, main) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: the device is out of memory (Out of memory allocating 9")
    assert "--batch-size" in err and err.count("\n") == 1


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(argv: list[str]) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(ValueError, match="a bug"):
        run(main)


def test_a_strict_terminal_gets_escapes() -> None:
    code = r"from seresnext_jax.cli import run; run(lambda _: print('caf\xe9 \udce9'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "caf\\xe9 \\udce9\n", "")


@pytest.mark.parametrize(
    ("program", "status", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT, ""),
        ("run(lambda argv: os.kill(os.getpid(), signal.SIGINT))", 130, "error: interrupted\n"),
    ],
    ids=["while it imports its packages", "later"],
)
def test_ctrl_c_in_an_installed_command(
    tmp_path: Path, program: str, status: int, said: str
) -> None:
    imports = "import os, signal\nfrom seresnext_jax.cli import run\n"
    (tmp_path / "stopped.py").write_text(imports + program + "\nprint('went on')\n")
    command = (
        "import pathlib, sys; sys.argv[0] = 'seresnext-stopped'; "
        "from seresnext_jax import commands; "
        f"commands.PROGRAMS = pathlib.Path({str(tmp_path)!r}); commands.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "", said)
