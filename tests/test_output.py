"""Files that are written as a whole."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from seresnext_jax.cli import write_output
from seresnext_jax.errors import UserError
from seresnext_jax.output import replacing, write_whole


def test_a_file_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_whole(file, "one")
    write_whole(file, "größe \udce9")
    assert file.read_text(encoding="utf-8") == r"größe \udce9"
    write_whole(file, b"\xff")
    assert file.read_bytes() == b"\xff"
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.html"
    write_whole(file, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match="--html .*a.html: File too large; name another file"):
            write_output("--html", str(file), "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
    write_output("--html", str(tmp_path / "b.html"), "x" * 2000)  # the fix


def test_a_kill_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    write_whole(file, "old")
    code = (
        "import os; from pathlib import Path; from seresnext_jax.output import write_whole\n"
        "os.replace = lambda *_: os.kill(os.getpid(), 9)\n"
        f"write_whole(Path({str(file)!r}), 'new')"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert file.read_text() == "old"


def test_ctrl_c_leaves_the_old_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    write_whole(file, "old")
    with pytest.raises(KeyboardInterrupt), replacing(file) as new:
        new.write(b"half")
        raise KeyboardInterrupt
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_a_link_and_a_pipe_are_written_in_place(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    write_whole(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "x"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_whole(tmp_path / "pipe", "y")
    assert os.read(reader, 9) == b"y"
    os.close(reader)


def test_two_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    with replacing(file) as one:
        one.write(b"one")
        with replacing(file) as two:
            two.write(b"second")
    assert file.read_bytes() == b"one" and list(tmp_path.iterdir()) == [file]


def test_what_a_killed_writer_left_is_removed_later(tmp_path: Path) -> None:
    left, running = tmp_path / ".a.csv.1.tmp", tmp_path / ".a.csv.2.tmp"
    left.touch()
    running.touch()
    os.utime(left, (0, 0))
    write_whole(tmp_path / "a.csv", "x")
    assert sorted(tmp_path.iterdir()) == [running, tmp_path / "a.csv"]
