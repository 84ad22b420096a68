"""The weights folder: what goes in comes out, and damage is one clear line."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from seresnext_jax.checkpoint.save import Checkpoints
from seresnext_jax.config import Config, DataConfig, ModelConfig
from seresnext_jax.errors import UserError
from seresnext_jax.training.state import create_train_state
from seresnext_jax.weights.folder import read_weights_folder, write_weights_folder
from seresnext_jax.weights.identify import network
from seresnext_jax.weights.info import Weights, WeightsInfo
from seresnext_jax.weights.read import read_weights
from seresnext_jax.weights.state_dict import to_state_dict
from seresnext_jax.weights.torch_write import write_torch_file
from tests.checkpoint.metas import make_meta
from tests.programs import ROOT

INFO = WeightsInfo(
    architecture="se-resnext-tiny",
    num_classes=3,
    class_names=("a", "b", "ç"),
    image_size=64,
    source="x.pth.tar",
    epoch=4,
    top1=81.25,
)


@pytest.fixture(scope="module")
def variables() -> dict[str, Any]:
    """Weights in which no two tensors are alike."""
    model = network("se-resnext-tiny", 3)
    images = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    rng = np.random.default_rng(0)
    made: dict[str, Any] = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32), shapes
    )
    return made


def assert_same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_folder_keeps_everything(tmp_path: Path, variables: dict[str, Any]) -> None:
    write_weights_folder(tmp_path / "weights", Weights(variables, INFO))
    loaded = read_weights_folder(tmp_path / "weights")
    assert_same(loaded.variables, variables)
    assert loaded.info == INFO
    assert {x.dtype for x in jax.tree.leaves(loaded.variables)} == {np.dtype("float32")}
    stored = json.loads((tmp_path / "weights" / "metadata.json").read_text())
    assert stored["architecture"] == "se-resnext-tiny"
    assert "jax" in stored["versions"]
    tensors = load_file(tmp_path / "weights" / "model.safetensors")
    assert "params/layers/0/0/conv1/kernel" in tensors


def test_a_folder_of_weights_is_replaced_and_no_other(
    tmp_path: Path, variables: dict[str, Any]
) -> None:
    folder = tmp_path / "weights"
    write_weights_folder(folder, Weights(jax.tree.map(np.zeros_like, variables), INFO))
    write_weights_folder(folder, Weights(variables, INFO))
    assert_same(read_weights_folder(folder).variables, variables)
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="contains other files"):
        write_weights_folder(folder, Weights(variables, INFO))
    assert (folder / "thesis.tex").exists()
    with pytest.raises(UserError, match="is a file"):
        write_weights_folder(folder / "thesis.tex", Weights(variables, INFO))
    assert [p.name for p in tmp_path.iterdir()] == ["weights"]


@pytest.mark.parametrize("steps_done", [0, 1, 2])
def test_weights_outlive_a_writer_that_ends_while_it_replaces_them(
    steps_done: int, tmp_path: Path, variables: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever rename or deletion is the last one, complete weights are left."""
    folder = tmp_path / "weights"
    write_weights_folder(folder, Weights(jax.tree.map(np.zeros_like, variables), INFO))
    steps = iter(range(9))

    def until_the_end(function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            if next(steps) >= steps_done:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return step

    monkeypatch.setattr(Path, "rename", until_the_end(Path.rename))
    monkeypatch.setattr(shutil, "rmtree", until_the_end(shutil.rmtree))
    with pytest.raises(KeyboardInterrupt):
        write_weights_folder(folder, Weights(variables, INFO))
    left = [read_weights_folder(path).variables for path in tmp_path.iterdir()]
    assert len(left) == 2
    assert {bool(np.any(jax.tree.leaves(tree)[0])) for tree in left} == {False, True}


def test_a_folder_that_can_not_be_replaced_is_unchanged(
    tmp_path: Path, variables: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = jax.tree.map(np.zeros_like, variables)
    write_weights_folder(tmp_path / "weights", Weights(zeros, INFO))
    rename, calls = Path.rename, iter(range(9))

    def failing(path: Path, target: Path) -> Path:
        if next(calls) == 1:  # the old folder has been renamed
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(UserError, match="weights can't be written"):
        write_weights_folder(tmp_path / "weights", Weights(variables, INFO))
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    assert_same(read_weights_folder(tmp_path / "weights").variables, zeros)


@pytest.mark.parametrize("damage", ["cut", "no metadata", "bad metadata", "foreign metadata"])
def test_damage_is_one_line(tmp_path: Path, variables: dict[str, Any], damage: str) -> None:
    write_weights_folder(tmp_path, Weights(variables, INFO))
    tensors, metadata = tmp_path / "model.safetensors", tmp_path / "metadata.json"
    if damage == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-100])
    elif damage == "no metadata":
        metadata.unlink()
    else:
        metadata.write_text("{" if damage == "bad metadata" else '{"class_names": null, "a": 1}')
    with pytest.raises(UserError, match="not a complete weights folder") as caught:
        read_weights(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_names_a_wrong_architecture(
    tmp_path: Path, variables: dict[str, Any]
) -> None:
    lie = WeightsInfo(architecture="se-resnext-tiny", num_classes=4)
    write_weights_folder(tmp_path, Weights(variables, lie))
    with pytest.raises(UserError, match=r"2 misshaped .*fc.weight \(3, 512\) for \(4, 512\)"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ["a", "b"]}, "2 class_names for num_classes 3"),
        ({"num_classes": "3"}, "num_classes is '3'"),
        ({"image_size": -1}, "image_size is -1"),
        ({"image_size": True}, "image_size is True"),
        ({"num_classes": 10**9}, "num_classes is 1000000000"),
        ({"interpolation": "nearest"}, "interpolation is 'nearest'"),
        ({"class_names": ["a", "b", 3]}, "class_names are not all text"),
        ({"architecture": None}, "architecture is None"),
        ({"architecture": "\x1b[2J" + 99 * "x"}, r"unknown architecture, \\x1b\[2Jx+\.\.\.:"),
    ],
)
def test_metadata_that_can_not_be_true(
    tmp_path: Path, variables: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    write_weights_folder(tmp_path, Weights(variables, INFO))
    file = tmp_path / "metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=message) as caught:
        read_weights(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("with_ema", [True, False])
def test_a_checkpoint_is_read_as_weights(
    tmp_path: Path, variables: dict[str, Any], with_ema: bool
) -> None:
    config = Config(
        model=ModelConfig("se-resnext-tiny", num_classes=3),
        data=DataConfig(image_size=64, eval_margin=7, interpolation="bicubic"),
        use_ema=0.9 if with_ema else None,
    )
    trained = create_train_state(config, jax.tree.map(jnp.asarray, variables))
    if with_ema:
        trained = replace(trained, ema=jax.tree.map(lambda x: x + 1, trained.ema))
    counters = {"weights": 5, "ema": 3}
    facts: dict[str, Any] = {"epoch": 2, "top1": 50.0, "batches_tracked": counters}
    meta = make_meta(config=config, class_names=("a", "b", "c"), **facts)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(trained, meta)

    weights = read_weights(tmp_path)
    info = weights.info
    assert_same(weights.variables, variables)
    assert (info.architecture, info.num_classes, info.image_size) == ("se-resnext-tiny", 3, 64)
    assert (info.eval_margin, info.interpolation, info.batches_tracked) == (7, "bicubic", 5)
    assert (info.class_names, info.epoch, info.top1) == (("a", "b", "c"), 2, 50.0)
    if with_ema:
        average = read_weights(tmp_path, ema=True)
        assert_same(average.variables, jax.tree.map(lambda x: x + 1, variables))
        assert average.info.ema and average.info.batches_tracked == 3
    else:
        with pytest.raises(UserError, match="no moving average: leave --ema out"):
            read_weights(tmp_path, ema=True)
    with pytest.raises(UserError, match="one set of weights: leave --table out"):
        read_weights(tmp_path, table="state_dict")
    (meta_file,) = (p for p in tmp_path.glob("checkpoints/0/meta/*") if p.name == "metadata")
    meta_file.write_text("{")
    with pytest.raises(UserError, match="checkpoint .*/0 can't be read") as caught:
        read_weights(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_with_more_than_weights(tmp_path: Path, variables: dict[str, Any]) -> None:
    write_weights_folder(tmp_path, Weights({**variables, "opt": {"a": np.zeros(1)}}, INFO))
    with pytest.raises(UserError, match="contains more than weights .*: convert again"):
        read_weights(tmp_path)


def test_a_folder_in_the_home(
    tmp_path: Path, variables: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell leaves the ~ of --weights=~/weights."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write_weights_folder(tmp_path / "weights", Weights(variables, INFO))
    assert read_weights("~/weights").info == INFO


@pytest.mark.parametrize("path", ["absent", "."])
def test_a_place_without_weights(tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError, match="neither weights nor a checkpoint"):
        read_weights(tmp_path / path)


def test_reading_needs_no_torch(tmp_path: Path, variables: dict[str, Any]) -> None:
    write_weights_folder(tmp_path / "weights", Weights(variables, INFO))
    state = to_state_dict(variables, layout="ngc")
    write_torch_file(tmp_path / "a.pth", state)
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from seresnext_jax.weights.read import read_weights\n"
        "print(read_weights(Path(sys.argv[1]) / 'weights').info.top1)\n"
        "print(read_weights(Path(sys.argv[1]) / 'a.pth').info.architecture)\n"
    )
    root = ROOT
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["81.25", "se-resnext-tiny"]


def test_nan_is_refused(tmp_path: Path, variables: dict[str, Any]) -> None:
    broken = jax.tree.map(np.copy, variables)
    broken["params"]["fc"]["bias"][:2] = np.nan
    write_weights_folder(tmp_path, Weights(broken, INFO))
    with pytest.raises(UserError, match=r"params/fc/bias contains NaN or infinity \(2 of 3"):
        read_weights(tmp_path)


def test_a_number_that_json_lacks_is_null(tmp_path: Path, variables: dict[str, Any]) -> None:
    write_weights_folder(tmp_path, Weights(variables, replace(INFO, top1=float("nan"))))
    assert json.loads((tmp_path / "metadata.json").read_text())["top1"] is None
