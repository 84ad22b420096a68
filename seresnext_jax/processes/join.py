"""How a process joins the others of its run."""

import os
import re
import signal
import sys
import threading

import jax

from seresnext_jax.errors import UserError, shown
from seresnext_jax.processes.launchers import (
    ALONE,
    HOW_TO_PLACE,
    Place,
    find_place,
    is_alone_on_host,
)

JOIN_TIMEOUT = 300
"""Seconds that a process waits for the others at the start."""
HEARTBEAT_TIMEOUT = 30
"""Seconds without a heartbeat of a process after which the others abort; JAX's default is 100."""
SHUTDOWN_TIMEOUT = 60
"""Seconds that a process waits for the others at the end before all abort; JAX's default is 300."""


def initialize_distributed(*, coordinator: str, num_processes: int, process_id: int) -> None:
    """Join the other processes of this run, if there are any; call before any other JAX function.

    The arguments override the environment, unless they are "", 0 and -1. With
    ``num_processes=1`` the process runs alone, whatever the environment says.

    Raises:
      UserError: the arguments or variables are incomplete or wrong, or JAX can't join the others.
    """
    if num_processes == 1:
        return
    if coordinator or num_processes or process_id >= 0:
        if not (coordinator and num_processes and process_id >= 0):
            raise UserError(
                "--distributed.coordinator, --distributed.num-processes and "
                "--distributed.process-id belong together: give all three or none "
                "(--distributed.num-processes 1 may be alone)"
            )
        option = "--distributed.num-processes"
        _join(_checked(Place(coordinator, num_processes, process_id, option)))
    elif place := find_place():
        _join(_checked(place))


def _checked(place: Place) -> Place:
    if place.process_id >= place.num_processes:
        raise UserError(
            f"the process has the number {place.process_id} of {place.num_processes}: they count "
            f"from 0 to {place.num_processes - 1} (--distributed.process-id, or RANK of torchrun)"
        )
    if not re.fullmatch(r"\S+:\d{1,5}", place.coordinator):
        raise UserError(
            f"the coordinator {place.coordinator!r} is not host:port: give the address of process "
            "0 and a free port, such as --distributed.coordinator node1:29500"
        )
    return place


def _join(place: Place) -> None:
    """Join the other processes; wait for them at most `JOIN_TIMEOUT` seconds.

    When JAX's own wait times out, the runtime aborts the process without an exception. So a timer
    ends the process earlier, with an error message.
    """
    waiting = (
        f"process {place.process_id} of {place.num_processes} ({place.source}), "
        f"coordinator {place.coordinator}"
    )
    print(f"{waiting}: waiting for the others; {ALONE}", flush=True)
    problem = (
        f"{waiting}: the others did not join within {JOIN_TIMEOUT} s; start all processes at "
        f"the same time and check that they reach the coordinator; {ALONE}"
    )
    timer = threading.Timer(JOIN_TIMEOUT, _end_now, [problem])
    timer.daemon = True
    # JAX would install its own SIGTERM handler; run/stop.py handles the signal.
    jax.config.update("jax_enable_preemption_service", False)
    # Python can't raise KeyboardInterrupt while the runtime waits.
    interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)
    # If options give the rank, JAX still detects which GPU of a shared host this process uses.
    is_detected = place.source.startswith("--") and not is_alone_on_host()
    timer.start()
    try:
        jax.distributed.initialize(
            coordinator_address=place.coordinator,
            num_processes=place.num_processes,
            process_id=place.process_id,
            local_device_ids=place.local_device,
            cluster_detection_method=None if is_detected else "deactivate",
            initialization_timeout=2 * JOIN_TIMEOUT,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:  # such as a port that is in use
        raise UserError(f"{waiting}: {shown(error)}; {HOW_TO_PLACE}") from error
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, interrupt)


def _end_now(problem: str) -> None:
    """Print the problem and end the process with status 2, from another thread."""
    print(f"error: {problem}", file=sys.stderr, flush=True)
    os._exit(2)
