"""Which signals ask a run to stop, and which end it at once."""

import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from seresnext_jax.run.stop import EXIT_STOPPED
from tests.programs import ROOT

WAITER = """
import sys
from seresnext_jax.mesh import make_mesh
from seresnext_jax.run.stop import StopRequest
stop = StopRequest(make_mesh())
print("ready", flush=True)
while not stop.requested():
    pass
print("stopping", flush=True)
sys.stdin.readline()
sys.exit(75)
"""


def accept_hangups() -> None:
    """As in a terminal, even if the tests themselves run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def begin(preexec: Callable[[], object] = accept_hangups) -> "subprocess.Popen[str]":
    """A process that waits for a request to stop."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITER],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=preexec,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def end(process: "subprocess.Popen[str]") -> str:
    """Let it go on to its end, with the status of a stop; returns its stderr."""
    _, err = process.communicate("\n", timeout=60)
    assert process.returncode == EXIT_STOPPED, err
    return err


@pytest.mark.parametrize("first", ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGTERM"])
def test_a_signal_asks_to_stop(first: str) -> None:
    """More of the schedulers' signals, and the first SIGTERM after one, change nothing."""
    process = begin()
    process.send_signal(signal.Signals[first])
    assert process.stdout is not None and process.stdout.readline() == "stopping\n"
    for after in (signal.SIGHUP, signal.SIGUSR1):
        process.send_signal(after)
    if first != "SIGTERM":
        process.send_signal(signal.SIGTERM)
    assert end(process) == f"{first}: stopping after this step\n"


def test_the_second_urgent_signal_ends_the_process() -> None:
    process = begin()
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
    assert process.wait(60) in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    process.communicate()


def test_nohup_is_respected() -> None:
    process = begin(lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGUSR1)
    assert "SIGUSR1" in end(process)


def test_without_a_console_it_stops_as_well() -> None:
    process = begin()
    assert process.stderr is not None
    process.stderr.close()
    process.send_signal(signal.SIGHUP)
    assert process.stdout is not None and process.stdout.readline() == "stopping\n"
    process.stderr = None
    end(process)
