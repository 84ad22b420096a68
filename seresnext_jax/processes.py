"""The processes of one run: they join each other, agree, and end if one of them is lost."""

import json
import os
import re
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from seresnext_jax.errors import CommonError, UserError, fixable_by_the_user, shown
from seresnext_jax.launchers import ALONE, HOW_TO_PLACE, Place, find_place, is_alone_on_host

JOIN_TIMEOUT = 300
"""Seconds that a process waits for the others at the start."""
HEARTBEAT_TIMEOUT = 30
"""Seconds without a heartbeat of a process after which the others abort; JAX's default is 100."""
SHUTDOWN_TIMEOUT = 60
"""Seconds that a process waits for the others at the end before all abort; JAX's default is 300."""
EXIT_OTHERS_LOST = 76
"""Exit status of a process whose computation with the others failed (sysexits: EX_PROTOCOL)."""

_COMMUNICATION = (
    *("ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "FAILED_PRECONDITION"),
    *("INTERNAL", "UNAVAILABLE", "UNKNOWN"),
)
"""Status codes of communication errors from Gloo, NCCL or the coordination service."""


def sum_over_processes(number: int) -> int:
    """The sum of a number over the processes; all of them must call this."""
    return int(np.sum(multihost_utils.process_allgather(np.int32(number))))


def everyones(value: Any) -> list[Any]:
    """The value of each process, by rank; all processes must call this.

    Args:
      value: this process's, as JSON has it: text, numbers, and lists of them.
    """
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(text.size))
    padded = np.pad(text, (0, sizes.max() - text.size))
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def processes_on_this_host() -> int:
    """The number of this run's processes on this machine; all processes must call this."""
    host = socket.gethostname()
    return everyones(host).count(host)


def cores_on_this_host() -> int:
    """The number of logical CPUs of this machine in the union of its processes' CPU affinities.

    A scheduler may bind each process to different CPUs. All processes must call this.
    """
    here = socket.gethostname()
    found = everyones([here, sorted(os.sched_getaffinity(0))])
    return len({cpu for host, cpus in found if host == here for cpu in cpus})


def processes_by(key: str) -> dict[str, str]:
    """Group the processes of this run by a key; all of them must call this.

    Args:
      key: the key of this process.

    Returns:
      For each key, the ranks and hosts of its processes: ``processes 0, 1 on node1``.
    """
    found: dict[str, tuple[list[str], dict[str, None]]] = {}
    for number, (their_key, host) in enumerate(everyones([key, socket.gethostname()])):
        numbers, hosts = found.setdefault(their_key, ([], {}))
        numbers.append(str(number))
        hosts[host] = None
    return {
        their_key: f"process{'es' * (len(numbers) > 1)} {', '.join(numbers)} on {', '.join(hosts)}"
        for their_key, (numbers, hosts) in found.items()
    }


def on_one_process(action: Callable[[], None]) -> None:
    """Run `action`, such as a change of shared files, on process 0; all processes must call this.

    The other processes wait until it has finished.
    """
    if jax.process_index() == 0:
        action()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("seresnext_jax.on_one_process")


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
