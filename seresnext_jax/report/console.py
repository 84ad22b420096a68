"""What a person sees: a bar on a terminal, plain lines in a log file."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console as Terminal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table


class Console:
    """Calm output of one process; silent where `enabled` is False."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self._terminal = Terminal(quiet=not enabled, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def note(self, text: str) -> None:
        """One line."""
        self._terminal.print(text, markup=False)

    def warn(self, text: str) -> None:
        """One line on stderr."""
        if self.enabled:
            print(f"warning: {text}", file=sys.stderr)

    @contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Say that `what` is being compiled, and how long it took."""
        self.note(f"compiling {what} ...")
        started = time.perf_counter()
        yield
        self.note(f"compiled {what} in {time.perf_counter() - started:.1f} s")

    @contextmanager
    def epoch(self, epoch: int, epochs: int, *, done: int, steps: int) -> Iterator[None]:
        """Show a bar over the steps of an epoch; on a terminal only."""
        if not (self.enabled and self._terminal.is_terminal):
            yield
            return
        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[state]}"),
        )
        with Progress(*columns, console=self._terminal, transient=True) as bar:
            self._bar = bar
            name = f"{epoch + 1}/{epochs}"
            self._task = bar.add_task("", total=steps, completed=done, epoch=name, state="")
            yield
        self._bar = None

    def step(self, done: int) -> None:
        """Move the bar to `done` steps."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def train_line(self, text: str) -> None:
        """The newest means: beside the bar on a terminal, a line elsewhere."""
        if self._bar is not None:
            self._bar.update(self._task, state=text)
        else:
            self.note(text)

    def table(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Names and values in two columns."""
        table = Table(title=title, show_header=False, title_justify="left")
        for name, value in rows:
            table.add_row(name, value)
        self._terminal.print(table)
