"""The library: models from any source, preprocessing, predictions, features, gradients."""

import re
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from PIL import Image

import seresnext_jax
from seresnext_jax import Model, create_model, load_weights, normalize, preprocess
from seresnext_jax.config import DataConfig
from seresnext_jax.errors import UserError
from tests import one_block
from tests.data.loaders import open_split
from tests.reference.torch_training import loss_and_gradients
from tests.training.test_parity import is_clear, to_torch_batch
from tests.weights.bridge import assert_close, by_torch_name
from tests.weights.conversion import CLASSES, TINY, trained_like

SIZE = 64


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """The yardstick in PyTorch."""
    return trained_like().eval()


@pytest.fixture(scope="module")
def file(network: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("api") / "model.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def model(file: Path) -> Model:
    return load_weights(file)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)


def in_pytorch(pixels: np.ndarray) -> torch.Tensor:
    """Normalised pixels (N, 3, H, W)."""
    return torch.from_numpy(np.array(normalize(pixels))).permute(0, 3, 1, 2)


def test_importing_the_package_imports_no_jax() -> None:
    code = "import sys, seresnext_jax; print('jax' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_every_name_of_the_package_exists() -> None:
    for name in seresnext_jax.__all__:
        assert callable(getattr(seresnext_jax, name))
    with pytest.raises(AttributeError, match="has no attribute 'load_weight'"):
        seresnext_jax.load_weight  # type: ignore[attr-defined]  # noqa: B018


def test_logits_are_pytorchs(network: torch.nn.Module, model: Model, pixels: np.ndarray) -> None:
    with torch.no_grad():
        logits = network(in_pytorch(pixels)).numpy()
    np.testing.assert_allclose(model.logits(pixels), logits, rtol=1e-4, atol=1e-4)


def test_gradients_and_new_statistics_are_pytorchs(network: torch.nn.Module, model: Model) -> None:
    """Of a loop of one's own, as docs/library.md has it; PyTorch computes in float64."""
    twin = deepcopy(network).double()
    labels = np.arange(8) % CLASSES
    noise = (
        np.random.default_rng(seed).integers(0, 256, (8, SIZE, SIZE, 3), np.uint8)
        for seed in count()
    )
    images = next(x for x in noise if is_clear(twin, to_torch_batch(x, labels)))

    def loss_of(params: Any, batch_stats: Any) -> Any:
        logits, changed = model.network.apply(
            {"params": params, "batch_stats": batch_stats},
            normalize(images),
            train=True,
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), changed["batch_stats"]

    step = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    (loss, statistics), gradients = step(model.variables["params"], model.variables["batch_stats"])
    wanted_loss, wanted = loss_and_gradients(twin, [to_torch_batch(images, labels)], 0.0)
    assert float(loss) == pytest.approx(wanted_loss, rel=1e-5)
    found = by_torch_name(gradients, statistics)
    running = {k: x for k, x in twin.named_buffers() if not k.endswith("num_batches_tracked")}
    assert_close(found, {k: x.numpy() for k, x in (wanted | running).items()}, relative=1e-4)


def test_a_saved_model_is_the_same(model: Model, pixels: np.ndarray, tmp_path: Path) -> None:
    named = replace(model, info=replace(model.info, class_names=tuple("abcdefg"), top1=80.0))
    named.save(tmp_path / "weights")
    again = load_weights(tmp_path / "weights")
    np.testing.assert_array_equal(again.logits(pixels), model.logits(pixels))
    assert again.class_names == tuple("abcdefg")
    assert again.info.top1 is None  # it may be another one after training
    with pytest.raises(UserError, match="contains other files"):
        named.save(tmp_path)


def test_names_of_classes_come_from_a_file(file: Path, model: Model, tmp_path: Path) -> None:
    assert model.class_names[:2] == ("class 0", "class 1")
    names = tmp_path / "names.txt"
    names.write_text("\n".join("abcdefg"))
    for path in (names, str(names)):
        assert load_weights(file, class_names=path).class_names == tuple("abcdefg")


def test_predictions(model: Model, pixels: np.ndarray) -> None:
    probabilities = np.asarray(model.probabilities(pixels))
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    found = model.classify(pixels, topk=2)
    for row, best in zip(probabilities, found, strict=True):
        assert [x.index for x in best] == np.argsort(-row)[:2].tolist()
        assert [x.probability for x in best] == [row[x.index] for x in best]
        assert [x.name for x in best] == [f"class {x.index}" for x in best]
    assert len(model.classify(pixels, topk=100)[0]) == CLASSES


def test_features_of_images_of_any_size(model: Model) -> None:
    pixels = np.zeros((1, 96, 160, 3), np.uint8)
    shapes = {name: x.shape for name, x in model.features(pixels).items()}
    assert shapes == {
        "layer1": (1, 24, 40, 64),
        "layer2": (1, 12, 20, 128),
        "layer3": (1, 6, 10, 256),
        "layer4": (1, 3, 5, 512),
    }
    assert list(model.features(pixels, ["layer2"])) == ["layer2"]
    with pytest.raises(UserError, match="unknown features layer5: choose from .*layer4"):
        model.features(pixels, ["layer5"])
    with pytest.raises(UserError, match="nothing to return: choose from .*layer4"):
        model.features(pixels, [])


def test_the_embedding_is_the_classifiers_input(model: Model, pixels: np.ndarray) -> None:
    classifier = model.variables["params"]["fc"]
    logits = model.embed(pixels) @ classifier["kernel"] + classifier["bias"]
    np.testing.assert_allclose(logits, model.logits(pixels), rtol=1e-4, atol=1e-4)


def test_half_precision_is_near(file: Path, model: Model, pixels: np.ndarray) -> None:
    half = load_weights(file, precision="bf16")
    found = half.features(pixels, ["layer1", "classifier"])
    assert (found["layer1"].dtype, found["classifier"].dtype) == ("bfloat16", "float32")
    probabilities = jax.nn.softmax(found["classifier"])
    np.testing.assert_allclose(probabilities, model.probabilities(pixels), atol=0.1)


def test_other_classes_get_a_random_classifier(model: Model, pixels: np.ndarray) -> None:
    other = model.with_classes(["cat", "dog"])
    assert other.class_names == ("cat", "dog")
    assert other.logits(pixels).shape == (3, 2)
    np.testing.assert_array_equal(other.embed(pixels), model.embed(pixels))
    again, second = model.with_classes(["cat", "dog"]), model.with_classes(["cat", "dog"], seed=1)
    np.testing.assert_array_equal(again.logits(pixels), other.logits(pixels))
    assert not np.array_equal(second.logits(pixels), other.logits(pixels))
    names: Any
    for names in ("cat", []):
        with pytest.raises(UserError, match=r"give names such as \['cat', 'dog'\]"):
            model.with_classes(names)


def test_a_new_model_is_random_and_repeatable(pixels: np.ndarray) -> None:
    first, again, other = (create_model(TINY, 10, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.logits(pixels), again.logits(pixels))
    assert not np.array_equal(first.logits(pixels), other.logits(pixels))
    assert first.image_size == 224
    with pytest.raises(UserError, match="'resnet5' is unknown: choose from resnet18"):
        create_model("resnet5")
    with pytest.raises(UserError, match="num_classes is 0"):
        create_model(TINY, 0)
    half: Any = "half"
    with pytest.raises(
        UserError, match="precision 'half' is unknown: choose from fp32, tf32, bf16"
    ):
        create_model(TINY, precision=half)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (np.zeros((1, 8, 8, 3)), r"float64 \(1, 8, 8, 3\)"),
        (np.zeros((8, 8, 3), np.uint8), r"uint8 \(8, 8, 3\)"),
        (np.zeros((1, 3, 8, 8), np.uint8), r"uint8 \(1, 3, 8, 8\)"),
        (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), "a Tensor"),
        ("photo.jpg", "a str"),
    ],
)
def test_wrong_pixels_are_refused_with_what_is_right(model: Model, wrong: Any, what: str) -> None:
    with pytest.raises(UserError, match=f"are {what}: " + r"give uint8 \(N, height, width, 3\)"):
        model.logits(wrong)
    right = model.preprocess(np.zeros((8, 8, 3), np.uint8))
    assert model.logits(right).shape == (1, CLASSES)


def test_a_model_is_shown_in_one_line() -> None:
    assert repr(create_model("resnet18", 3)) == "Model(resnet18, 3 classes, 224 pixels, fp32)"


# ---- preprocessing -----------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Two images of val, wide and tall, the second one greyscale."""
    generator = np.random.default_rng(0)
    paths = []
    for name, shape in {"a": (90, 120, 3), "b": (150, 80)}.items():
        for split in ("train", "val"):
            path = tmp_path / split / name / "photo.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(generator.integers(0, 256, shape, np.uint8)).save(path)
        paths.append(path)
    return paths


def test_preprocessing_is_that_of_an_evaluation(photos: list[Path], tmp_path: Path) -> None:
    data = DataConfig(root=str(tmp_path), backend="folder", image_size=48, eval_margin=16)
    loader = open_split(data, "val")
    batch = next(iter(loader.batches(0)))
    loader.close()
    found = preprocess(*photos, image_size=48, eval_margin=16)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.asarray(batch.images).reshape(-1, 48, 48, 3)[:2])


def test_files_pictures_and_arrays_give_the_same(photos: list[Path], model: Model) -> None:
    opened = [Image.open(path) for path in photos]
    expected = model.preprocess(*photos)
    assert expected.shape == (2, 224, 224, 3)
    np.testing.assert_array_equal(model.preprocess(*map(str, photos)), expected)
    np.testing.assert_array_equal(model.preprocess(*opened), expected)
    np.testing.assert_array_equal(model.preprocess(*map(np.asarray, opened)), expected)
    np.testing.assert_array_equal(
        model.preprocess(*map(jnp.asarray, map(np.asarray, opened))), expected
    )
    assert model.preprocess().shape == (0, 224, 224, 3)


def test_photos_are_turned_on_request(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    stored, upright = (
        preprocess(tmp_path / "turned.png", image_size=40, eval_margin=0, exif_orientation=turn)
        for turn in (False, True)
    )
    np.testing.assert_array_equal(stored[0], np.asarray(image))
    np.testing.assert_array_equal(upright[0], np.rot90(np.asarray(image), -1))
    opened = Image.open(tmp_path / "turned.png")
    again = preprocess(opened, image_size=40, eval_margin=0, exif_orientation=True)
    np.testing.assert_array_equal(again, upright)


def test_what_is_not_an_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match="can't decode .*notes.txt: not an image .*check the file"):
        preprocess(tmp_path / "notes.txt")
    with pytest.raises(
        UserError, match=r"float32 \(8, 8, 3\).*give uint8 RGB \(height, width, 3\)"
    ):
        preprocess(np.zeros((8, 8, 3), np.float32))
    wrong: Any
    for wrong in (["a.jpg", "b.jpg"], None, b"bytes", np.zeros((2, 8, 8, 3), np.uint8)):
        with pytest.raises(UserError, match="a file; several as several arguments"):
            preprocess(wrong)


# ---- docs/library.md ---------------------------------------------------------------------------


def test_the_page_word_for_word(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its Python runs from top to bottom."""
    page = (Path(__file__).parent.parent / "docs/library.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    create_model(one_block.get_config().model.arch, 10, image_size=SIZE).save("weights")
    Image.open(photos[0]).convert("RGB").save("photo.jpg")
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(block, names)
    np.testing.assert_allclose(names["bridged_logits"], names["logits"], rtol=1e-5, atol=1e-5)
    assert float(names["loss"]) > 0
    assert load_weights("fine-tuned").class_names == ("cat", "dog")
