"""A program in its own process, which runs and times steps when it is told to.

JAX takes most of a GPU's memory when it starts, and each framework has its own threads: two of them
in one process disturb each other.

    python -m benchmarks.process     # the child; it reads a pickled `Task`, then requests as JSON
"""

import json
import os
import pickle
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

from seresnext_jax.cli import run
from seresnext_jax.config import Config
from seresnext_jax.errors import UserError

ROOT = Path(__file__).parent.parent
COMMAND = ("-m", "benchmarks.process")
"""What Python runs as the child."""
Framework = Literal["jax", "torch"]
Work = Literal["train", "infer"]


@dataclass(frozen=True)
class Task:
    """A program to get ready."""

    framework: Framework
    work: Work
    config: Config
    devices: int = 1
    compilation_cache: str = ""
    """An absolute path, as `config.data.root` is: the child runs in another folder."""


@dataclass(frozen=True)
class Facts:
    """What a program says of itself when it is ready."""

    device: str
    """JAX's or PyTorch's name of the first device, or ``cpu``."""
    compile_seconds: float
    memory_bytes: int | None
    bytes_accessed: float | None


class Process:
    """The parent's handle of a program; a context manager that ends it.

    It gets ready by itself; the first of the methods waits for that.
    """

    def __init__(self, task: Task, *, share_gpu: bool) -> None:
        """Start the child.

        Args:
          share_gpu: another process runs on the same GPU; JAX then leaves half of its memory.
        """
        self.task = task
        self._child = subprocess.Popen(
            [sys.executable, *COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={"XLA_PYTHON_CLIENT_MEM_FRACTION": ".5", **os.environ} if share_gpu else None,
        )
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):
            pickle.dump(task, self._child.stdin)
            self._child.stdin.flush()
        self._facts: Facts | None = None

    def __enter__(self) -> "Process":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._child.kill()
        self._child.communicate()

    def facts(self) -> Facts:
        """Wait until the program is ready.

        Raises:
          UserError: it ended; its own message is on standard error.
        """
        if self._facts is None:
            self._facts = Facts(**self._answer())
        return self._facts

    def time_each(self, steps: int) -> list[float]:
        """Run steps and wait for each: its latency in seconds."""
        return self._ask(steps=steps, wait="each")["seconds"]

    def time_together(self, steps: int) -> list[float]:
        """Run steps and wait once, at the end, as training does: seconds of a step on average."""
        return self._ask(steps=steps, wait="end")["seconds"]

    def data_waits(self, steps: int) -> list[float]:
        """Seconds that each of the last steps waited for its images."""
        return self._ask(data_waits=steps)["seconds"]

    def profile(self, steps: int) -> dict[str, float]:
        """Milliseconds of a step on the device, by operation (`profile.profile_steps`)."""
        return self._ask(profile=steps)["operations"]

    def _ask(self, **request: Any) -> Any:
        self.facts()
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, as the missing answer will tell
            self._child.stdin.write(json.dumps(request).encode() + b"\n")
            self._child.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            task = self.task
            raise UserError(
                f"{task.framework} {task.work} {task.config.precision} batch "
                f"{task.config.batch_size} ended with status {self._child.wait()}: see above"
            )
        return json.loads(line)


# ---- the child ---------------------------------------------------------------------------------


def main() -> None:
    """Get a program ready and answer requests until the parent is gone."""
    task: Task = pickle.load(sys.stdin.buffer)
    answers = _take_stdout()
    program, device = _prepare(task)

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    facts = Facts(device, program.compile_seconds, program.memory_bytes, program.bytes_accessed)
    answer(asdict(facts))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "profile" in request:
            from benchmarks.profile import profile_steps

            operations = profile_steps(program.dispatch, program.wait, request["profile"])
            answer({"operations": operations})
        elif "data_waits" in request:
            answer({"seconds": program.data_waits[-request["data_waits"] :]})
        else:
            timed = _time_each if request["wait"] == "each" else _time_together
            answer({"seconds": timed(program, request["steps"])})


def _take_stdout() -> IO[str]:
    """The pipe to the parent, for answers alone: what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _prepare(task: Task) -> tuple[Any, str]:
    """The program, and the name of its device. The other framework takes no memory there."""
    from benchmarks import programs
    from seresnext_jax.run.runtime import keep_freed_memory, use_compilation_cache

    keep_freed_memory()
    if task.framework == "torch":
        import torch

        make = programs.torch_train if task.work == "train" else programs.torch_infer
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        return make(task.config), name

    import jax

    use_compilation_cache(task.compilation_cache)
    if task.devices > jax.device_count():
        raise UserError(
            f"--devices {task.devices} but there are {jax.device_count()}: on a CPU set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={task.devices}"
        )
    name = jax.devices()[0].device_kind
    if task.work == "train":
        return programs.jax_train(task.config, devices=task.devices), name
    return programs.jax_infer(task.config), name


def _time_each(program: Any, steps: int) -> list[float]:
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        program.dispatch()
        program.wait()
        seconds.append(time.perf_counter() - started)
    return seconds


def _time_together(program: Any, steps: int) -> list[float]:
    started = time.perf_counter()
    for _ in range(steps):
        program.dispatch()
    program.wait()
    return [(time.perf_counter() - started) / steps]


if __name__ == "__main__":
    run(lambda _: main())
