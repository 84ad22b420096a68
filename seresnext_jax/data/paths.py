"""Millions of paths in little memory: one array of bytes instead of a Python string for each."""

import os
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np


class Paths(Sequence[str]):
    """M strings, packed: about 10 bytes each besides their characters.

    A string with undecodable bytes keeps them, as in `os.fsdecode`.
    """

    def __init__(self, packed: np.ndarray) -> None:
        """Wrap strings that are packed already: `packed` is uint8, and a 0 ends each string."""
        self.packed = packed
        self._ends = np.flatnonzero(packed == 0)

    @staticmethod
    def pack(strings: Sequence[str], prefix: str = "") -> "Paths":
        """Pack strings, each with a prefix; none of them may contain a zero byte."""
        packed = prefix + f"\0{prefix}".join(strings) + "\0" if strings else ""
        return Paths(np.frombuffer(os.fsencode(packed), np.uint8))

    @staticmethod
    def join(parts: Sequence["Paths"]) -> "Paths":
        """One sequence of all strings of the parts."""
        return Paths(np.concatenate([part.packed for part in parts] or [np.empty(0, np.uint8)]))

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[str]:
        # Decoding all at once is faster than one after the other.
        return iter(os.fsdecode(self.packed.tobytes()).split("\0")[:-1])

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = self._ends[index - 1] + 1 if index else 0
        return os.fsdecode(self.packed[start : self._ends[index]].tobytes())

    def rows(self, index: np.ndarray, prefix: str = "") -> np.ndarray:
        """The strings `index` as rows of bytes, without a Python object for each.

        Args:
          index: (R,) int64.
          prefix: put before each string.

        Returns:
          (R, L) uint8, padded with zeros; L is the length of the longest prefixed string plus 1.
        """
        ends = self._ends[index]
        starts = np.where(index == 0, 0, self._ends[index - 1] + 1)
        head = np.frombuffer(os.fsencode(prefix), np.uint8)
        columns = np.arange(int((ends - starts).max(initial=0)) + 1)
        where = np.minimum(starts[:, None] + columns, ends[:, None])
        rows = np.empty((len(index), len(head) + len(columns)), np.uint8)
        rows[:, : len(head)] = head
        rows[:, len(head) :] = self.packed[where]
        return rows
