"""How a process ends after an error while the others still run."""

import os
import sys
import traceback
from collections.abc import Callable
from functools import wraps

import jax

from seresnext_jax.errors import CommonError, fixable_by_the_user

EXIT_OTHERS_LOST = 76
"""Exit status of a process whose computation with the others failed (sysexits: EX_PROTOCOL)."""

_COMMUNICATION = (
    *("ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "FAILED_PRECONDITION"),
    *("INTERNAL", "UNAVAILABLE", "UNKNOWN"),
)
"""Status codes of communication errors from Gloo, NCCL or the coordination service."""

Main = Callable[[list[str]], int]


def fails_alone(main: Main) -> Main:
    """Wrap `main` so that one of several processes ends at once on an error of its own.

    The others are in a computation that waits for this process, and a normal exit would wait for
    them. After this exit their computation fails, or JAX misses the heartbeat and ends them.
    """

    @wraps(main)
    def guarded(argv: list[str]) -> int:
        try:
            return main(argv)
        except Exception as error:
            if isinstance(error, CommonError) or not jax.distributed.is_initialized():
                raise
            status = _explain(error, debug="--debug" in argv)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    return guarded


def _explain(error: Exception, *, debug: bool) -> int:
    """Print why this process ends before the others; returns its exit status."""
    known, lost = fixable_by_the_user(error), is_of_communication(error)
    if debug or not (known or lost):
        traceback.print_exc()
    if known:
        print(f"error: {known}", file=sys.stderr)
        return 2
    if not lost:
        return 1
    cause = str(error).partition("\n")[0][:200]
    print(
        f"error: a computation with the other processes failed ({cause}): one of them has "
        "probably ended; see its output, then start all of them again (train.py: --resume auto)",
        file=sys.stderr,
    )
    return EXIT_OTHERS_LOST


def is_of_communication(error: Exception) -> bool:
    """Whether the runtime failed to exchange arrays or messages with the other processes.

    JAX raises its own error or, for Gloo, a ValueError; both begin with the status code.
    """
    if not isinstance(error, jax.errors.JaxRuntimeError | ValueError):
        return False
    return str(error).partition(":")[0] in _COMMUNICATION
