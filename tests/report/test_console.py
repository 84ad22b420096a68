"""What a run shows: on a terminal, in a log file, and on other processes nothing."""

import os
from pathlib import Path

import pytest

from seresnext_jax.report import console as console_module
from seresnext_jax.report.console import Console

STEPS = 4
"""Steps of an epoch."""


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Consoles opened from now on believe to have a terminal of 80 columns."""
    real = console_module.Terminal
    monkeypatch.setattr(
        console_module, "Terminal", lambda **kw: real(**kw, force_terminal=True, width=80)
    )


def use_console(console: Console) -> None:
    """Everything a run shows."""
    with console.compiling("the [training] step"):
        pass
    with console.epoch(0, 90, done=0, steps=STEPS):
        for step in range(1, STEPS + 1):
            console.step(step)
            console.train_line(f"step {step}  loss 6.9  run ends in 1:02:03")
    console.note("saved :smile: [b]here[/b] " + "long " * 40 + "end")
    console.warn("slow [disk]")
    console.note(os.fsdecode(b"latin-\xe9.jpg"))
    console.table("Outcome", [("top-1", "10.00 %"), ("checkpoint", "/runs/[1]/" + 99 * "x")])


def test_a_log_file_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    use_console(Console(enabled=True))
    out, err = capsys.readouterr()
    assert all(char.isprintable() or char == "\n" for char in out + err)
    lines = out.splitlines()
    assert lines[0] == "compiling the [training] step ..."
    assert lines[1].startswith("compiled the [training] step in ")
    assert lines[2:6] == [f"step {s}  loss 6.9  run ends in 1:02:03" for s in (1, 2, 3, 4)]
    assert lines[6] == "saved :smile: [b]here[/b] " + "long " * 40 + "end"
    assert lines[7:] == [
        "latin-\\udce9.jpg",
        "Outcome",
        "  top-1       10.00 %",
        "  checkpoint  /runs/[1]/" + 99 * "x",
    ]
    assert err == "warning: slow [disk]\n"


def test_the_log_file_escapes_what_it_cannot_contain(tmp_path: Path) -> None:
    console = Console(enabled=True)
    with console.logging_to(tmp_path / "log.txt"):
        console.warn(os.fsdecode(b"latin-\xe9.jpg"))
    assert (tmp_path / "log.txt").read_text().endswith("  warning: latin-\\udce9.jpg\n")


def test_a_terminal_gets_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_a_terminal(monkeypatch)
    console = Console(enabled=True)
    with console.epoch(4, 90, done=1, steps=STEPS):
        console.step(3)
        console.train_line(f"loss 6.9 {60 * '.'} run ends in 1:02:03")
    out = capsys.readouterr().out
    assert "\x1b[" in out
    assert "epoch 5/90" in out and "3/4" in out
    assert "1:02:03" in out  # the line is wider than the terminal, yet not cut
    console.train_line("after the epoch")
    assert "after the epoch\n" in capsys.readouterr().out


def test_an_error_inside_an_epoch_ends_the_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_a_terminal(monkeypatch)
    console = Console(enabled=True)
    with pytest.raises(ZeroDivisionError), console.epoch(0, 1, done=0, steps=1):
        raise ZeroDivisionError
    capsys.readouterr()
    console.train_line("plain again")
    assert "plain again\n" in capsys.readouterr().out


def show_bar(console: Console) -> None:
    with console.bar("checking") as told:
        for done in range(1, 26):
            told(done, 25)


def test_another_task_has_a_bar_or_ten_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show_bar(Console(enabled=True))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert (lines[0], lines[-1]) == ("checking: 3 of 25", "checking: 25 of 25")
    on_a_terminal(monkeypatch)
    show_bar(Console(enabled=True))
    out = capsys.readouterr().out
    assert "checking" in out and "25/25" in out and "checking: " not in out


def test_other_processes_show_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    use_console(Console(enabled=False))
    show_bar(Console(enabled=False))
    assert capsys.readouterr() == ("", "")
