"""Which CPU cores a process is bound to: Linux's lists, shares, and every thread of a process."""

import json
import os
import socket
from pathlib import Path

import pytest

from seresnext_jax.report.console import Console
from seresnext_jax.run import affinity
from seresnext_jax.run.affinity import (
    bind_to_gpus,
    cpus_near,
    parse_cpus,
    share,
)
from tests.programs import finish, start

GPU = "0000:07:00.0"


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """Two sockets of four cores with two threads each; thread n + 8 is on the core of thread n."""
    for cpu in range(16):
        folder = tmp_path / f"devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 8},{cpu % 8 + 8}\n")
    folder = tmp_path / "bus/pci/devices" / GPU
    folder.mkdir(parents=True)
    (folder / "local_cpulist").write_text("4-7,12-15\n")
    return tmp_path


def test_the_cores_near_a_gpu(system: Path) -> None:
    assert parse_cpus("0-3,8") == {0, 1, 2, 3, 8} and parse_cpus("5") == {5}
    assert cpus_near(GPU, system) == {4, 5, 6, 7, 12, 13, 14, 15}
    with pytest.raises(OSError):
        cpus_near("0000:08:00.0", system)
    with pytest.raises(ValueError):
        parse_cpus("")


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_processes_get_whole_cores_that_no_other_has(system: Path, count: int) -> None:
    near = cpus_near(GPU, system)
    parts = [share(near, number, count, system) for number in range(count)]
    assert set.union(*parts) == near and sum(map(len, parts)) == len(near)
    for part in parts:
        assert {cpu ^ 8 for cpu in part} == part, "both threads of each core"
        cores = sorted(cpu % 8 for cpu in part)
        assert cores[-1] - cores[0] < len(cores) / 2, "neighbours"


def test_fewer_cores_than_processes_are_shared(system: Path) -> None:
    assert share({4, 12}, 1, 2, system) == {4, 12}
    assert share({1, 2}, 1, 2, Path("/nowhere")) == {2}, "without the topology"


def test_where_nothing_is_known_a_line_says_that_nothing_changes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(gpu: int) -> str:
        raise OSError("no driver")

    monkeypatch.setattr(affinity, "pci_address", fail)
    before = os.sched_getaffinity(0)
    bind_to_gpus([], Console(enabled=True))
    bind_to_gpus([0], Console(enabled=True))
    first, second = capsys.readouterr().out.splitlines()
    assert first == "--distributed.gpu-affinity changes nothing: this process has no GPU"
    assert second.endswith("changes nothing: the cores near its GPUs are not known (no driver)")
    assert os.sched_getaffinity(0) == before


BIND = """
import json, os, sys, threading
from functools import partial
from pathlib import Path
import jax
from seresnext_jax.processes.agree import cores_on_this_host
from seresnext_jax.processes.join import initialize_distributed
from seresnext_jax.report.console import Console
from seresnext_jax.run import affinity
port, rank = map(int, sys.argv[1:])
initialize_distributed(coordinator=f"127.0.0.1:{port}", num_processes=2, process_id=rank)
affinity.pci_address = lambda gpu: f"gpu {gpu}"
affinity.cpus_near = lambda address: os.sched_getaffinity(0)
affinity.share = partial(affinity.share, system=Path("/nowhere"))
jax.devices()
threading.Thread(target=threading.Event().wait, daemon=True).start()
affinity.bind_to_gpus([rank], Console(enabled=True))
threads = [sorted(os.sched_getaffinity(int(t))) for t in os.listdir("/proc/self/task")]
print(json.dumps([threads, cores_on_this_host()]))
"""


def test_two_processes_with_the_same_cores_divide_them() -> None:
    """Every thread is bound, those of XLA included; together they still have all cores."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    processes = [start(["-c", BIND, str(port), str(rank)]) for rank in range(2)]
    results = [finish(process) for process in processes]
    found = []
    for rank, result in enumerate(results):
        assert result.returncode == 0, result.stderr
        assert f"logical CPUs near GPU {rank}" in result.stdout
        threads, cores = json.loads(result.stdout.splitlines()[-1])
        assert len(threads) > 3 and all(cpus == threads[0] for cpus in threads)
        assert cores == len(os.sched_getaffinity(0))
        found.append(set(threads[0]))
    allowed = os.sched_getaffinity(0)
    assert set.union(*found) == allowed
    assert len(allowed) == 1 or not set.intersection(*found)
