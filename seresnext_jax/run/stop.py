"""Turns signals into a request to stop after the current step, on all processes at once."""

import os
import signal
import sys
import threading
from contextlib import suppress

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seresnext_jax.mesh import DATA_AXIS, replicated

EXIT_STOPPED = 75
"""Exit status of a run that saved and stopped because it was told to (sysexits: EX_TEMPFAIL)."""
_URGENT = (signal.SIGINT, signal.SIGTERM)
"""A second one of these ends the process at once."""
_SIGNALS = (*_URGENT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""A closing terminal sends SIGHUP; schedulers may send SIGUSR1 or SIGUSR2 before a time limit,
and SIGTERM at it."""


class StopRequest:
    """Remembers a signal until the loop asks; a second SIGINT or SIGTERM ends the process at once.

    Python runs its signal handlers between two instructions of the main thread, so not during a
    compilation. Therefore a thread receives the signal numbers through a pipe.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.stopping = False
        """Whether `requested` has returned True."""
        self._signalled = False
        self._by_device = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
        self._local_devices = len(mesh.local_devices)
        self._sum = jax.jit(jnp.sum, out_shardings=replicated(mesh))
        self._answer: jax.Array | None = None
        pipe, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write)
        for number in _SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # the program was started with nohup
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._watch, args=(pipe,), daemon=True).start()

    def _watch(self, pipe: int) -> None:
        urgent = 0
        while urgent < 2:
            (number,) = os.read(pipe, 1)
            urgent += number in _URGENT
            if not self._signalled:
                self._signalled = True
                _announce(signal.Signals(number).name)
        os._exit(128 + number)

    def requested(self) -> bool:
        """Whether to stop; every process must call this after every step and every batch.

        With several processes, each gets the common answer to the previous call, which the devices
        have ready, so none waits.
        """
        if jax.process_count() == 1:
            self.stopping = self._signalled
        elif not self.stopping:
            before, self._answer = self._answer, self._ask()
            self.stopping = before is not None and bool(before)
        return self.stopping

    def _ask(self) -> jax.Array:
        """Start counting the devices whose process received a signal; returns an int32 scalar."""
        flags = np.full(self._local_devices, self._signalled, np.int32)
        return self._sum(jax.make_array_from_process_local_data(self._by_device, flags))


def _announce(name: str) -> None:
    """Print that a signal has arrived. The main thread may be printing, so this bypasses the
    buffers of `print`.
    """
    with suppress(OSError, AttributeError):  # the console has gone away
        os.write(sys.stderr.fileno(), f"{name}: stopping after this step\n".encode())
