"""A run of the version before, a checkpoint and a report, is read and continued.

The file was made by that version: two epochs of se-resnext-tiny on three classes of noise, from
weights that are mostly zeros, so that it is small.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from tests.programs import done
from tests.weights.conversion import command

ARCHIVE = Path(__file__).parent / "files" / "run_of_the_version_before.tar.xz"
STEPS, EPOCHS = 3, 2
BIAS = (0.01693234, 0.01739868, -0.00856645)
AVERAGED_BIAS = (0.01702393, 0.01740451, -0.00866385)
MOMENTUM = (-5.6939811e-02, 5.6969661e-02, -2.2881664e-05)
"""Of the classifier's bias after the last step, as the version before read them."""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "a"


def write_noise(root: Path) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name in ("ant", "bee", "cat"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")


@pytest.mark.parametrize(("average", "bias"), [([], BIAS), (["--ema"], AVERAGED_BIAS)])
def test_its_weights_are_read(
    workspace: Path, tmp_path: Path, average: list[str], bias: tuple[float, ...]
) -> None:
    out = tmp_path / "out.safetensors"
    words = [workspace, out, "--layout", "current", "--safetensors", *average]
    assert command("to-torch", *words) == 0
    tensors = load_file(out)
    assert tensors["fc.bias"] == pytest.approx(bias, rel=1e-6)
    assert tensors["bn1.num_batches_tracked"] == EPOCHS * STEPS


def test_its_training_state_is_read(workspace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.pth.tar"
    assert command("to-torch", workspace, out, "--layout", "current", "--checkpoint") == 0
    content = torch.load(out, weights_only=True)
    assert (content["epoch"], content["best_prec1"]) == (EPOCHS, pytest.approx(100 / 3))
    optimizer = content["optimizer"]
    momenta = [entry["momentum_buffer"] for entry in optimizer["state"].values()]
    biases = [x.numpy() for x in momenta if x.shape == (3,)]
    assert any(np.allclose(x, MOMENTUM, rtol=1e-6, atol=0) for x in biases)


def test_it_is_continued(workspace: Path, tmp_path: Path) -> None:
    write_noise(tmp_path / "data")
    before = (workspace / "report.jsonl").read_text().splitlines()
    out = done(
        [
            *("train.py", "--config", "configs/digits.py", "--data.root", str(tmp_path / "data")),
            *("--data.backend", "folder", "--model.num-classes", "3", "--topk", "2"),
            *("--epochs", "3", "--optim.warmup", "0", "--batch-size", "8", "--print-freq", "1"),
            *("--use-ema", "0.9", "--workspace", str(workspace), "--resume", "auto"),
        ]
    )
    assert f"continuing after step {EPOCHS * STEPS}" in out.stdout
    # The files of the dataset, the seed and the crops are those of the run before.
    assert "as it would have" not in out.stderr
    lines = (workspace / "report.jsonl").read_text().splitlines()
    kept = [line for line in before if json.loads(line)["event"] != "summary"]
    assert lines[: len(kept)] == kept
    steps = [r["step"] for r in map(json.loads, lines) if r["event"] == "train"]
    assert steps == list(range(1, 3 * STEPS + 1))
