"""The commands of ``python -m convert`` on weights."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from convert.__main__ import build_parser, main
from seresnext_jax import create_model, torch_keys
from seresnext_jax.checkpoint.save import Checkpoints
from seresnext_jax.config import Config, ModelConfig
from seresnext_jax.errors import UserError
from seresnext_jax.training.state import create_train_state
from seresnext_jax.weights.folder import read_weights_folder
from seresnext_jax.weights.read import read_weights
from tests.checkpoint.metas import make_meta
from tests.reference import torch_model
from tests.weights.conversion import (
    CLASSES,
    TINY,
    StateDict,
    assert_same_state,
    command,
    reference,
    save_as,
    trained_like,
)


@pytest.fixture(scope="module")
def model() -> torch_model.ResNet:
    """Not to be trained: tests share it."""
    return trained_like()


@pytest.mark.parametrize("kind", ["flat.pth.tar", "checkpoint.pth.tar", "tensors.safetensors"])
@pytest.mark.parametrize("layout", ["ngc", "current"])
def test_a_file_through_the_commands(
    tmp_path: Path,
    model: torch_model.ResNet,
    kind: str,
    layout: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = model.state_dict()
    spelled = torch_model.to_old_names(state) if layout == "ngc" else state
    if kind.startswith("flat"):
        torch.save(spelled, tmp_path / kind)
    elif kind.startswith("checkpoint"):
        torch.save({"epoch": 5, "state_dict": spelled, "best_prec1": 71.5}, tmp_path / kind)
    else:
        save_file(spelled, tmp_path / kind)

    assert command("to-flax", tmp_path / kind, tmp_path / "weights") == 0
    info = read_weights_folder(tmp_path / "weights").info
    assert (info.source, info.layout, info.ema) == (kind, layout, False)
    assert (info.prefix, info.se_weights, info.dtype) == ("", "linear", "float32")
    printed = capsys.readouterr().out
    assert re.search(f"layout: +{layout}", printed) and str(info.sha256) in printed
    assert info.epoch == (5 if kind.startswith("checkpoint") else None)
    assert info.sha256 is not None and re.fullmatch("[0-9a-f]{64}", info.sha256)

    out = tmp_path / "out.pth.tar"
    assert command("to-torch", tmp_path / "weights", out, "--layout", layout) == 0
    assert_same_state(torch.load(out, weights_only=True), spelled)
    # A folder's tensors may be named themselves.
    assert read_weights(tmp_path / "weights" / "model.safetensors").info == info


def test_export_loads_strictly_with_prefix_and_as_safetensors(
    tmp_path: Path, model: torch_model.ResNet
) -> None:
    torch.save(model.state_dict(), tmp_path / "a.pth")
    out = tmp_path / "b.pth"
    command("to-torch", tmp_path / "a.pth", out, "--layout", "current", "--module-prefix")
    loaded = torch.load(out, weights_only=True)
    torch.nn.DataParallel(reference(TINY, CLASSES)).load_state_dict(loaded, strict=True)
    out = tmp_path / "c.safetensors"
    command("to-torch", tmp_path / "a.pth", out, "--layout", "ngc", "--safetensors")
    assert command("verify", tmp_path / "a.pth", out) == 0


def test_class_names_are_stored_with_the_weights(tmp_path: Path, model: torch_model.ResNet) -> None:
    file, names = tmp_path / "a.pth", tmp_path / "names.txt"
    torch.save(model.state_dict(), file)
    wanted = tuple(f"class {index}" for index in range(CLASSES))
    names.write_text("\n".join(wanted))
    assert command("to-flax", file, tmp_path / "w", "--class-names", names) == 0
    assert read_weights_folder(tmp_path / "w").info.class_names == wanted
    assert command("to-flax", file, tmp_path / "w") == 0
    assert read_weights_folder(tmp_path / "w").info.class_names is None


def test_the_moving_average_is_taken_on_request(tmp_path: Path, model: torch_model.ResNet) -> None:
    state = model.state_dict()
    average = {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}
    file = tmp_path / "a.pth"
    torch.save({"epoch": 1, "state_dict": state, "state_dict_ema": average}, file)
    plain, ema = read_weights(file).variables, read_weights(file, ema=True).variables
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a + 1, b), plain, ema)
    torch.save({"state_dict_ema": average}, file)
    only = read_weights(file)
    jax.tree.map(np.testing.assert_array_equal, only.variables, ema)
    assert only.info.ema, "taken without asking, but not in silence"
    torch.save(state, file)
    with pytest.raises(UserError, match="no moving average: leave --ema out"):
        read_weights(file, ema=True)


def test_inspect(
    tmp_path: Path, model: torch_model.ResNet, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch_model.with_prefix(torch_model.to_old_names(model.state_dict()))
    file = tmp_path / "a.pth.tar"
    torch.save({"epoch": 3, "state_dict": state, "arch": (TINY, "fanin", CLASSES)}, file)
    assert command("inspect", file, "--json", tmp_path / "facts.json") == 0
    facts = json.loads((tmp_path / "facts.json").read_text())
    lines = dict(re.findall(r"^([a-z0-9 ]+): +(.*)$", capsys.readouterr().out, flags=re.MULTILINE))
    assert lines["architecture"] == TINY and lines["prefix"] == "module."
    assert lines["versions"].startswith("jax ") and "class names" not in lines, "only known facts"
    wanted = {
        "kind": "torch checkpoint",
        "architecture": TINY,
        "num_classes": CLASSES,
        "parameters": sum(p.numel() for p in model.parameters()),
        "layout": "ngc",
        "prefix": "module.",
        "se_weights": "linear",
        "dtype": "float32",
        "epoch": 3,
        "has_ema": False,
        "has_optimizer": False,
    }
    assert {name: facts[name] for name in wanted} == wanted

    command("to-flax", file, tmp_path / "weights")
    capsys.readouterr()
    assert command("inspect", tmp_path / "weights") == 0
    assert "weights folder" in capsys.readouterr().out
    absent = tmp_path / "absent" / "facts.json"
    with pytest.raises(
        UserError, match="--json .*facts.json: its folder does not exist; make it first"
    ):
        command("inspect", file, "--json", absent)


def test_verify(
    tmp_path: Path, model: torch_model.ResNet, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(state: StateDict, *words: object) -> tuple[int, dict[str, Any]]:
        torch.save(state, tmp_path / "b.pth")
        report = tmp_path / "report.json"
        status = command("verify", tmp_path / "a.pth", tmp_path / "b.pth", "--json", report, *words)
        result: dict[str, Any] = json.loads(report.read_text())
        assert f"verdict: {result['verdict']}" in capsys.readouterr().out
        return status, result

    state = model.state_dict()
    torch.save(torch_model.to_old_names(state), tmp_path / "a.pth")
    status, same = run(state)
    assert (status, same["verdict"], same["differing_tensors"]) == (0, "identical", 0)
    assert same["engines"] == ["PyTorch", "PyTorch"]
    assert [row["output"] for row in same["outputs"]] == [
        "layer1", "layer2", "layer3", "layer4", "classifier",
    ]  # fmt: skip
    assert all(row["absolute"] == 0 for row in same["outputs"])

    nearly = state | {"fc.bias": state["fc.bias"] * (1 + 1e-6)}
    status, found = run(nearly)
    assert (status, found["verdict"], found["differing_tensors"]) == (0, "equal", 1)

    # A constant added to all logits changes no prediction, and is a different network.
    status, found = run(state | {"fc.bias": state["fc.bias"] + 0.5})
    assert (status, found["verdict"], found["top1_agreement"]) == (1, "different", 1.0)
    assert found["outputs"][-1]["absolute"] == pytest.approx(0.5, abs=1e-4)
    assert found["outputs"][3]["absolute"] == 0

    with pytest.raises(UserError, match=r"bn1.bias contains NaN or infinity \(32 of 32 values\)"):
        run(state | {"bn1.bias": torch.full_like(state["bn1.bias"], torch.nan)})

    with pytest.raises(UserError, match="not comparable: .* 7 classes and .* 8 classes"):
        run(state | {"fc.weight": torch.zeros(8, 512), "fc.bias": torch.zeros(8)})

    for i in range(9):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 50 + i, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    status, same = run(state, "--images", tmp_path)
    assert (status, same["images"], same["top1_agreement"]) == (0, 9, 1.0)


def test_verify_runs_pytorch_against_flax(
    tmp_path: Path,
    model: torch_model.ResNet,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong mapping makes the same tensors on both sides, and different outputs."""
    spelled = torch_model.with_prefix(torch_model.se_as_conv(model.state_dict()))
    file, weights = save_as(tmp_path / "a.pth", spelled), tmp_path / "weights"

    def converted() -> dict[str, Any]:
        command("to-flax", file, weights)
        capsys.readouterr()
        status = command("verify", file, weights, "--json", tmp_path / "report.json")
        result: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
        assert status == (result["verdict"] == "different")
        return result

    right = converted()
    assert (right["verdict"], right["engines"]) == ("identical", ["PyTorch", "Flax"])
    assert 0 < right["outputs"][-1]["relative"] < 1e-5

    true_mapping = torch_keys.to_flax_array

    def mirrored(array: np.ndarray) -> np.ndarray:
        kernel = true_mapping(array)
        return np.ascontiguousarray(kernel[::-1]) if kernel.ndim == 4 else kernel

    monkeypatch.setattr(torch_keys, "to_flax_array", mirrored)
    wrong = converted()
    assert (wrong["verdict"], wrong["differing_tensors"]) == ("different", 0)


def test_verify_takes_a_file_of_the_moving_average(
    tmp_path: Path, model: torch_model.ResNet
) -> None:
    torch.save({"state_dict_ema": model.state_dict()}, tmp_path / "a.pth")
    save_as(tmp_path / "b.pth", model.state_dict())
    assert command("verify", tmp_path / "a.pth", tmp_path / "b.pth") == 0


def test_bash_completes_every_command() -> None:
    page = (Path(__file__).parent.parent / "docs/commands.md").read_text(encoding="utf-8")
    (line,) = re.findall("^complete .*$", page, flags=re.MULTILINE)
    words = shlex.split(line)
    (commands,) = [a.choices for a in build_parser()._actions if isinstance(a.choices, dict)]
    assert words[words.index("-W") + 1].split() == list(commands)
    subprocess.run(["bash", "-c", line], check=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["to-flax", "a", "b", "--optim.decay-mask", "all"], "unrecognized .*--optim.decay-mask"),
        (["to-torch", "a", "b"], "--layout"),
        (["inspect"], "required: file"),
        (["convert"], "invalid choice"),
        (["to-flax", "absent.pth", "x"], "neither weights nor a checkpoint"),
        (["to-torch", ".", "x", "--layout", "ngc", "--checkpoint"], "is not a checkpoint"),
        (["to-flax", "a", "b", "--training", "c.py"], "--steps-per-epoch"),
    ],
)
def test_a_wrong_command_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        main(words)
    assert "\n" not in str(caught.value)


def test_verifying_a_pytorch_file_without_pytorch_is_one_line(
    tmp_path: Path, model: torch_model.ResNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save_as(tmp_path / "a.pth", model.state_dict())
    command("to-flax", file, tmp_path / "weights")
    monkeypatch.setitem(sys.modules, "seresnext_jax.weights.torch_forward", None)
    with pytest.raises(UserError, match="verifying a PyTorch file needs PyTorch, .*pip install"):
        command("verify", file, tmp_path / "weights")
    assert command("verify", tmp_path / "weights", tmp_path / "weights") == 0


def test_a_run_with_several_checkpoints_says_which_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config(model=ModelConfig(TINY, num_classes=CLASSES))
    state = create_train_state(config, create_model(TINY, CLASSES).variables)
    with Checkpoints(tmp_path / "checkpoints", keep=-1) as checkpoints:
        for step, top1 in ((1, 71.25), (2, 50.0)):
            meta = make_meta(config=config, step=step, epoch=step, top1=top1)
            checkpoints.save(state.replace(step=jnp.int32(step)), meta)
    assert command("to-torch", tmp_path, tmp_path / "a.pth", "--layout", "ngc") == 0
    best = tmp_path / "best"
    assert f"using checkpoint 2, the newest; for the best, give {best}" in capsys.readouterr().out
    command("inspect", best)
    said = capsys.readouterr().out
    assert "the newest" not in said and re.search(r"^top1: +71.25$", said, flags=re.MULTILINE)
