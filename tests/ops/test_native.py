"""C++ that is compiled on the machine that runs it, and what happens where it can't be."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from seresnext_jax.ops.convolution import conv2d
from seresnext_jax.ops.cpu import native
from seresnext_jax.ops.cpu.native import CompilationError, load_library
from seresnext_jax.ops.reference import conv2d_reference
from tests.ops.cpu_kernel import forget_the_cpu_kernel
from tests.programs import done


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where compiled libraries are kept."""
    folder = tmp_path / "home" / "native"
    monkeypatch.setattr(native, "_FOLDER", str(folder))
    monkeypatch.delenv("CXX", raising=False)
    return folder


def source(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "answer.cc"
    path.write_text(text)
    return path


def test_a_library_is_compiled_once_for_each_source(folder: Path, tmp_path: Path) -> None:
    first = source(tmp_path, 'extern "C" int answer() { return 42; }')
    assert load_library(first).answer() == 42
    (made,) = folder.iterdir()
    before = made.stat()
    assert load_library(first).answer() == 42
    after = made.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    changed = source(tmp_path, 'extern "C" int answer() { return 43; }')
    assert load_library(changed).answer() == 43
    assert len(list(folder.iterdir())) == 2


def test_a_library_of_another_processor_is_not_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = source(tmp_path, 'extern "C" int answer() { return 42; }')
    load_library(path)
    monkeypatch.setattr(native, "_processor", lambda: "another")
    load_library(path)
    assert len(list(folder.iterdir())) == 2


def test_a_broken_library_is_compiled_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = source(tmp_path, 'extern "C" int answer() { return 42; }')
    load_library(path)
    (made,) = folder.iterdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / made.name).write_bytes(made.read_bytes()[:100])
    monkeypatch.setattr(native, "_FOLDER", str(elsewhere))
    assert load_library(path).answer() == 42


def test_a_failing_compiler_is_one_line_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CompilationError, match=r"^c\+\+: .*answer\.cc:1:.*'?wrong'?.*$"):
        load_library(source(tmp_path, "wrong syntax;"))
    assert list(folder.iterdir()) == []


def test_no_compiler_is_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler -v")
    message = r"the C\+\+ compiler '/no/such/compiler' was not found: install"
    with pytest.raises(CompilationError, match=message):
        load_library(source(tmp_path, ""))


def test_an_unreadable_cxx_is_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "'g++")
    with pytest.raises(CompilationError, match="CXX can't be read"):
        load_library(source(tmp_path, ""))


def test_a_folder_that_cannot_be_written_is_one_line(folder: Path, tmp_path: Path) -> None:
    folder.parent.write_text("a file")
    with pytest.raises(CompilationError, match=str(folder)):
        load_library(source(tmp_path, ""))


def test_without_a_compiler_convolutions_are_the_same_and_it_is_said_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(0).normal
    x = jnp.asarray(draw(size=(2, 8, 8, 32)), jnp.float32)
    kernel = jnp.asarray(draw(size=(3, 3, 4, 32)), jnp.float32)
    monkeypatch.setenv("CXX", "/no/such/compiler")
    forget_the_cpu_kernel()
    try:
        with pytest.warns(
            RuntimeWarning, match=r"run without their C\+\+ kernel.*/no/such"
        ) as said:
            y = [conv2d(x, kernel, padding=1, groups=8) for _ in range(2)]
    finally:
        forget_the_cpu_kernel()
    assert len(said) == 1
    plain = conv2d_reference(x, kernel, padding=1, groups=8)
    np.testing.assert_allclose(y, [plain, plain], atol=1e-5)


def test_a_program_without_a_compiler_says_so_in_one_line(tmp_path: Path) -> None:
    words = "infer --model.arch se-resnext-tiny --data.image-size 32 --batch-sizes 1 --steps 1"
    command = ["benchmark.py", *words.split(), "--warmup", "0", "--compilation-cache", ""]
    home = {"CXX": "/no/such/compiler", "HOME": str(tmp_path)}
    program = done(command, env=home)
    assert re.fullmatch(
        r"warning: .* without their C\+\+ kernel.*: .*'/no/such/compiler'.*\n", program.stderr
    )
