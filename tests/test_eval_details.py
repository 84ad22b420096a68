"""eval.py --details and --against: every image once, on several devices, against PyTorch."""

import csv
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import stats

import eval as program
from seresnext_jax.errors import UserError
from seresnext_jax.model.initial import init_variables
from seresnext_jax.weights.folder import write_weights_folder
from seresnext_jax.weights.identify import network
from seresnext_jax.weights.info import Weights, WeightsInfo
from seresnext_jax.weights.state_dict import to_state_dict
from seresnext_jax.weights.torch_forward import extract_features
from tests.programs import done, error_line, finish, start

TINY, CLASSES, SIZE, IMAGES = "se-resnext-tiny", ("ant", "bee", "cow"), 32, 21
"""21 images do not fill two batches of 8 devices with 2 images each."""


def weights_of(seed: int, names: tuple[str, ...]) -> Weights:
    """Random weights; no class is more probable than the others on the mean of some noise."""
    variables = init_variables(network(TINY, len(names)), seed)
    variables = jax.tree.map(np.array, variables)
    variables["params"]["fc"]["kernel"] *= 30
    state = to_state_dict(variables, layout="current")
    means = extract_features(state, noise(seed=1))["classifier"].mean(0)
    variables["params"]["fc"]["bias"] -= means
    return Weights(variables, WeightsInfo(TINY, len(names), names, SIZE, 0))


def noise(seed: int) -> np.ndarray:
    """Images of different brightness."""
    pixels = np.random.default_rng(seed).integers(0, 256, (IMAGES, SIZE, SIZE, 3), np.uint8)
    return pixels // (1 + np.arange(IMAGES, dtype=np.uint8) % 4)[:, None, None, None]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A split of noise, and two sets of weights; those of ``b`` have other labels."""
    folder = tmp_path_factory.mktemp("details")
    for i, pixels in enumerate(noise(seed=0)):
        place = folder / "val" / CLASSES[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{i:02}.png")
    (folder / "val/bee/04.png").write_bytes(b"broken")
    write_weights_folder(folder / "a", weights_of(0, CLASSES))
    write_weights_folder(folder / "b", weights_of(1, CLASSES[::-1]))
    yield folder


def evaluate(root: Path, *more: str) -> None:
    words = ["--weights", str(root / "a"), "--data.root", str(root), "--data.backend", "folder"]
    words += ["--data.on-bad-image", "skip", "--batch-size", "2", "--compilation-cache", ""]
    assert program.main([*words, *more]) == 0


def by_pytorch(root: Path, name: str, seed: int, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The probabilities of each image, one by one."""
    state = to_state_dict(weights_of(seed, names).variables, layout="current")
    found = {}
    for path in sorted((root / "val").glob("*/*.png")):
        if path.name != "04.png":
            pixels = np.array(Image.open(path))[None]
            logits = extract_features(state, pixels)["classifier"][0].astype(np.float64)
            odds = np.exp(logits - logits.max())
            found[f"{path.parent.name}/{path.name}"] = odds / odds.sum()
    return found


def is_right(image: str, probabilities: np.ndarray, names: tuple[str, ...]) -> bool:
    return names[int(probabilities.argmax())] == image.partition("/")[0]


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    """What a comparison of both weights wrote."""
    folder = root / "out"
    evaluate(
        root,
        *("--details", str(folder), "--against", str(root / "b")),
        *("--json", str(root / "r.json")),
    )
    return folder


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("where", "seed", "names"), [("", 0, CLASSES), ("against", 1, CLASSES[::-1])]
)
def test_each_image_is_judged_once_as_pytorch_judges_it(
    root: Path, folder: Path, where: str, seed: int, names: tuple[str, ...]
) -> None:
    expected = by_pytorch(root, "a", seed, names)
    assert len(expected) == IMAGES - 1
    right = {image for image, p in expected.items() if is_right(image, p, names)}
    assert 0 < len(right) < len(expected), "a test of both"
    details: dict[str, Any] = json.loads((folder / where / "details.json").read_text())
    assert (details["images"], details["right"]) == (len(expected), len(right))
    rows = read_csv(folder / where / "mistakes.csv")
    assert {row["image"] for row in rows} == expected.keys() - right
    for row in rows:
        probabilities = expected[row["image"]]
        assert row["label_name"] == row["image"].partition("/")[0]
        assert names[int(row["label"])] == row["label_name"]
        assert row["name_1"] == names[int(probabilities.argmax())]
        for i, p in enumerate(sorted(probabilities, reverse=True), start=1):
            assert float(row[f"probability_{i}"]) == pytest.approx(p, abs=2e-4)
    interval = stats.binomtest(len(right), len(expected)).proportion_ci(0.95, method="wilson")
    found = (details["top1_low"] / 100, details["top1_high"] / 100)
    assert found == pytest.approx(interval)


def test_both_weights_are_compared_image_by_image(root: Path, folder: Path) -> None:
    a = by_pytorch(root, "a", 0, CLASSES)
    b = by_pytorch(root, "b", 1, CLASSES[::-1])
    only_a = {i for i in a if is_right(i, a[i], CLASSES) > is_right(i, b[i], CLASSES[::-1])}
    only_b = {i for i in a if is_right(i, a[i], CLASSES) < is_right(i, b[i], CLASSES[::-1])}
    result = json.loads((root / "r.json").read_text())
    found = result["comparison"]
    assert (found["only_first"], found["only_second"]) == (len(only_a), len(only_b))
    differing = len(only_a) + len(only_b)
    assert found["p_value"] == pytest.approx(stats.binomtest(len(only_a), differing).pvalue)
    rows = read_csv(folder / "differences.csv")
    assert {row["image"] for row in rows if row["right"] == "weights"} == only_a
    assert {row["image"] for row in rows if row["right"] == "against"} == only_b
    assert result["against"]["weights"] == str(root / "b")
    assert result["count"] == result["against"]["count"] == IMAGES - 1


def test_the_picture_has_the_wrong_images_as_the_network_saw_them(root: Path, folder: Path) -> None:
    worst = read_csv(folder / "mistakes.csv")[0]["image"]
    with Image.open(root / "val" / worst) as image, Image.open(folder / "mistakes.png") as sheet:
        cell = sheet.crop((12, 12, 12 + 224, 12 + 224))
        np.testing.assert_array_equal(np.asarray(cell), np.asarray(image.resize((224, 224))))


def test_a_used_folder_is_refused_before_the_evaluation(root: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="has files in it: give a new folder"):
        evaluate(root, "--details", str(folder))


def test_a_missing_file_is_noticed_before_the_evaluation(root: Path, tmp_path: Path) -> None:
    words = ("--details", str(tmp_path / "d"), "--against")
    with pytest.raises(UserError, match="absent"):
        evaluate(root, *words, str(root / "absent"))
    assert not list((tmp_path / "d").iterdir())
    evaluate(root, *words, str(root / "a"))


def test_several_processes_are_refused_and_one_of_them_alone_is_not(
    root: Path, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = ["eval.py", "--weights", str(root / "a"), "--data.backend", "synthetic", "--prof", "1"]
    words += ["--batch-size", "4", "--details", str(tmp_path / "d"), "--compilation-cache", ""]
    places = [
        {"WORLD_SIZE": "2", "RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for rank in "01"
    ]
    processes = [start(words, env=place) for place in places]
    for process in processes:
        message = error_line(finish(process))
        assert "this is one of 2: start eval.py once, with --distributed.num-processes 1" in message
    done([*words, "--distributed.num-processes", "1"], env=places[0])
    details = json.loads((tmp_path / "d/details.json").read_text())
    assert details["images"] == 4
    assert all(row["image"].startswith("image ") for row in details["mistakes"])
