"""Exported files: run by onnxruntime and JAX, compared with PyTorch; a failed check leaves none."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from seresnext_jax.data.images import open_rgb
from seresnext_jax.data.transform import CentreCrop
from seresnext_jax.errors import UserError
from seresnext_jax.export import onnx_file
from seresnext_jax.export.export import LIMITS, export_weights
from seresnext_jax.export.exported_network import ExportPrecision
from seresnext_jax.model.initial import init_variables
from seresnext_jax.model.network import ARCHITECTURES
from seresnext_jax.weights.folder import write_weights_folder
from seresnext_jax.weights.identify import network
from seresnext_jax.weights.info import Weights, WeightsInfo
from seresnext_jax.weights.state_dict import to_state_dict
from seresnext_jax.weights.torch_forward import extract_features
from tests.weights.conversion import command

TINY, SIZE, CLASSES = "se-resnext-tiny", 40, ("ant", "bee", "cow")
"""40 pixels: odd sizes in the network, where wrong padding would show."""


@cache
def weights_of(arch: str) -> Weights:
    """Random weights; statistics and biases are random, too, so that none can be left out."""
    variables = jax.tree.map(np.array, init_variables(network(arch, len(CLASSES)), 0))
    random = np.random.default_rng(0)

    def changed(path: Any, x: np.ndarray) -> np.ndarray:
        name = path[-1].key
        if name in ("bias", "mean"):
            return (x + 0.1 * random.normal(size=x.shape)).astype(np.float32)
        if name in ("scale", "var"):
            return (x * random.uniform(0.8, 1.2, x.shape)).astype(np.float32)
        return x

    variables = jax.tree.map_with_path(changed, variables)
    return Weights(variables, WeightsInfo(arch, len(CLASSES), CLASSES, SIZE, 4))


def pixels(images: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (images, SIZE, SIZE, 3), np.uint8)


def by_pytorch(arch: str, images: np.ndarray) -> np.ndarray:
    state = to_state_dict(weights_of(arch).variables, layout="current")
    return extract_features(state, images)["classifier"]


def run_alone(path: Path, images: np.ndarray, tmp_path: Path) -> np.ndarray:
    """The logits of a StableHLO file in a process that knows nothing of this project."""
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, numpy as np; from jax import export; file, x, y = sys.argv[1:]; "
        "run = export.deserialize(bytearray(open(file, 'rb').read())); "
        "np.save(y, run.call(np.load(x)))"
    )
    names = [str(path), str(tmp_path / "images.npy"), str(tmp_path / "logits.npy")]
    subprocess.run([sys.executable, "-c", code, *names], cwd=tmp_path, check=True)
    found: np.ndarray = np.load(tmp_path / "logits.npy")
    return found


@pytest.mark.parametrize("arch", [TINY, "resnet18"])
def test_an_onnx_file_gives_pytorchs_logits_for_any_batch(tmp_path: Path, arch: str) -> None:
    done = export_weights(weights_of(arch), tmp_path / "m.onnx", "fp32")
    session = onnxruntime.InferenceSession(done.path)
    for images in (1, 2, 5):
        (logits,) = session.run(["logits"], {"images": pixels(images)})
        expected = by_pytorch(arch, pixels(images))
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert done.difference <= LIMITS["fp32"] * done.largest


@pytest.fixture(scope="module")
def stablehlo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hlo") / "m.stablehlo"
    return export_weights(weights_of(TINY), out, "fp32").path


def test_a_stablehlo_file_gives_pytorchs_logits_without_this_project(
    stablehlo: Path, tmp_path: Path
) -> None:
    logits = run_alone(stablehlo, pixels(5), tmp_path)
    expected = by_pytorch(TINY, pixels(5))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_stablehlo_file_is_for_cpus_and_gpus_and_needs_no_kernel_of_ours(stablehlo: Path) -> None:
    exported = jax.export.deserialize(bytearray(stablehlo.read_bytes()))
    assert exported.platforms == ("cpu", "cuda")
    called = set(re.findall(r"custom_call @(\w+)", exported.mlir_module()))
    assert called == {"shape_assertion"}, "which checks the batch size"
    assert str(exported.in_avals[0].shape[0]) == "batch"


@pytest.mark.parametrize(("name", "precision"), [("m.onnx", "fp16"), ("m.stablehlo", "bf16")])
def test_half_precision_is_half_as_large_and_its_difference_is_recorded(
    tmp_path: Path, name: str, precision: ExportPrecision
) -> None:
    done = export_weights(weights_of(TINY), tmp_path / name, precision)
    full = sum(x.nbytes for x in jax.tree.leaves(weights_of(TINY).variables["params"]))
    assert done.path.stat().st_size < 0.6 * full
    assert 0 < done.difference <= LIMITS[precision] * done.largest
    stored = json.loads(done.description.read_text())
    assert stored["precision"] == precision
    assert stored["check"]["largest_difference"] == done.difference


def test_deep_architectures_have_a_valid_graph_of_their_convolutions() -> None:
    """Without running it: small networks of the same blocks are run above."""
    for arch in ("resnet34", "se-resnext101-32x4d"):
        shapes = jax.eval_shape(lambda a=arch: init_variables(network(a, 3), 0))
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
        info = WeightsInfo(arch, 3, None, 224, 32)
        content = onnx_file.serialize_onnx(Weights(zeros, info), "fp16")
        graph = onnx.load_from_string(content).graph
        convolutions = [node for node in graph.node if node.op_type == "Conv"]
        kernels = [x for x in jax.tree.leaves(shapes["params"]) if x.ndim == 4]
        assert len(convolutions) == len(kernels), arch
        groups = {a.i for node in convolutions for a in node.attribute if a.name == "group"}
        assert groups == {1, ARCHITECTURES[arch].cardinality}, arch
        assert graph.output[0].type.tensor_type.shape.dim[1].dim_value == 3


# ---- the check -----------------------------------------------------------------------------------


def without_padding(serialize: Callable[..., bytes]) -> Callable[..., bytes]:
    """A writer whose pooling has lost its padding, and whose file is still valid."""

    def broken(*arguments: Any) -> bytes:
        model = onnx.load_from_string(serialize(*arguments))
        (pool,) = [node for node in model.graph.node if node.op_type == "MaxPool"]
        pads = next(a for a in pool.attribute if a.name == "pads")
        pads.ints[:] = [0, 0, 2, 2]
        return bytes(model.SerializeToString())

    return broken


def test_a_file_with_other_logits_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = without_padding(onnx_file.serialize_onnx)
    monkeypatch.setattr(onnx_file, "serialize_onnx", broken)
    with pytest.raises(UserError, match="m.onnx was not written: its logits in onnxruntime differ"):
        export_weights(weights_of(TINY), tmp_path / "m.onnx", "fp32")
    assert not list(tmp_path.iterdir())
    (tmp_path / "m.onnx").write_text("old")
    with pytest.raises(UserError, match="was not written"):
        export_weights(weights_of(TINY), tmp_path / "m.onnx", "fp32", replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_text() == "old"


def test_a_description_that_can_not_be_written_leaves_no_network(tmp_path: Path) -> None:
    (tmp_path / "m.onnx.json").mkdir()
    with pytest.raises(UserError, match="m.onnx can't be written"):
        export_weights(weights_of(TINY), tmp_path / "m.onnx", "fp32", replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx.json"]


def test_nan_is_not_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "run_onnx", lambda content, x: np.full((len(x), 3), np.nan))
    with pytest.raises(UserError, match="differ from ours by nan"):
        export_weights(weights_of(TINY), tmp_path / "m.onnx", "fp32")
    assert not list(tmp_path.iterdir())


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("w") / "weights"
    write_weights_folder(folder, weights_of(TINY))
    return folder


def test_the_command_and_the_description_are_enough_to_classify_a_photo(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("export", folder, tmp_path / "m.onnx") == 0
    printed = capsys.readouterr().out
    assert f"checked with onnxruntime {onnxruntime.__version__}: logits differ" in printed
    stored = json.loads((tmp_path / "m.onnx.json").read_text())
    photo = np.random.default_rng(2).integers(0, 256, (60, 90, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    with Image.open(tmp_path / "photo.png") as image:
        side, size = (stored["preprocessing"][k] for k in ("shorter_side", "centre_crop"))
        scale = side / min(image.size)
        image = image.resize([round(scale * n) for n in image.size], Image.Resampling.BILINEAR)
        left, top = ((n - size) // 2 for n in image.size)
        prepared = np.asarray(image.crop((left, top, left + size, top + size)))
    ours = CentreCrop(SIZE, 4)(open_rgb(tmp_path / "photo.png"))
    assert prepared.shape == (size, size, 3) == tuple(stored["input"]["shape"][1:])
    assert np.abs(prepared.astype(int) - ours).max() <= 1
    session = onnxruntime.InferenceSession(tmp_path / stored["file"])
    (logits,) = session.run([stored["output"]["name"]], {stored["input"]["name"]: prepared[None]})
    expected = by_pytorch(TINY, prepared[None].copy())
    assert stored["preprocessing"]["filter"] == "antialiased, as Pillow's BILINEAR"
    assert stored["class_names"][logits[0].argmax()] == CLASSES[expected[0].argmax()]


def test_the_code_of_the_page_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs/export.md").read_text()
    monkeypatch.chdir(tmp_path)
    lines = re.findall("^python -m convert (.*)$", page, flags=re.MULTILINE)
    for line in lines:
        word, _, out = line.split()
        assert command(word, folder, out) == 0
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict[str, Any] = {}
    found = []
    for block in blocks:
        exec(block, names)
        found.append(np.asarray(names["logits"]))
    assert len(found) == 2 and found[0].shape == (2, len(CLASSES))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_existing_files_are_replaced_with_force_only(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "m.onnx.json").write_text("{}")
    with pytest.raises(UserError, match="m.onnx.json exists: give another name, or --force"):
        command("export", folder, tmp_path / "m.onnx")
    assert command("export", folder, tmp_path / "m.onnx", "--force") == 0
    assert command("export", folder, tmp_path / "other.onnx") == 0


@pytest.mark.parametrize(
    ("words", "message", "fixed"),
    [
        (["m.pb"], "end it with .onnx or .stablehlo, such as m.onnx", ["m.onnx"]),
        (
            ["m.onnx", "--precision", "bf16"],
            "ONNX files have fp32 or fp16",
            ["m.onnx", "--precision", "fp16"],
        ),
        (
            ["m.onnx", "--image-size", "31"],
            "give 32 or more",
            ["m.onnx", "--image-size", "32"],
        ),
        (["absent/m.onnx"], "can't be written .*choose another place", ["m.onnx"]),
    ],
)
def test_a_refusal_names_a_fix_that_works(
    folder: Path, tmp_path: Path, words: list[str], message: str, fixed: list[str]
) -> None:
    with pytest.raises(UserError, match=message):
        command("export", folder, tmp_path / words[0], *words[1:])
    assert command("export", folder, tmp_path / fixed[0], *fixed[1:]) == 0


def test_a_missing_package_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="needs onnxruntime, which is missing: pip install onnx on"):
        command("export", folder, tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(UserError, match="needs flatbuffers, which is missing"):
        command("export", folder, tmp_path / "m.stablehlo")
