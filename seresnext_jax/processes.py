"""The processes of one run: joining the others, agreeing with them, and failing without them."""

import os
import re
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from seresnext_jax.errors import UserError, fixable_by_the_user

HEARTBEAT_TIMEOUT = 30
"""Seconds without a sign of life from one process after which the others abort; JAX says 100."""
SHUTDOWN_TIMEOUT = 60
"""Seconds that a process waits at its end for the others before all abort; JAX says 300."""
EXIT_OTHERS_LOST = 76
"""Exit status of a process whose computation with the others failed (sysexits: EX_PROTOCOL)."""

_COMMUNICATION = (
    *("ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "FAILED_PRECONDITION"),
    *("INTERNAL", "UNAVAILABLE", "UNKNOWN"),
)
"""How XLA names the errors of a transport: Gloo's, NCCL's, the coordination service's."""


def sum_over_processes(number: int) -> int:
    """The sum of every process's number; all of them must ask."""
    return int(np.sum(multihost_utils.process_allgather(np.int32(number))))


def initialize_distributed(*, coordinator: str, num_processes: int, process_id: int) -> None:
    """Join the other processes of this run, if there are any; call before any other JAX function.

    Taken from the arguments, else from torchrun's variables (MASTER_ADDR, MASTER_PORT,
    WORLD_SIZE, RANK, LOCAL_RANK), else from Slurm or Open MPI, which JAX recognises itself.

    Raises:
      UserError: the arguments or variables are incomplete, or are no numbers or no address.
    """
    local_device = None
    if coordinator or num_processes or process_id >= 0:
        if not (coordinator and num_processes and process_id >= 0):
            raise UserError(
                "--distributed.coordinator, --distributed.num-processes and "
                "--distributed.process-id belong together: give all three or none"
            )
    elif _variable("WORLD_SIZE", 1) > 1 and {"MASTER_ADDR", "RANK"} <= os.environ.keys():
        port = _variable("MASTER_PORT", 29500)
        coordinator = f"{os.environ['MASTER_ADDR']}:{port}"
        num_processes, process_id = _variable("WORLD_SIZE", 1), _variable("RANK", 0)
        if _variable("LOCAL_WORLD_SIZE", 1) > 1:  # else the one process of a host has all its GPUs
            local_device = _variable("LOCAL_RANK", 0)
    elif _variable("SLURM_NTASKS", 1) > 1 or _variable("OMPI_COMM_WORLD_SIZE", 1) > 1:
        _join()
        return
    if num_processes > 1:
        if process_id >= num_processes:
            raise UserError(
                f"the process has the number {process_id} of {num_processes}: they count from 0 to "
                f"{num_processes - 1} (--distributed.process-id, or RANK of torchrun)"
            )
        if not re.fullmatch(r"\S+:\d{1,5}", coordinator):
            raise UserError(
                f"the coordinator {coordinator!r} is no host:port: give the address of process 0 "
                "and a free port, such as --distributed.coordinator node1:29500"
            )
        _join(
            coordinator_address=coordinator,
            num_processes=num_processes,
            process_id=process_id,
            local_device_ids=local_device,
        )


def _join(**where: Any) -> None:
    # JAX would take SIGTERM for itself; run/stop.py handles it.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
        **where,
    )


def _variable(name: str, default: int) -> int:
    """A number from the environment."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UserError(f"the environment variable {name} is {text!r}: it must be a whole number")
    return int(text)


Main = Callable[[list[str]], int]


def fails_alone(main: Main) -> Main:
    """Let an error in one of several processes end that process at once, without the others.

    They are in a computation that waits for this one, and to leave in order would mean to wait for
    them in turn. Without it their computation fails, or JAX misses its heartbeat and ends them.
    """

    @wraps(main)
    def guarded(argv: list[str]) -> int:
        try:
            return main(argv)
        except Exception as error:
            if not jax.distributed.is_initialized():
                raise
            status = _explain(error, debug="--debug" in argv)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    return guarded


def _explain(error: Exception, *, debug: bool) -> int:
    """Print why this process ends before the others; returns its exit status."""
    known, lost = fixable_by_the_user(error), _is_of_communication(error)
    if debug or not (known or lost):
        traceback.print_exc()
    if known:
        print(f"error: {known}", file=sys.stderr)
        return 2
    if not lost:
        return 1
    cause = str(error).partition("\n")[0][:200]
    print(
        f"error: a computation with the other processes failed ({cause}): one of them has ended, "
        "its output says why; then start all of them again with --resume auto",
        file=sys.stderr,
    )
    return EXIT_OTHERS_LOST


def _is_of_communication(error: Exception) -> bool:
    """Whether the runtime failed to exchange arrays or messages with the other processes.

    JAX raises that as its own error or, from Gloo, as a ValueError; either begins with XLA's name
    of the kind.
    """
    if not isinstance(error, jax.errors.JaxRuntimeError | ValueError):
        return False
    return str(error).partition(":")[0] in _COMMUNICATION
