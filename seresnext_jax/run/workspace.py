"""The workspace of a run while it is in use: locked, with a log of what the console shows."""

import errno
import fcntl
import os
import socket
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax

from seresnext_jax.errors import UserError, fixable_by_the_user
from seresnext_jax.processes.agree import sum_over_processes
from seresnext_jax.report.console import Console
from seresnext_jax.report.names import LOCK_NAME, LOG_NAME
from seresnext_jax.run.streams import lasting_streams

_TAKEN = (errno.EAGAIN, errno.EACCES)


@contextmanager
def open_workspace(workspace: Path, console: Console) -> Iterator[None]:
    """Create and lock a workspace for this run, and log into it until the end.

    A console that goes away does not end the run. All processes of a run must call this.

    Raises:
      UserError: the workspace can't be written, or another run uses it.
    """
    check_writable(workspace)
    with locked(workspace, console), lasting_streams(), console.logging_to(workspace / LOG_NAME):
        try:
            yield
        except Exception as error:
            known = fixable_by_the_user(error)
            console.log(f"error: {known}" if known else traceback.format_exc())
            raise


def check_writable(workspace: Path) -> None:
    """Refuse a workspace that can't be created or written, without creating it.

    Raises:
      UserError: it can't be created or written; the message names it.
    """
    folder = workspace.absolute()
    while not os.path.exists(folder):
        folder = folder.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise UserError(
            f"--workspace {workspace} can't be written: make {folder} a writable folder, or choose "
            "another --workspace"
        )


@contextmanager
def locked(workspace: Path, console: Console) -> Iterator[None]:
    """Hold the lock of a workspace; the system frees it when the process ends, however it ends.

    Process 0 locks it for all processes of its run; all of them raise if another run has the lock.

    Raises:
      UserError: another run has the lock, or the lock file can't be written.
    """
    file, owner, new = None, "", not workspace.exists()
    if jax.process_index() == 0:
        file, owner = _lock(workspace, console)
    taken = file is None and jax.process_index() == 0
    if jax.process_count() > 1:
        taken = sum_over_processes(taken) > 0
    if taken:
        raise UserError(
            f"--workspace {workspace} is in use by another run{owner}: wait for its end, stop it, "
            "or choose another --workspace"
        )
    try:
        yield
    except Exception:
        if file is not None and new:
            _remove_if_unused(workspace)
        raise
    finally:
        if file is not None:
            os.close(file)


def _remove_if_unused(workspace: Path) -> None:
    """Remove the workspace of a run that was refused before it wrote anything."""
    with suppress(OSError):
        names = {path.name for path in workspace.iterdir()}
        if names <= {LOCK_NAME, LOG_NAME}:
            for name in names:
                (workspace / name).unlink()
            workspace.rmdir()


def _lock(workspace: Path, console: Console) -> tuple[int | None, str]:
    """Lock the workspace; returns the descriptor of the lock file and "".

    If another run has the lock: None and, if known, its owner in parentheses. On a file system
    without locks, warn and return the descriptor.
    """
    path = workspace / LOCK_NAME
    try:
        workspace.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _unwritable(workspace, error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            owner = os.read(file, 200).decode(errors="replace").strip()
            os.close(file)
            return None, f" ({owner})" if owner else ""
        console.warn(
            f"the file system of {workspace} has no locks ({error.strerror}): a second run in the "
            "same workspace would not be noticed"
        )
        return file, ""
    if not (path.exists() and os.path.samestat(os.fstat(file), path.stat())):
        os.close(file)
        return None, ""  # the run that had the lock has just removed it
    try:
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    except OSError as error:
        os.close(file)
        raise _unwritable(workspace, error) from error
    return file, ""


def _unwritable(workspace: Path, error: OSError) -> UserError:
    return UserError(
        f"--workspace {workspace} can't be written ({error.strerror}): free up space, make it "
        "writable, or choose another --workspace"
    )
