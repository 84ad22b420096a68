"""Runs a program in its own process and lets it time its steps on request.

JAX takes most of a GPU's memory when it starts, and each framework has its own threads: two
frameworks in one process would disturb each other.
"""

import multiprocessing
import os
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

from seresnext_jax.cli import run
from seresnext_jax.config import Config
from seresnext_jax.errors import UserError, fixable_by_the_user

Framework = Literal["jax", "torch"]
Work = Literal["train", "infer"]
Request = Literal["time_each", "time_together", "data_waits", "profile"]
"""The methods of `programs.Program` that the parent can call."""


@dataclass(frozen=True)
class Task:
    """A program to prepare."""

    framework: Framework
    work: Work
    config: Config
    devices: int = 1


@dataclass(frozen=True)
class Facts:
    """A program's device, compilation time and memory, known when it is ready."""

    device: str
    """JAX's or PyTorch's name for the first device, or ``cpu``."""
    compile_seconds: float
    memory_bytes: int | None = None
    """Peak of temporary buffers per device, if the compiler reports it."""
    bytes_accessed: float | None = None
    """Memory traffic of one step per device by the compiler's count, if it reports it."""


class Process:
    """The parent's handle for a program; close it after use.

    The program starts to prepare at once; the first `facts` or `ask` waits until it is ready.
    """

    def __init__(self, task: Task, *, share_gpu: bool) -> None:
        """Start the child.

        Args:
          share_gpu: another process runs on the same GPU; JAX then leaves half of its memory.
        """
        context = multiprocessing.get_context("spawn")
        self.task = task
        self._pipe, childs_end = context.Pipe()
        self._child = context.Process(target=serve, args=(task, childs_end, share_gpu))
        self._child.start()
        childs_end.close()
        self._facts: Facts | None = None

    def close(self) -> None:
        """End the program's process."""
        self._child.kill()
        self._child.join()

    def facts(self) -> Facts:
        """Wait until the program is ready; returns its facts.

        Raises:
          UserError: the program could not be prepared, or its process ended.
        """
        if self._facts is None:
            self._facts = self._receive()
        return self._facts

    def ask(self, request: Request, steps: int) -> Any:
        """Call a method of the `programs.Program` and return its result.

        Raises:
          UserError: as `facts`, or the method raised one.
        """
        self.facts()
        with suppress(OSError):  # the child has ended; the missing answer will show it
            self._pipe.send((request, steps))
        return self._receive()

    def _receive(self) -> Any:
        task = self.task
        name = (
            f"{task.framework} {task.work} {task.config.precision} batch {task.config.batch_size}"
        )
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError) as lost:
            self._child.join()
            status = self._child.exitcode
            raise UserError(f"{name} ended with status {status}: see above") from lost
        if isinstance(answer, UserError):
            raise UserError(f"{name}: {answer}") from answer
        return answer


def serve(task: Task, pipe: Connection, share_gpu: bool) -> None:
    """Run in the child: prepare a program and answer requests until the parent is gone."""
    os.dup2(2, 1)  # what libraries print must not get into the table on standard output
    if share_gpu:
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", ".5")

    def main(argv: list[str]) -> None:
        try:
            answer_requests(task, pipe)
        except Exception as error:
            known = fixable_by_the_user(error)
            if known is None:
                raise
            pipe.send(UserError(str(known)))  # the parent prints it

    run(main)


def answer_requests(task: Task, pipe: Connection) -> None:
    """Prepare a program, report that it is ready, and call its methods until the parent is gone."""
    from benchmarks.programs import make_program  # late: the parent needs none of it

    program = make_program(task)
    pipe.send(program.facts)
    while True:
        try:
            request, steps = pipe.recv()
        except EOFError:
            return
        pipe.send(getattr(program, request)(steps))
