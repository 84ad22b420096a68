"""Processes that do not find the same files stop together, and say which of them differ."""

import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.data.test_files import put_images
from tests.programs import error_line, finish, start
from tests.run.test_distributed import free_port

OPEN = """
import sys
from seresnext_jax.cli import run
from seresnext_jax.config import Config, DataConfig, ModelConfig
from seresnext_jax.data.open import open_splits
from seresnext_jax.mesh import make_mesh
from seresnext_jax.processes.fail import fails_alone
from seresnext_jax.processes.join import initialize_distributed

@fails_alone
def main(argv):
    port, rank, root = argv
    initialize_distributed(
        coordinator=f"127.0.0.1:{port}", num_processes=2, process_id=int(rank)
    )
    data = DataConfig(root, "folder", 8, index="")
    config = Config(model=ModelConfig(num_classes=3), data=data, batch_size=2)
    for loader in open_splits(config, make_mesh()):
        loader.close()
    print("opened")

run(main)
"""
"""One of two processes that open the splits of a run."""


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    """The dataset of each process, as on two hosts."""
    roots = [tmp_path / "host0", tmp_path / "host1"]
    for root in roots:
        for split in ("train", "val"):
            put_images(root / split)
    return roots


def opened(roots: list[Path]) -> list["subprocess.CompletedProcess[str]"]:
    port = str(free_port())
    processes = [start(["-c", OPEN, port, str(n), str(root)]) for n, root in enumerate(roots)]
    return [finish(process) for process in processes]


def test_other_files_of_a_process_end_all_in_one_line(roots: list[Path]) -> None:
    """As many images on both, but one of them has moved to another class."""
    (roots[1] / "train" / "a" / "a0.png").rename(roots[1] / "train" / "b" / "a0.png")
    where = rf" on {re.escape(socket.gethostname())}: 6 images \(checksum \w{{8}}\)"
    for root, result in zip(roots, opened(roots), strict=True):
        line = error_line(result)
        assert f"the processes find different files in {root}/train (process 0" in line
        assert re.search(rf"\(process 0{where}; process 1{where}\): copy the dataset again", line)
    shutil.rmtree(roots[1])
    shutil.copytree(roots[0], roots[1])
    assert [result.returncode for result in opened(roots)] == [0, 0]
