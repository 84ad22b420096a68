"""Classes and objects of a pickle, as names and data without code."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Build = Callable[..., Any]

MOST_STEPS = 3_000_000
"""Most operations for one file. A checkpoint of a large network needs a few hundred thousand."""


class NotPlainError(Exception):
    """An object that is not plain data; the message is its name."""


@dataclass(eq=False)
class Known:
    """A class or function that a pickle may name."""

    name: str
    build: Build | None = None
    """Makes the value from the arguments in the file; None: it may be named, but not called."""
    dtype: str | None = None
    """The type of the numbers, if this is one of PyTorch's types or storages."""


@dataclass(eq=False)
class Record:
    """An object of a class that isn't imported: its name and the data it was saved with."""

    name: str
    args: tuple[Any, ...] = ()
    state: dict[Any, Any] = field(default_factory=dict)


class Budget:
    """Counts the work for one file, so that a small file can't cause a lot of it."""

    def __init__(self, steps: int = MOST_STEPS) -> None:
        self._left = steps

    def spend(self, steps: int) -> None:
        """Count some steps.

        Raises:
          ValueError: there were too many.
        """
        self._left -= steps
        if self._left < 0:
            raise ValueError("too many operations")
