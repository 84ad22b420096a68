"""Conversion against PyTorch: files, names, logits, and the commands on weights."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from convert import compare
from convert.__main__ import main
from convert.weights import expected_shapes, from_state_dict, network, read_weights, to_state_dict
from seresnext_jax import names
from seresnext_jax.errors import UserError
from seresnext_jax.images import IMAGENET_MEAN, IMAGENET_STD
from seresnext_jax.model import ARCHITECTURES
from seresnext_jax.weights import load_weights
from tests.conversion import (
    CLASSES,
    TINY,
    StateDict,
    as_numpy,
    assert_same_state,
    command,
    reference,
    save_as,
    without_counters,
)
from tests.reference import torch_model


@pytest.fixture(scope="module")
def model() -> torch_model.ResNet:
    """A tiny network in which no two channels are alike. Not to be trained: tests share it."""
    torch.manual_seed(0)
    made = reference(TINY, CLASSES)
    torch_model.randomize_like_trained(made, seed=0, image_size=64)
    for name, counter in made.named_buffers():
        if name.endswith("num_batches_tracked"):
            counter.fill_(1234)
    return made


# ---- spellings ---------------------------------------------------------------------------------

SPELLINGS: dict[str, Callable[[StateDict], StateDict]] = {
    "current": dict,
    "ngc": torch_model.to_old_names,
    "module": torch_model.with_prefix,
    "ngc module": lambda s: torch_model.with_prefix(torch_model.to_old_names(s)),
    "compiled": lambda s: torch_model.with_prefix(s, "_orig_mod.module."),
    "convolution gates": torch_model.se_as_conv,
    "no counters": without_counters,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_comes_back_bit_for_bit(model: torch_model.ResNet, spelling: str) -> None:
    state = SPELLINGS[spelling](model.state_dict())
    variables, seen = from_state_dict(as_numpy(state), source="file")
    assert (seen.architecture, seen.num_classes) == (TINY, CLASSES)
    assert seen.layout == ("ngc" if "ngc" in spelling else "current")
    assert seen.gate == ("convolution" if "gates" in spelling else "linear")
    counter = seen.batches_tracked
    assert (counter is None) == (spelling == "no counters")
    back = to_state_dict(variables, layout="current", batches_tracked=counter or 0)
    found = {k: torch.from_numpy(v) for k, v in back.items()}
    if spelling == "no counters":
        found, wanted = without_counters(found), without_counters(model.state_dict())
    else:
        wanted = model.state_dict()
    assert_same_state(found, wanted)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_has_the_originals_entries(arch: str) -> None:
    with torch.device("meta"):
        wanted = without_counters(reference(arch, 1000).state_dict())
    assert expected_shapes(arch, 1000) == {name: tuple(x.shape) for name, x in wanted.items()}


@pytest.mark.parametrize("arch", ["resnet18", "resnext101-32x4d", "resnext101-32x8d"])
def test_the_architecture_is_told_from_the_tensors(arch: str) -> None:
    shapes = expected_shapes(arch, 12)
    zeros = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    _, seen = from_state_dict(zeros, source="file")
    assert (seen.architecture, seen.num_classes, seen.gate) == (arch, 12, "none")


@pytest.mark.slow
def test_the_full_network_in_full(tmp_path: Path) -> None:
    """45,251,128 parameters, 758 entries, a strict load both ways, and the same logits."""
    torch.manual_seed(0)
    full = reference("se-resnext101-32x4d", 1000)
    torch_model.randomize_like_trained(full, seed=0, image_size=64)
    state = full.state_dict()
    torch.save(torch_model.with_prefix(torch_model.to_old_names(state)), tmp_path / "a")
    variables, info = read_weights(tmp_path / "a")
    assert (info.architecture, info.num_classes, info.layout) == (
        "se-resnext101-32x4d", 1000, "ngc",
    )  # fmt: skip
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == 45_251_128

    back = {
        k: torch.from_numpy(x)
        for k, x in to_state_dict(
            variables, layout="current", batches_tracked=info.batches_tracked or 0
        ).items()
    }
    assert len(back) == 758
    assert_same_state(back, state)
    full.load_state_dict(back, strict=True)

    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = full(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    with jax.default_matmul_precision("highest"):
        apply = jax.jit(network("se-resnext101-32x4d", 1000).apply, static_argnames="train")
        found = apply(variables, images, train=False)
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=0)

    # The other spellings give the same tensors, so the same logits.
    for spell in (dict, torch_model.with_prefix, torch_model.se_as_conv):
        other, _ = from_state_dict(as_numpy(spell(state)), source="file")
        jax.tree.map(np.testing.assert_array_equal, other, variables)
    (tmp_path / "a").unlink()
    save_file(state, tmp_path / "a.safetensors")
    jax.tree.map(
        np.testing.assert_array_equal, read_weights(tmp_path / "a.safetensors")[0], variables
    )


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnext50-32x4d"])
def test_files_of_other_networks_give_pytorchs_outputs(tmp_path: Path, arch: str) -> None:
    """As the module runs them, and not only as the forward pass from the file does."""
    made = reference(arch, 10)
    torch_model.randomize_like_trained(made, seed=0, image_size=64)
    file = save_as(tmp_path / "a.pth", torch_model.to_old_names(made.state_dict()))
    assert command("to-flax", file, tmp_path / "weights") == 0
    pixels = next(compare.random_pixels(64))[:2]
    images = (pixels / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    with torch.no_grad():
        wanted = made.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2)).float())
    for path in (file, tmp_path / "weights"):
        found = compare.open_side(path).run(pixels)
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            array = tensor.permute(0, 2, 3, 1).numpy() if tensor.ndim == 4 else tensor.numpy()
            scale = max(1.0, np.ptp(array) / 8)
            np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-4 * scale)


# ---- mismatches --------------------------------------------------------------------------------


def mismatch(state: StateDict) -> str:
    with pytest.raises(UserError) as caught:
        from_state_dict(as_numpy(state), source="file.pth")
    message = str(caught.value)
    assert message.startswith("file.pth")
    assert "\n" not in message
    return message


def test_missing_unexpected_and_misshaped_entries_are_named(model: torch_model.ResNet) -> None:
    state = model.state_dict()
    del state["layers.1.0.bn2.bias"]
    state["layers.1.0.bn2.beta"] = torch.zeros(1)
    state["layers.0.0.conv1.weight"] = torch.zeros(5, 6, 1, 1)
    message = mismatch(state)
    assert "from se-resnext-tiny" in message
    assert "1 unexpected (+ layers.1.0.bn2.beta)" in message
    assert "1 missing (- layers.1.0.bn2.bias)" in message
    assert "1 misshaped (~ layers.0.0.conv1.weight (5, 6, 1, 1) for (32, 32, 1, 1))" in message


def test_a_long_difference_is_cut(model: torch_model.ResNet) -> None:
    kept = {k: v for k, v in model.state_dict().items() if not k.startswith("layers.3.0.bn")}
    message = mismatch(kept)
    missing = re.search(r"(\d+) missing \((.*?), \.\.\.\)", message)
    assert missing is not None
    assert int(missing[1]) > 8
    assert missing[2].count("- ") == 8


def test_foreign_weights_are_refused() -> None:
    foreign = {"encoder.weight": torch.zeros(3, 3), "encoder.bias": torch.zeros(3)}
    assert "2 unexpected (+ encoder.weight, + encoder.bias)" in mismatch(foreign)


@pytest.mark.parametrize(
    "name", ["layers.weight", "layers.0.weight", "layers.x.y.z", f"layer{'9' * 5000}.0.bias"]
)
def test_keys_that_are_nearly_the_originals(model: torch_model.ResNet, name: str) -> None:
    message = mismatch(model.state_dict() | {name: torch.zeros(1)})
    assert "1 unexpected (+ layer" in message
    assert len(message) < 300


def test_one_entry_under_two_spellings_is_refused(model: torch_model.ResNet) -> None:
    state = model.state_dict()
    state["layer1.0.conv1.weight"] = state["layers.0.0.conv1.weight"]
    assert "holds layers.0.0.conv1.weight twice" in mismatch(state)


# ---- commands on weights -----------------------------------------------------------------------


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
    info = load_weights(tmp_path / "weights")[1]
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
    assert read_weights(tmp_path / "weights" / "model.safetensors")[1] == info


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


def test_the_moving_average_is_taken_on_request(tmp_path: Path, model: torch_model.ResNet) -> None:
    state = model.state_dict()
    average = {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}
    file = tmp_path / "a.pth"
    torch.save({"epoch": 1, "state_dict": state, "state_dict_ema": average}, file)
    plain, ema = read_weights(file)[0], read_weights(file, ema=True)[0]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a + 1, b), plain, ema)
    torch.save({"state_dict_ema": average}, file)
    only, info = read_weights(file)
    jax.tree.map(np.testing.assert_array_equal, only, ema)
    assert info.ema, "taken without asking, but not in silence"
    torch.save(state, file)
    with pytest.raises(UserError, match="no moving average: leave --ema out"):
        read_weights(file, ema=True)


def test_inspect(
    tmp_path: Path, model: torch_model.ResNet, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch_model.with_prefix(torch_model.to_old_names(model.state_dict()))
    file = tmp_path / "a.pth.tar"
    torch.save({"epoch": 3, "state_dict": state, "arch": (TINY, "fanin", CLASSES)}, file)
    assert command("inspect", file, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
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


def test_verify(
    tmp_path: Path, model: torch_model.ResNet, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(state: StateDict, *words: object) -> tuple[int, dict[str, Any]]:
        torch.save(state, tmp_path / "b.pth")
        status = command("verify", tmp_path / "a.pth", tmp_path / "b.pth", "--json", *words)
        return status, json.loads(capsys.readouterr().out)

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

    status, found = run(state | {"bn1.bias": torch.full_like(state["bn1.bias"], torch.nan)})
    assert (status, found["verdict"]) == (1, "different")

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
        status = command("verify", file, weights, "--json")
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert status == (result["verdict"] == "different")
        return result

    right = converted()
    assert (right["verdict"], right["engines"]) == ("identical", ["PyTorch", "Flax"])
    assert 0 < right["outputs"][-1]["relative"] < 1e-5

    true_mapping = names.to_flax_array

    def mirrored(array: np.ndarray) -> np.ndarray:
        kernel = true_mapping(array)
        return np.ascontiguousarray(kernel[::-1]) if kernel.ndim == 4 else kernel

    monkeypatch.setattr(names, "to_flax_array", mirrored)
    wrong = converted()
    assert (wrong["verdict"], wrong["differing_tensors"]) == ("different", 0)


def test_verify_takes_a_file_of_the_moving_average(
    tmp_path: Path, model: torch_model.ResNet
) -> None:
    torch.save({"state_dict_ema": model.state_dict()}, tmp_path / "a.pth")
    save_as(tmp_path / "b.pth", model.state_dict())
    assert command("verify", tmp_path / "a.pth", tmp_path / "b.pth") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["to-flax", "a", "b", "--optim.decay-mask", "all"], "unrecognized .*--optim.decay-mask"),
        (["to-torch", "a", "b"], "--layout"),
        (["inspect"], "required: file"),
        (["convert"], "invalid choice"),
        (["to-flax", "absent.pth", "x"], "neither weights nor a checkpoint"),
        (["to-torch", ".", "x", "--layout", "ngc", "--checkpoint"], "is no checkpoint"),
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
