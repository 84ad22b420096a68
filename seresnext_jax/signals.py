"""SIGTERM and SIGINT as a request to stop after the step at hand, on all processes at once."""

import os
import signal
import sys
from types import FrameType

import jax
from jax.experimental import multihost_utils

EXIT_STOPPED = 75
"""Exit status of a run that saved and stopped because it was told to (sysexits: EX_TEMPFAIL)."""


class StopRequest:
    """Remembers a signal until the loop asks; a second signal ends the process at once.

    With several processes SIGTERM belongs to JAX's preemption service, which makes all of them
    stop after the same step; SIGINT is handed on to it.
    """

    def __init__(self) -> None:
        self._requested = False
        signal.signal(signal.SIGINT, self._handle)
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._requested:
            os._exit(128 + number)
        self._requested = True
        name = signal.Signals(number).name
        # A print may be under way in the interrupted code, so this goes around its buffers.
        os.write(sys.stderr.fileno(), f"{name}: stopping after this step\n".encode())
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def requested(self, step: int) -> bool:
        """Whether to stop after optimizer step `step`; ask at every step, on every process."""
        if jax.process_count() == 1:
            return self._requested
        return bool(multihost_utils.reached_preemption_sync_point(step))
