"""Lets a run outlive stdout and stderr, as in ``python train.py | tee log`` if tee is killed."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Let writing to stdout and stderr succeed even after their readers have gone away."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, stream and LastingStream(stream)) for stream in before)
    try:
        yield
    finally:
        for stream in sys.stdout, sys.stderr:
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


class LastingStream:
    """A text stream that discards what can't be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or discard."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, or discard."""
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError:  # a closed pipe or terminal; the stream's buffer is discarded as well
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
