"""Compiles the C++ files of this folder on first use, for the processor of this machine.

So the package can be installed without a build step.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import jax
import jaxlib

_FOLDER = "~/.cache/seresnext_jax/native"
_OPTIONS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared")


class CompilationError(Exception):
    """The library can't be compiled or loaded; the message is one line with the cause."""


def load_library(source: Path) -> ctypes.CDLL:
    """Compile `source` to a library, kept in ~/.cache/seresnext_jax/native, and load it.

    The compiler is $CXX, or `c++`. The source may include XLA's FFI headers.

    Raises:
      CompilationError: there is no compiler, it fails, or the library can't be written or loaded.
    """
    try:
        compiler = shlex.split(os.environ.get("CXX") or "c++")
    except ValueError as error:
        raise CompilationError(f"CXX can't be read: {error}") from error
    command = [*compiler, *_OPTIONS]
    made_from = "\0".join([source.read_text(), *command, jaxlib.__version__, _processor()])
    digest = hashlib.sha256(made_from.encode()).hexdigest()[:16]
    library = Path(os.path.expanduser(_FOLDER)) / f"{source.stem}-{digest}.so"
    with suppress(OSError):  # it is not there, or can't be used
        return ctypes.CDLL(str(library))
    try:
        library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _compile([*command, f"-isystem{jax.ffi.include_dir()}", str(source)], library)
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise CompilationError(str(error)) from error


def _compile(command: list[str], library: Path) -> None:
    """Compile to `library` atomically, as other processes may compile it at the same time."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        try:
            # In a session of its own, so that Ctrl-C in a terminal, which asks the program to
            # finish its step, does not end the compiler.
            done = subprocess.run(
                [*command, "-o", str(made)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                env={**os.environ, "LC_ALL": "C"},
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise CompilationError(
                f"the C++ compiler {command[0]!r} was not found: install one (Debian: g++), or "
                "name another in CXX"
            ) from error
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error:" in line]
            cause = errors[0] if errors else f"status {done.returncode}"
            raise CompilationError(f"{command[0]}: {cause}")
        made.replace(library)


def _processor() -> str:
    """A text that identifies the processor, on which -march=native depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.platform()
    names = ("model name", "flags", "Features", "CPU part")
    return "\n".join(line for line in lines if line.startswith(names))
