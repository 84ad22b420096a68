"""Conversion against PyTorch: files, names, logits, whole training states, and the commands."""

import copy
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from convert import compare, torch_file, training
from convert.__main__ import main
from convert.weights import expected_shapes, from_state_dict, network, read_weights, to_state_dict
from seresnext_jax import checkpoint, names, optim
from seresnext_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from seresnext_jax.data.batch import Batch
from seresnext_jax.errors import UserError
from seresnext_jax.images import IMAGENET_MEAN, IMAGENET_STD
from seresnext_jax.mesh import make_mesh
from seresnext_jax.model import ARCHITECTURES
from seresnext_jax.precision import POLICIES
from seresnext_jax.progress import Progress
from seresnext_jax.steps import StepOptions, make_train_step
from seresnext_jax.weights import load_weights
from tests.reference import torch_model, torch_training

TINY = "se-resnext-tiny"
CLASSES = 7
StateDict = dict[str, torch.Tensor]


def reference(arch: str, num_classes: int) -> torch_model.ResNet:
    """The PyTorch network of a row of this project's table."""
    return torch_model.ResNet(torch_model.Architecture(**vars(ARCHITECTURES[arch])), num_classes)


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


def as_numpy(state: StateDict) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in state.items()}


def without_counters(state: StateDict) -> StateDict:
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


def assert_same_state(found: StateDict, wanted: StateDict) -> None:
    """Bit for bit, in order, the counters included."""
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name], tensor), name


def save_as(file: Path, state: StateDict) -> Path:
    torch.save(state, file)
    return file


def command(*words: object) -> int:
    return main([str(word) for word in words])


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
    kept = {k: v for k, v in model.state_dict().items() if not k.startswith("layers.3")}
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


# ---- training states ---------------------------------------------------------------------------

STEPS_PER_EPOCH = 5
CONFIG = Config(
    model=ModelConfig(TINY, num_classes=CLASSES),
    data=DataConfig(image_size=64),
    optim=OptimConfig(decay_mask="nvidia-names", weight_decay=0.01, warmup=1),
    epochs=10,
    batch_size=4,
    optimizer_batch_size=4,
    use_ema=0.9,
)
CONFIG_FILE = f"""
from seresnext_jax.config import *
def get_config():
    return {CONFIG!r}
"""


def random_batch(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (4, 64, 64, 3), np.uint8), rng.integers(0, CLASSES, 4, np.int32)


def torch_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    pixels, labels = random_batch(seed)
    images = (pixels / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    batch = torch_training.MicroBatch(
        torch.from_numpy(images.transpose(0, 3, 1, 2)).float(), torch.from_numpy(labels).long()
    )
    torch_training.train_step(model, optimizer, [batch], smoothing=0.1)


def flax_step(state: Any, config: Config, *, lr: float, seed: int) -> Any:
    pixels, labels = random_batch(seed)
    mesh = make_mesh(jax.devices()[:1])
    step = make_train_step(
        network(TINY, CLASSES).apply,
        optim.make_optimizer(config.optim),
        StepOptions(CLASSES, POLICIES["fp32"], label_smoothing=0.1, ema_decay=config.use_ema),
        mesh,
    )
    batch = Batch(jnp.asarray(pixels[None]), jnp.asarray(labels[None]), jnp.ones((1, 4), bool))
    return step(state, batch, jnp.float32(lr))[0]


def trained(decay: str) -> tuple[torch_model.ResNet, torch.optim.SGD]:
    """A network after two steps, so that its momentum is a sum."""
    torch.manual_seed(1)
    model = reference(TINY, CLASSES)
    torch_model.randomize_like_trained(model, seed=1, image_size=64)
    optimizer = torch_training.sgd(
        model,
        lr=0.02,
        momentum=0.875,
        weight_decay=0.01,
        decay=decay,  # type: ignore[arg-type]
    )
    for seed in (1, 2):
        torch_step(model, optimizer, seed)
    return model, optimizer


def average_of(model: torch_model.ResNet) -> StateDict:
    return {k: v * 2 if v.is_floating_point() else v for k, v in model.state_dict().items()}


def to_checkpoint(tmp_path: Path, *more: object) -> int:
    (tmp_path / "config.py").write_text(CONFIG_FILE)
    return command(
        "to-flax", tmp_path / "a.pth.tar", tmp_path / "run",
        "--training", tmp_path / "config.py", "--steps-per-epoch", STEPS_PER_EPOCH, *more,
    )  # fmt: skip


def assert_close(found: Any, wanted: Any) -> None:
    """Within 1e-5 of each tensor's largest entry."""

    def check(a: Any, b: Any) -> None:
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1e-3, np.abs(b).max()))

    jax.tree.map(check, found, wanted)


def numpy_optimizer(optimizer: torch.optim.SGD) -> dict[str, Any]:
    """An optimizer's state dict with arrays for tensors."""
    state = optimizer.state_dict()
    buffers = {
        i: {"momentum_buffer": entry["momentum_buffer"].numpy()}
        for i, entry in state["state"].items()
    }
    return {**state, "state": buffers}


def test_a_training_state_goes_on_as_in_pytorch(tmp_path: Path) -> None:
    model, optimizer = trained("nvidia-names")
    file = tmp_path / "a.pth.tar"
    torch_training.save_training_checkpoint(file, model, optimizer, epoch=3, best_prec1=61.5)
    config = replace(CONFIG, use_ema=None)
    state, meta, _, _ = training.from_torch(
        torch_file.read(file), file, config, steps_per_epoch=STEPS_PER_EPOCH
    )
    assert (int(state.step), meta["step"], meta["epoch"]) == (15, 15, 3)
    progress = Progress.from_json(meta["progress"])
    assert (progress.finished_epochs, progress.best_top1) == (3, 61.5)
    assert state.ema is None

    state = flax_step(state, config, lr=0.02, seed=3)
    torch_step(model, optimizer, seed=3)
    wanted, _ = from_state_dict(as_numpy(model.state_dict()), source="reference")
    assert_close(state.variables, wanted)
    momentum = training.momentum_from_torch(
        numpy_optimizer(optimizer), wanted["params"], source="reference"
    )
    assert_close(state.opt_state[1].trace, momentum)


def test_momentum_in_a_single_group() -> None:
    """The original's --bn-weight-decay."""
    model, optimizer = trained("all")
    variables, _ = from_state_dict(as_numpy(model.state_dict()), source="reference")
    state = numpy_optimizer(optimizer)
    momentum = training.momentum_from_torch(state, variables["params"], source="reference")
    by_name = {
        name: optimizer.state[parameter]["momentum_buffer"].numpy()
        for name, parameter in model.named_parameters()
    }
    np.testing.assert_array_equal(
        momentum["layers"]["0"]["0"]["conv2"]["kernel"],
        by_name["layers.0.0.conv2.weight"].transpose(2, 3, 1, 0),
    )
    config = OptimConfig(decay_mask="all", weight_decay=0.01)
    back = training.momentum_to_torch(momentum, config, lr=0.02)
    assert [group["params"] for group in back["param_groups"]] == [list(range(len(by_name)))]
    assert back["param_groups"][0]["weight_decay"] == 0.01
    for i, buffer in enumerate(by_name.values()):
        np.testing.assert_array_equal(back["state"][i]["momentum_buffer"], buffer)


def test_a_training_state_both_ways_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = trained("nvidia-names")
    file, out = tmp_path / "a.pth.tar", tmp_path / "out.pth.tar"
    average = {
        name: torch.tensor(2) if name.endswith("num_batches_tracked") else value
        for name, value in average_of(model).items()
    }
    torch_training.save_training_checkpoint(
        file, model, optimizer, epoch=3, best_prec1=61.5, ema=average
    )
    assert to_checkpoint(tmp_path) == 0
    assert command(
        "to-torch", tmp_path / "run", out, "--layout", "current", "--module-prefix", "--checkpoint"
    ) == 0  # fmt: skip

    wanted = torch.load(file, weights_only=False)
    found = torch.load(out, weights_only=True)
    assert (found["epoch"], found["best_prec1"]) == (3, 61.5)
    assert_same_state(found["state_dict"], wanted["state_dict"])
    assert_same_state(found["state_dict_ema"], wanted["state_dict_ema"])
    assert found["state_dict"]["module.bn1.num_batches_tracked"] == 3
    assert found["optimizer"]["state"].keys() == wanted["optimizer"]["state"].keys()
    for i, entry in wanted["optimizer"]["state"].items():
        buffer = found["optimizer"]["state"][i]["momentum_buffer"]
        assert torch.equal(buffer, entry["momentum_buffer"]), i
    groups = [{k: v for k, v in g.items() if k != "lr"} for g in found["optimizer"]["param_groups"]]
    assert groups == [
        {k: v for k, v in g.items() if k != "lr"} for g in wanted["optimizer"]["param_groups"]
    ]
    # Epoch 2 is the second after one of warm-up: a cosine over the nine left.
    rate = 0.256 * 4 / 256 * 0.5 * (1 + np.cos(np.pi * 1 / 9))
    assert [g["lr"] for g in found["optimizer"]["param_groups"]] == pytest.approx([rate] * 2)

    again = reference(TINY, CLASSES)
    again.load_state_dict({k.removeprefix("module."): v for k, v in found["state_dict"].items()})
    resumed = torch_training.sgd(again, lr=1.0)
    resumed.load_state_dict(found["optimizer"])
    torch_step(again, resumed, seed=3)
    for group in optimizer.param_groups:
        group["lr"] = resumed.param_groups[0]["lr"]
    torch_step(model, optimizer, seed=3)
    assert_same_state(without_counters(again.state_dict()), without_counters(model.state_dict()))


def test_what_a_config_changes_is_said_and_can_be_overridden(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, optimizer = trained("nvidia-names")
    file = tmp_path / "a.pth.tar"
    for group in optimizer.param_groups:
        group["lr"] = 0.256 * 4 / 256 * 0.5 * (1 + np.cos(np.pi * 1 / 9))
    torch_training.save_training_checkpoint(
        file, model, optimizer, epoch=3, best_prec1=0, ema=average_of(model)
    )

    def notes(*more: str) -> str:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        capsys.readouterr()
        to_checkpoint(tmp_path, *more)
        return "\n".join(
            line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")
        )

    assert notes() == ""
    assert "add --optim.decay-mask nvidia-names" in notes("--optim.decay-mask", "no-bn")
    assert "add --optim.momentum 0.875" in notes("--optim.momentum=0.5")
    assert "add --optim.weight-decay 0.01" in notes("--optim.weight-decay", "0.02")
    assert "nesterov False, the config True" in notes("--optim.nesterov")
    assert "last learning rate is" in notes("--optim.lr", "3")
    assert "moving average is left out: add --use-ema" in notes("--use-ema", "None")
    with pytest.raises(UserError, match="did you mean --optim.momentum"):
        notes("--optim.momentun", "0.5")
    with pytest.raises(UserError, match="as --optimizer-batch-size"):
        notes("--optimizer-batch-size", "-1")
    with pytest.raises(UserError, match="after epoch 3 of a run.* --epochs"):
        notes("--epochs", "2")


def test_a_converted_checkpoint_restores_into_a_run(tmp_path: Path) -> None:
    model, optimizer = trained("nvidia-names")
    torch_training.save_training_checkpoint(
        tmp_path / "a.pth.tar", model, optimizer, epoch=3, best_prec1=0, ema=average_of(model)
    )
    to_checkpoint(tmp_path)
    file = tmp_path / "a.pth.tar"
    like, *_ = training.from_torch(torch_file.read(file), file, CONFIG, steps_per_epoch=1)
    with checkpoint.Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        state, meta, notes = checkpoints.restore_newest(jax.tree.map(jnp.zeros_like, like))
    assert (int(state.step), notes) == (15, [])
    jax.tree.map(np.testing.assert_array_equal, state.params, like.params)
    jax.tree.map(np.testing.assert_array_equal, state.ema, like.ema)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, like.opt_state)
    assert meta["config"]["model"]["arch"] == TINY
    assert (meta["plan"]["steps_per_epoch"], meta["plan"]["global_batch"]) == (5, 4)
    assert (meta["fingerprint"], meta["epoch"], meta["step"]) == (None, 3, 15)
    with pytest.raises(UserError, match="has checkpoints already"):
        to_checkpoint(tmp_path)


def test_before_the_first_step_there_is_no_momentum(tmp_path: Path) -> None:
    model = reference(TINY, CLASSES)
    file = tmp_path / "a.pth.tar"
    torch_training.save_training_checkpoint(
        file, model, torch_training.sgd(model, lr=0.1), epoch=0, best_prec1=0
    )
    state, *_ = training.from_torch(torch_file.read(file), file, CONFIG, steps_per_epoch=5)
    assert all(not x.any() for x in jax.tree.leaves(state.opt_state))


def test_optimizers_that_are_not_the_originals() -> None:
    model, optimizer = trained("nvidia-names")
    params = from_state_dict(as_numpy(model.state_dict()), source="reference")[0]["params"]

    def refusal(change: Callable[[dict[str, Any]], Any]) -> str:
        state = copy.deepcopy(numpy_optimizer(optimizer))
        change(state)
        with pytest.raises(UserError, match=": convert the weights only$") as caught:
            training.momentum_from_torch(state, params, source="file")
        return str(caught.value)

    # RMSprop with momentum has momentum buffers, too.
    assert "of another optimizer than SGD" in refusal(
        lambda s: s["state"][0].update(square_avg=np.zeros(3), step=1)
    )
    assert "not those of SGD" in refusal(lambda s: s["param_groups"][0].pop("nesterov"))
    assert "not those of SGD" in refusal(lambda s: s["param_groups"][0].update(params=None))
    assert "not those of SGD" in refusal(lambda s: s["param_groups"][1].update(lr="fast"))
    assert "not those of SGD" in refusal(lambda s: s.update(param_groups=3))
    assert "another optimizer" in refusal(lambda s: s.update(state=[]))
    assert "lacks the momentum of 1 tensors, bn1.weight first" in refusal(
        lambda s: s["state"].pop(0)
    )
    assert "no tensor as the momentum of bn1.weight" in refusal(
        lambda s: s["state"][0].update(momentum_buffer="x")
    )


def test_an_average_of_another_network(tmp_path: Path) -> None:
    model, optimizer = trained("nvidia-names")
    torch_training.save_training_checkpoint(
        tmp_path / "a.pth.tar", model, optimizer, 3, 0, ema=reference("resnet18", 7).state_dict()
    )
    with pytest.raises(UserError, match="moving average of a resnet18"):
        to_checkpoint(tmp_path)


def test_training_states_that_do_not_fit(tmp_path: Path) -> None:
    model = reference(TINY, CLASSES)
    torch.save(model.state_dict(), tmp_path / "a.pth.tar")
    with pytest.raises(UserError, match="no training state"):
        to_checkpoint(tmp_path)
    foreign = torch.optim.SGD(
        [{"params": list(model.parameters())[:3]}, {"params": list(model.parameters())[3:]}], lr=1
    )
    torch_training.save_training_checkpoint(tmp_path / "a.pth.tar", model, foreign, 1, 0)
    with pytest.raises(UserError, match=r"optimizer groups of \[3, \d+\] tensors"):
        to_checkpoint(tmp_path)
    with pytest.raises(UserError, match="7 classes, the config is .* with 8"):
        to_checkpoint(tmp_path, "--model.num-classes", "8")
