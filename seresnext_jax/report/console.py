"""Output for people: a progress bar on a terminal, plain lines in a log file."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

from rich.console import Console as Terminal
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from seresnext_jax.report.sinks import writing


class Console:
    """The output of one process; prints nothing if `enabled` is False."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self._terminal = Terminal(quiet=not enabled, highlight=False, emoji=False)
        self._bar: Progress | None = None
        self._state = Text()
        self._log: TextIO | None = None

    @contextmanager
    def logging_to(self, path: Path) -> Iterator[None]:
        """Also append each line, with its time, to a file."""
        if not self.enabled:
            yield
            return
        with writing(path):
            file = path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
        self._log = file
        try:
            yield
        finally:
            self._log = None
            with suppress(OSError):
                file.close()

    def log(self, text: str) -> None:
        """Write a line to the log file only."""
        if self._log is not None:
            with suppress(OSError):  # the report will fail for the same reason
                self._log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {text}\n")

    def note(self, text: str) -> None:
        """Print one line; escapes what can't be printed, such as file names in an old encoding."""
        printable = text.encode(errors="backslashreplace").decode()
        self.log(printable)
        self._terminal.print(printable, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a warning on stderr."""
        if self.enabled:
            self.log(f"warning: {text}")
            print(f"warning: {text}", file=sys.stderr)

    @contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Print that `what` is being compiled, and how long it took."""
        self.note(f"compiling {what} ...")
        started = time.perf_counter()
        yield
        self.note(f"compiled {what} in {time.perf_counter() - started:.1f} s")

    @contextmanager
    def epoch(self, epoch: int, epochs: int, *, done: int, steps: int) -> Iterator[None]:
        """Show a progress bar for the steps of an epoch, on a terminal only."""
        if not (self.enabled and self._terminal.is_terminal):
            yield
            return
        bar = _progress(f"epoch {epoch + 1}/{epochs}", self._terminal)
        bar.update(bar.task_ids[0], total=steps, completed=done)
        self._bar, self._state = bar, Text()
        try:
            # The newest line gets its own row: there is no room for it next to the bar.
            with Live(Group(bar, self._state), console=self._terminal, transient=True):
                yield
        finally:
            self._bar = None

    @contextmanager
    def bar(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Show a progress bar for another task; yields a function that takes (done, total).

        If the output is not a terminal, a line is printed after each tenth.
        """
        if not (self.enabled and self._terminal.is_terminal):
            yield lambda done, total: self._tenth(what, done, total)
            return
        with _progress(what, self._terminal) as bar:
            yield lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total)

    def _tenth(self, what: str, done: int, total: int) -> None:
        if 10 * done // total > 10 * (done - 1) // total:
            self.note(f"{what}: {done} of {total}")

    def step(self, done: int) -> None:
        """Set the progress bar of the epoch to `done` steps."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done)

    def train_line(self, text: str) -> None:
        """Show the newest training metrics: below the bar on a terminal, otherwise as a line."""
        if self._bar is not None:
            self.log(text)
            self._state.plain = text
        else:
            self.note(text)

    def table(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Print names and values in two columns; values are never cut, so paths can be copied."""
        width = max((len(name) for name, _ in rows), default=0)
        self.note(title)
        for name, value in rows:
            self.note(f"  {name:<{width}}  {value}")


def _progress(title: str, terminal: Terminal) -> Progress:
    """A progress bar for one task; it disappears at the end."""
    columns = BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn()
    bar = Progress(TextColumn(title), *columns, console=terminal, transient=True)
    bar.add_task("", total=None)
    return bar
