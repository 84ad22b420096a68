"""What a process says after an error while others still run, and how it exits."""

import jax
import pytest

from seresnext_jax.processes.fail import EXIT_OTHERS_LOST, fails_alone

RAISED = {
    "other": jax.errors.JaxRuntimeError("FAILED_PRECONDITION: Buffer Definition Event: Gloo"),
    "dispatch": ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer"),
    "memory": jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"),
    "bug": ValueError("not enough values to unpack"),
}


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("other", EXIT_OTHERS_LOST, "error: a computation with the other processes failed"),
        ("dispatch", EXIT_OTHERS_LOST, "error: a computation with the other processes failed"),
        ("memory", 2, "error: the device is out of memory (Out of memory allocating 9"),
        ("bug", 1, "Traceback"),
    ],
)
def test_what_is_the_others_fault(
    name: str,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The runtime's errors of a transport, however raised, and no others."""

    def main(argv: list[str]) -> int:
        raise RAISED[name]

    def exit_at_once(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr("seresnext_jax.processes.fail.os._exit", exit_at_once)
    with pytest.raises(SystemExit) as ended:
        fails_alone(main)([])
    assert ended.value.code == status
    err = capsys.readouterr().err
    assert said in err
    assert ("Traceback" in err) == (status == 1)
