"""Which table of tensors in a file is the weights, whatever its name, prefix and neighbours."""

import pickle
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

from seresnext_jax import torch_keys
from seresnext_jax.errors import UserError
from seresnext_jax.model.network import ARCHITECTURES
from seresnext_jax.weights.describe import describe, describe_content
from seresnext_jax.weights.identify import expected_shapes
from seresnext_jax.weights.read import inspect_weights, read_weights
from seresnext_jax.weights.state_dict import from_state_dict
from tests.reference import torch_model
from tests.weights.conversion import CLASSES, TINY, StateDict, command, save_as, trained_like
from tests.weights.reading import read_torch_file


@pytest.fixture(scope="module")
def state() -> StateDict:
    """Not to be changed: tests share it."""
    return trained_like().state_dict()


def average(state: StateDict) -> StateDict:
    return {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}


def prefixed(state: StateDict, prefix: str) -> StateDict:
    return {prefix + k: v for k, v in state.items()}


def assert_weights(file: Path, state: StateDict, *, ema: bool = False, table: str = "") -> None:
    found = read_weights(file, ema=ema, table=table).variables["params"]["fc"]["bias"]
    np.testing.assert_array_equal(found, state["fc.bias"].numpy())


# ---- names of tables ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["state_dict", "model", "model_state_dict", "net", "module", "weights", "my network",
     "model/state_dict", "checkpoint/model/net"],
)  # fmt: skip
def test_the_only_table_is_the_weights(tmp_path: Path, state: StateDict, path: str) -> None:
    content: Any = state
    for key in reversed(path.split("/")):
        content = {
            "epoch": 3,
            key: content,
            "rng": {"cpu": torch.zeros(9, dtype=torch.uint8)},
            "criterion": {"weight": torch.ones(CLASSES)},
            "optimizer": {"state": {}, "param_groups": []},
        }
    file = save_as(tmp_path / "a.pth", content)
    weights = read_weights(file)
    assert (weights.info.architecture, weights.info.table) == (TINY, path)
    assert weights.info.epoch == 3
    assert command("verify", file, save_as(tmp_path / "b.pth", state)) == 0


@pytest.mark.parametrize(
    "key", ["state_dict_ema", "ema_state_dict", "model_ema", "ema", "ema_model", "swa_model"]
)
def test_names_of_moving_averages(tmp_path: Path, state: StateDict, key: str) -> None:
    ema = {"n_averaged": torch.tensor(7), **prefixed(average(state), "module.")}
    file = save_as(tmp_path / "a.pth", {"model": state, "epoch": 5, key: ema})
    assert_weights(file, state)
    assert_weights(file, average(state), ema=True)
    info = read_weights(file, ema=True).info
    assert (info.ema, info.table, info.prefix) == (True, key, "module.")
    assert info.notes == ("1 entry is not a weight and was ignored: n_averaged",)
    file = save_as(tmp_path / "b.pth", {"model": state, "average": {key: average(state)}})
    assert_weights(file, average(state), ema=True)


def test_an_average_of_the_same_tensors_is_found(tmp_path: Path, state: StateDict) -> None:
    file = save_as(tmp_path / "a.pth", {"state_dict": state, "state_dict_ema": state})
    assert read_weights(file, ema=True).info.ema


def test_several_tables_are_listed_with_a_command_that_works(
    tmp_path: Path, state: StateDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"student": state, "teacher": average(state), "epoch": 1}
    file = save_as(tmp_path / "a.pth", content)
    with pytest.raises(UserError, match=r"student \(120 tensors\), teacher \(120") as caught:
        read_weights(file)
    words = str(caught.value).partition("python -m convert ")[2].split()
    monkeypatch.chdir(tmp_path)
    assert command(*words) == 0
    assert_weights(tmp_path / "weights", state)
    assert_weights(file, average(state), table="teacher")
    assert read_weights(file, table="teacher").info.table == "teacher"
    assert command("verify", tmp_path / "weights", file, "--table", "student") == 0
    assert command("verify", file, tmp_path / "weights", "--table", "teacher") == 1
    with pytest.raises(UserError, match="no table x: give --table one of student, teacher"):
        read_weights(file, table="x")
    with pytest.raises(UserError, match="leave --table out"):
        read_weights(tmp_path / "weights", table="student")
    with pytest.raises(UserError, match="leave --ema out"):
        read_weights(file, table="student", ema=True)


def test_of_several_tables_the_one_that_fits_is_taken(tmp_path: Path, state: StateDict) -> None:
    other = {"encoder.weight": torch.ones(3, 3)}
    file = save_as(tmp_path / "a.pth", {"generator": other, "discriminator": state})
    assert read_weights(file).info.table == "discriminator"


@pytest.mark.parametrize(
    ("prefix", "at"), [("model.", "ema_model.module"), ("model.", "model.ema"), ("", "ema")]
)
def test_several_networks_in_one_table(
    tmp_path: Path, state: StateDict, prefix: str, at: str
) -> None:
    """As Lightning saves a module that has the network and its average, or an average inside."""
    both = prefixed(state, prefix) | prefixed(average(state), f"{at}.")
    file = save_as(tmp_path / "a.ckpt", {"state_dict": both, "pytorch-lightning_version": "2"})
    assert_weights(file, state)
    assert_weights(file, average(state), ema=True)
    assert_weights(file, average(state), table=f"state_dict/{at}")


def test_the_table_of_a_file_with_values_between(tmp_path: Path, state: StateDict) -> None:
    file = save_as(tmp_path / "a.pth", {**state, "epoch": 3, "note": "x"})
    info = read_weights(file).info
    assert info.notes == ("entries that are not tensors were ignored: epoch, note",)


# ---- names of entries --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "backbone.", "net.", "module.model.", "model._orig_mod.",
     "model.backbone.module.", "1.", "encoder_q."],
)  # fmt: skip
@pytest.mark.parametrize("layout", ["ngc", "current"])
def test_a_shared_prefix_is_stripped_and_reported(
    tmp_path: Path, state: StateDict, prefix: str, layout: str
) -> None:
    spelled = torch_model.to_old_names(state) if layout == "ngc" else state
    file = save_as(tmp_path / "a.pth", prefixed(spelled, prefix))
    info = read_weights(file).info
    assert (info.prefix, info.layout) == (prefix, layout)
    assert command("verify", file, save_as(tmp_path / "b.pth", state)) == 0


def test_known_extra_entries_are_ignored_with_a_note(
    tmp_path: Path, state: StateDict, capsys: pytest.CaptureFixture[str]
) -> None:
    extras = {
        f"{k.rpartition('.')[0]}.{name}": torch.zeros(1, dtype=torch.float64)
        for k in state
        for name in ("total_ops", "total_params")
    }
    extras |= {"total_ops": torch.zeros(1), "n_averaged": torch.tensor(3)}
    extras |= {"criterion.weight": torch.ones(CLASSES), "loss_fn.pos_weight": torch.ones(CLASSES)}
    file = save_as(tmp_path / "a.pth", prefixed(state, "model.") | prefixed(extras, "model."))
    assert read_weights(file).info.dtype == "float32"
    assert command("to-flax", file, tmp_path / "weights") == 0
    note = "entries are not weights and were ignored: n_averaged, pos_weight, total_ops"
    assert note in capsys.readouterr().out
    # Outside the prefix, as the buffers of a Lightning module.
    file = save_as(tmp_path / "b.pth", prefixed(state, "model.") | extras)
    assert command("verify", file, tmp_path / "weights") == 0


def test_differences_have_the_files_own_names(tmp_path: Path, state: StateDict) -> None:
    changed = dict(torch_model.to_old_names(state))
    del changed["layer2.0.bn2.bias"]
    changed["layer1.0.conv1.weight"] = torch.zeros(5, 6, 1, 1)
    changed["gate"] = torch.zeros(1)
    file = save_as(tmp_path / "a.pth", {"net": prefixed(changed, "model.")})
    with pytest.raises(UserError) as caught:
        read_weights(file)
    message = str(caught.value)
    assert "1 unexpected (+ model.gate)" in message
    assert "1 missing (- model.layer2.0.bn2.bias)" in message
    assert "1 misshaped (~ model.layer1.0.conv1.weight (5, 6, 1, 1) for" in message


# ---- networks of others ------------------------------------------------------------------------


def zeros(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}


def timm_seresnext101() -> dict[str, tuple[int, ...]]:
    """The shapes of timm's seresnext101_32x4d: torchvision's names, gates of 1/16 of the width."""
    plain = expected_shapes("resnext101-32x4d", 1000)
    shapes = {torch_keys.to_ngc_layout(key): shape for key, shape in plain.items()}
    for stage, blocks in enumerate(ARCHITECTURES["resnext101-32x4d"].layers):
        width = 256 * 2**stage
        for block in range(blocks):
            gate = f"layer{stage + 1}.{block}.se."
            shapes |= {
                f"{gate}fc1.weight": (width // 16, width, 1, 1),
                f"{gate}fc1.bias": (width // 16,),
                f"{gate}fc2.weight": (width, width // 16, 1, 1),
                f"{gate}fc2.bias": (width,),
            }
    return shapes


def test_timms_network_is_refused_with_the_reason() -> None:
    with pytest.raises(UserError) as caught:
        from_state_dict(zeros(timm_seresnext101()), source="timm.pth")
    message = str(caught.value)
    assert "it is another network" in message
    assert "16, 32, 64, 128 wide (16 in every block in se-resnext101-32x4d)" in message
    assert "+ layer1.0.se.fc1.weight" in message
    assert "- layer1.0.squeeze.squeeze.weight" in message


@pytest.mark.parametrize("arch", ["resnet50", "resnext50-32x4d", "resnext101-32x8d"])
def test_torchvisions_names_fit(arch: str) -> None:
    plain = expected_shapes(arch, 1000)
    shapes = {torch_keys.to_ngc_layout(key): shape for key, shape in plain.items()}
    assert "layer1.0.downsample.0.weight" in shapes
    info = from_state_dict(zeros(shapes), source="tv.pth").info
    assert (info.architecture, info.layout) == (arch, "ngc")


def test_inspect_describes_an_unknown_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {"encoder": {"a.weight": torch.ones(2, 3)}, "epoch": 3, "args": {"lr": float("nan")}}
    file = save_as(tmp_path / "a.pth", content)
    assert command("inspect", file, "--json", tmp_path / "a.json") == 0
    printed = capsys.readouterr().out
    assert "table encoder: 1 tensors, float32; it fits no architecture" in printed
    assert "+ a.weight" in printed
    facts = inspect_weights(file)
    assert (facts["kind"], facts["format"]) == ("torch checkpoint", "torch zip")
    assert facts["architecture"] is None and "fits no architecture" in facts["problem"]
    assert facts["tables"][0]["numbers"] == 6
    assert facts["content"] == {"epoch": 3, "args": {"lr": "nan"}}
    assert "NaN" not in (tmp_path / "a.json").read_text()
    many = describe_content({str(i): 2**i for i in range(50)}, [])
    assert (many["39"], many["..."]) == (2**39, "10 more")
    assert describe(2**70) == "a large integer"
    nothing = save_as(tmp_path / "b.pth", {"epoch": 3})
    assert command("inspect", nothing) == 0
    assert "no state dict" in capsys.readouterr().out


# ---- values ------------------------------------------------------------------------------------


def test_values_that_float32_lacks_are_reported_and_not_identical(
    tmp_path: Path, state: StateDict, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = {k: v.double() if v.is_floating_point() else v for k, v in state.items()}
    exact = save_as(tmp_path / "exact.pth", wide)
    narrowed = save_as(tmp_path / "wide.pth", wide | {"fc.bias": wide["fc.bias"] * (1 + 1e-10)})

    def verdict(a: Path, b: Path) -> str:
        command("verify", a, b)
        return capsys.readouterr().out.rpartition("verdict: ")[2].strip()

    assert command("to-flax", narrowed, tmp_path / "weights") == 0
    assert "note: 1 tensor was narrowed from float64 to float32" in capsys.readouterr().out
    assert command("inspect", narrowed) == 0
    assert "note: 1 tensor was narrowed from float64" in capsys.readouterr().out
    assert verdict(narrowed, tmp_path / "weights") == "equal"
    assert verdict(tmp_path / "weights", narrowed) == "equal"
    assert verdict(narrowed, exact) == "equal"
    assert verdict(narrowed, narrowed) == "identical"
    assert command("to-flax", exact, tmp_path / "weights") == 0
    assert "narrowed" not in capsys.readouterr().out
    assert verdict(exact, tmp_path / "weights") == "identical"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_widening_is_exact(tmp_path: Path, state: StateDict, dtype: torch.dtype) -> None:
    half = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    file = save_as(tmp_path / "a.pth", half)
    weights = read_weights(file)
    assert (weights.exact, weights.info.notes) == ({}, ())
    assert weights.info.dtype == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_refused_by_name(
    tmp_path: Path, state: StateDict, value: float
) -> None:
    bias = state["fc.bias"].clone()
    bias[3] = value
    file = save_as(tmp_path / "a.pth", {"net": prefixed(state | {"fc.bias": bias}, "model.")})
    message = r"model.fc.bias contains NaN or infinity \(1 of 7 values\)"
    for words in (["to-flax", file, tmp_path / "w"], ["verify", file, file]):
        with pytest.raises(UserError, match=message):
            command(*words)
    assert inspect_weights(file)["problem"] is not None


def test_a_number_too_large_for_float32_is_refused(tmp_path: Path, state: StateDict) -> None:
    wide = {"fc.bias": state["fc.bias"].double() * 1e300}
    file = save_as(tmp_path / "a.pth", state | wide)
    with pytest.raises(UserError, match=r"fc.bias contains numbers too large for float32"):
        read_weights(file)


def test_a_pickle_of_numpy_arrays(tmp_path: Path, state: StateDict) -> None:
    arrays = {k: v.numpy() for k, v in state.items()}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": arrays, "author": "x"}))
    found = read_weights(tmp_path / "a.pkl").variables
    wanted = read_weights(save_as(tmp_path / "a.pth", state)).variables
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_tensors_of_an_unusual_form(tmp_path: Path, state: StateDict) -> None:
    """Parameters, views, transposed and channels-last tensors."""
    changed: dict[str, Any] = {k: v.clone() for k, v in state.items()}
    changed["fc.weight"] = torch.nn.Parameter(state["fc.weight"].T.contiguous().T)
    changed["conv1.weight"] = state["conv1.weight"].to(memory_format=torch.channels_last)
    changed["fc.bias"] = torch.cat([torch.ones(3), state["fc.bias"]])[3:]
    for zip_format in (True, False):
        torch.save(changed, tmp_path / "a.pth", _use_new_zipfile_serialization=zip_format)
        found = read_torch_file(tmp_path / "a.pth").weights
        assert found is not None
        for name, tensor in state.items():
            np.testing.assert_array_equal(found[name], tensor.numpy())
