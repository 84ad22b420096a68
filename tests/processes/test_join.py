"""How a process finds the others of its run, and what it says while it waits for them."""

import os
import signal
from typing import Any

import jax
import pytest

from seresnext_jax.errors import UserError
from seresnext_jax.processes.join import initialize_distributed
from tests.programs import error_line, run
from tests.run.test_distributed import free_port

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "node[007-8,12],other",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_MCA_orte_hnp_uri": "8192.0;tcp://10.96.0.1,10.148.0.1:34911",
}
TORCHRUN = {"MASTER_ADDR": "node1", "MASTER_PORT": "1234", "WORLD_SIZE": "4", "RANK": "3"}


def joined(monkeypatch: pytest.MonkeyPatch, env: dict[str, str], **given: Any) -> dict[str, Any]:
    """What JAX is told under an environment."""
    told: dict[str, Any] = {}
    for name in list(os.environ):
        if name in TORCHRUN or name.startswith(("LOCAL_", "SLURM_", "OMPI_")):
            monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: told.update(options))
    arguments = {"coordinator": "", "num_processes": 0, "process_id": -1} | given
    initialize_distributed(**arguments)
    return told


@pytest.mark.parametrize(
    ("local", "device"),
    [
        ({}, None),
        ({"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}, None),
        ({"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}, 1),
    ],
)
def test_torchruns_variables(
    local: dict[str, str], device: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = joined(monkeypatch, TORCHRUN | local)
    assert told["coordinator_address"] == "node1:1234"
    assert (told["num_processes"], told["process_id"]) == (4, 3)
    assert told["local_device_ids"] == device


@pytest.mark.parametrize(
    ("env", "given", "message"),
    [
        ({"WORLD_SIZE": "two"}, {}, "WORLD_SIZE is 'two'"),
        ({"SLURM_NTASKS": ""}, {}, "SLURM_NTASKS is ''"),
        (TORCHRUN | {"RANK": "4"}, {}, "number 4 of 4"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, {}, "WORLD_SIZE is 2, but MASTER_ADDR is missing"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}, "but OMPI_COMM_WORLD_RANK is missing"),
        (OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "1.0"}, {}, "has no address"),
        (SLURM | {"SLURM_STEP_NODELIST": ""}, {}, "names no host"),
        (SLURM | {"SLURM_PROCID": "2"}, {}, "number 2 of 2"),
        ({}, {"coordinator": "node1:1", "num_processes": 2}, "belong together"),
        ({}, {"coordinator": "node1:1", "num_processes": 2, "process_id": 2}, "number 2 of 2"),
        ({}, {"coordinator": "node1", "num_processes": 2, "process_id": 0}, "is not host:port"),
    ],
)
def test_a_wrong_address_is_one_line(
    env: dict[str, str], given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=message):
        joined(monkeypatch, env, **given)


@pytest.mark.parametrize(
    ("env", "coordinator", "device"),
    [
        (SLURM, "node007:61441", 1),
        (SLURM | {"SLURM_STEP_NODELIST": "a-1,b"}, "a-1:61441", 1),
        (SLURM | {"SLURM_STEP_NODELIST": "solo", "JAX_COORDINATOR_PORT": "99"}, "solo:99", 1),
        (OPEN_MPI, "10.96.0.1:61442", 0),
        (SLURM | OPEN_MPI, "10.96.0.1:61442", 0),
        (
            OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "8192.0;tcp6://[fe80::b9b,26::5]:433"},
            "[fe80::b9b]:61442",
            0,
        ),
    ],
)
def test_slurms_and_open_mpis_variables(
    env: dict[str, str], coordinator: str, device: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same address as JAX would find, printed before the wait."""
    told = joined(monkeypatch, env)
    assert told["coordinator_address"] == coordinator
    assert (told["num_processes"], told["process_id"]) == (2, 1)
    assert told["local_device_ids"] == device


ALONE_ON_ITS_HOST = [
    SLURM | {"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"},
    SLURM | {"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1"},
    OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"},
    OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "SLURM_STEP_TASKS_PER_NODE": "8"},
]


@pytest.mark.parametrize("env", ALONE_ON_ITS_HOST)
def test_the_only_process_of_a_host_uses_all_its_gpus(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"coordinator": "node1:1", "num_processes": 2, "process_id": 0}
    for told in joined(monkeypatch, env), joined(monkeypatch, env, **given):
        assert told["local_device_ids"] is None
        assert told["cluster_detection_method"] == "deactivate"  # JAX would take the first GPU


def test_each_of_several_processes_of_a_host_uses_one_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert joined(monkeypatch, SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2"})["local_device_ids"] == 1
    mixed = OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "8", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    assert joined(monkeypatch, mixed)["local_device_ids"] == 0


def test_the_wait_is_announced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    joined(monkeypatch, SLURM)
    line = capsys.readouterr().out
    assert line.startswith("process 1 of 2 (SLURM_NTASKS), coordinator node007:61441: waiting")
    assert "--distributed.num-processes 1" in line and line.count("\n") == 1
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


@pytest.mark.parametrize("missing", ["SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_LOCALID"])
def test_a_shell_in_an_allocation_runs_alone(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    env = {name: value for name, value in SLURM.items() if name != missing}
    assert joined(monkeypatch, env) == {}
    assert f"SLURM_NTASKS is 2, but {missing} is missing" in capsys.readouterr().err


@pytest.mark.parametrize("env", [SLURM, OPEN_MPI, TORCHRUN, {"WORLD_SIZE": "2"}])
def test_one_process_ignores_the_environment(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fix that the messages name."""
    assert joined(monkeypatch, env, num_processes=1) == {}


def test_a_step_of_one_task_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the interactive step of salloc, which has the allocation's SLURM_NTASKS."""
    assert joined(monkeypatch, SLURM | {"SLURM_STEP_NUM_TASKS": "1"}) == {}


def test_a_runtime_that_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError("port is in use")

    joined(monkeypatch, SLURM)
    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(UserError, match="port is in use.*--distributed.coordinator"):
        initialize_distributed(coordinator="", num_processes=0, process_id=-1)


WAIT = """
import sys
from seresnext_jax.processes import join
from seresnext_jax.cli import run
join.JOIN_TIMEOUT = 1
options = {"num_processes": 2, "process_id": int(sys.argv[2])}
run(lambda argv: join.initialize_distributed(coordinator=argv[0], **options))
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_the_wait_for_the_others_ends_with_a_line(rank: int) -> None:
    """And not by an abort of the runtime."""
    line = error_line(run(["-c", WAIT, f"127.0.0.1:{free_port()}", str(rank)]))
    assert f"process {rank} of 2 (--distributed.num-processes)" in line
    assert "the others did not join within" in line
    assert "--distributed.num-processes 1" in line
