"""Conversion against PyTorch: every spelling of a state dict, its architecture, its logits."""

import re
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from seresnext_jax.data.normalize import IMAGENET_MEAN, IMAGENET_STD
from seresnext_jax.errors import UserError
from seresnext_jax.model.network import ARCHITECTURES
from seresnext_jax.weights.identify import expected_shapes, network
from seresnext_jax.weights.read import read_weights
from seresnext_jax.weights.state_dict import from_state_dict, to_state_dict
from seresnext_jax.weights.verify import random_pixels, read_runnable_weights
from tests.reference import torch_model
from tests.weights.conversion import (
    CLASSES,
    TINY,
    StateDict,
    as_numpy,
    assert_same_state,
    command,
    reference,
    save_as,
    trained_like,
    without_counters,
)


@pytest.fixture(scope="module")
def model() -> torch_model.ResNet:
    """Not to be trained: tests share it."""
    return trained_like()


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
    weights = from_state_dict(as_numpy(state), source="file")
    info = weights.info
    assert (info.architecture, info.num_classes) == (TINY, CLASSES)
    assert info.layout == ("ngc" if "ngc" in spelling else "current")
    assert info.se_weights == ("convolution" if "gates" in spelling else "linear")
    counter = info.batches_tracked
    assert (counter is None) == (spelling == "no counters")
    back = to_state_dict(weights.variables, layout="current", batches_tracked=counter or 0)
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
    info = from_state_dict(zeros, source="file").info
    assert (info.architecture, info.num_classes, info.se_weights) == (arch, 12, "none")


@pytest.mark.slow
def test_the_full_network_in_full(tmp_path: Path) -> None:
    """45,251,128 parameters, 758 entries, a strict load both ways, and the same logits."""
    torch.manual_seed(0)
    full = reference("se-resnext101-32x4d", 1000)
    torch_model.randomize_like_trained(full, seed=0, image_size=64)
    state = full.state_dict()
    torch.save(torch_model.with_prefix(torch_model.to_old_names(state)), tmp_path / "a")
    weights = read_weights(tmp_path / "a")
    variables, info = weights.variables, weights.info
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
        other = from_state_dict(as_numpy(spell(state)), source="file").variables
        jax.tree.map(np.testing.assert_array_equal, other, variables)
    (tmp_path / "a").unlink()
    save_file(state, tmp_path / "a.safetensors")
    again = read_weights(tmp_path / "a.safetensors").variables
    jax.tree.map(np.testing.assert_array_equal, again, variables)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnext50-32x4d"])
def test_files_of_other_networks_give_pytorchs_outputs(tmp_path: Path, arch: str) -> None:
    """As the module runs them, and not only as the forward pass from the file does."""
    made = reference(arch, 10)
    torch_model.randomize_like_trained(made, seed=0, image_size=64)
    file = save_as(tmp_path / "a.pth", torch_model.to_old_names(made.state_dict()))
    assert command("to-flax", file, tmp_path / "weights") == 0
    pixels = next(random_pixels(64))[:2]
    images = (pixels / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    with torch.no_grad():
        wanted = made.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2)).float())
    for path in (file, tmp_path / "weights"):
        found = read_runnable_weights(path).run(pixels)
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
    assert "contains layers.0.0.conv1.weight twice" in mismatch(state)
