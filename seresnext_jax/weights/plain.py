"""Classes and objects of a pickle, as names and data without code."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Build = Callable[..., Any]

MOST_STEPS = 3_000_000
"""Most operations for one file. A checkpoint of a large network needs a few hundred thousand."""
_MOST_KEY_ITEMS = 16


class NotPlainError(Exception):
    """An object that is not plain data; the message is its name."""


@dataclass(eq=False)
class Known:
    """A class or function that a pickle may name."""

    name: str
    build: Build | None = None
    """Makes the value from the arguments in the file; None: it may be named, but not called."""
    dtype: str | None = None
    """The dtype of the elements, if this is a PyTorch dtype or storage class."""


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


def checked_key(value: Any) -> Any:
    """Check that a dictionary key or set member is of a kind that is quick to hash.

    Raises:
      ValueError: it is of another kind, such as a tuple in a tuple.
    """
    if isinstance(value, tuple) and len(value) <= _MOST_KEY_ITEMS:
        if any(isinstance(item, tuple) for item in value):
            raise ValueError("a nested key")
        for item in value:
            checked_key(item)
        return value
    if isinstance(value, int) and abs(value) >= 2**64:
        raise ValueError("a key that is too large")
    if value is None or isinstance(
        value, str | int | float | bytes | complex | Known | Record | np.generic
    ):
        return value
    raise ValueError("a key of another kind")


def to_bytes(value: Any = b"", *_: Any) -> bytes:
    """The value as bytes; Python 2 saved bytes as text.

    Raises:
      ValueError: the value is something else.
    """
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, str):
        return value.encode("latin-1")
    raise ValueError("bytes expected")
