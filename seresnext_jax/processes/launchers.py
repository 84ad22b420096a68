"""The place of a process in its run, by the variables of torchrun, Open MPI and Slurm."""

import os
import re
import sys
from dataclasses import dataclass

from seresnext_jax.errors import UserError

ALONE = "to run alone, give --distributed.num-processes 1"
HOW_TO_PLACE = (
    "give --distributed.coordinator, --distributed.num-processes and --distributed.process-id; "
    + ALONE
)


@dataclass(frozen=True)
class Place:
    """The rank of this process in its run, and how to reach the others."""

    coordinator: str
    """host:port of process 0."""
    num_processes: int
    process_id: int
    source: str
    """The variable or option that gives the number of processes."""
    local_device: int | None = None
    """The only device of this host that the process uses; None: all of them."""


def find_place() -> Place | None:
    """The rank of this process according to its environment; None: it is alone.

    Reads the variables of torchrun, Open MPI and Slurm. A Slurm allocation for several tasks also
    sets variables in shells that are not one of these tasks. A process started there runs alone,
    and prints a warning.

    Raises:
      UserError: a variable is missing or malformed.
    """
    if _variable("WORLD_SIZE", 1) > 1:
        return _place_by_torchrun()
    if _variable("OMPI_COMM_WORLD_SIZE", 1) > 1:
        return _place_by_open_mpi()
    # A shell inside an allocation may have the allocation's SLURM_NTASKS; the number of tasks of a
    # step is in SLURM_STEP_NUM_TASKS.
    source = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in os.environ else "SLURM_NTASKS"
    if _variable(source, 1) > 1:
        return _place_by_slurm(source)
    return None


def _place_by_torchrun() -> Place:
    count = _variable("WORLD_SIZE", 1)
    _require("WORLD_SIZE", "MASTER_ADDR", "RANK")
    coordinator = f"{os.environ['MASTER_ADDR']}:{_variable('MASTER_PORT', 29500)}"
    local_device = None
    if _variable("LOCAL_WORLD_SIZE", 1) > 1:  # else a host's single process has all its GPUs
        local_device = _variable("LOCAL_RANK", 0)
    return Place(coordinator, count, _variable("RANK", 0), "WORLD_SIZE", local_device)


def _place_by_open_mpi() -> Place:
    source = "OMPI_COMM_WORLD_SIZE"
    _require(source, "OMPI_COMM_WORLD_RANK", "OMPI_MCA_orte_hnp_uri")
    uri = os.environ["OMPI_MCA_orte_hnp_uri"]  # 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911
    found = re.match(r"(\d+)\..*?(?:tcp://([^,:]+)|tcp6://\[([^,\]]+))", uri)
    if found is None:
        raise UserError(f"OMPI_MCA_orte_hnp_uri is {uri!r}: it has no address; {HOW_TO_PLACE}")
    host = found[2] or f"[{found[3]}]"
    return Place(
        f"{host}:{_port_of_job(int(found[1]) // 2**12)}",
        _variable(source, 1),
        _variable("OMPI_COMM_WORLD_RANK", 0),
        source,
        None if is_alone_on_host() else _variable("OMPI_COMM_WORLD_LOCAL_RANK", 0),
    )


def _place_by_slurm(source: str) -> Place | None:
    count = _variable(source, 1)
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    missing = [name for name in needed if name not in os.environ]
    if missing:
        print(
            f"warning: {source} is {count}, but {missing[0]} is missing: this is not a task of "
            "srun, so it runs alone (start the program with srun to use all tasks)",
            file=sys.stderr,
            flush=True,
        )
        return None
    # The first host of node[001,007-015],host2 or node001,host2.
    first = re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", os.environ["SLURM_STEP_NODELIST"])
    if first is None:
        raise UserError(f"SLURM_STEP_NODELIST names no host: {HOW_TO_PLACE}")
    return Place(
        f"{first[1]}{first[2] or ''}:{_port_of_job(_variable('SLURM_JOB_ID', 0))}",
        count,
        _variable("SLURM_PROCID", 0),
        source,
        None if is_alone_on_host() else _variable("SLURM_LOCALID", 0),
    )


def is_alone_on_host() -> bool:
    """Whether Open MPI or Slurm started one process per host: ``1`` or, in Slurm, ``1(x4)``."""
    names = ("OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE")
    counts = [os.environ[name] for name in names if name in os.environ]
    return bool(counts) and re.fullmatch(r"1(\(x\d+\))?", counts[0]) is not None


def _port_of_job(job: int) -> int:
    """The coordinator's port: JAX_COORDINATOR_PORT, or one of the last 2¹², by the job's number."""
    return _variable("JAX_COORDINATOR_PORT", 65536 - 2**12 + job % 2**12)


def _require(source: str, *names: str) -> None:
    """Refuse an environment that implies several processes but lacks a variable to join them."""
    for name in names:
        if name not in os.environ:
            raise UserError(
                f"{source} is {os.environ[source]}, but {name} is missing: {HOW_TO_PLACE}"
            )


def _variable(name: str, default: int) -> int:
    """A non-negative integer from the environment, or `default` if it is not set."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UserError(f"the environment variable {name} is {text!r}: it must be a whole number")
    return int(text)
