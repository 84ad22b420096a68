"""The DALI backend against the Pillow one on photographs; resuming, bad files, sharding."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from seresnext_jax.config import DataConfig
from seresnext_jax.data.open import Split, open_loader
from seresnext_jax.errors import UserError
from seresnext_jax.mesh import make_mesh

pytest.importorskip("nvidia.dali")

CONFIG = DataConfig(backend="dali-cpu", image_size=64, eval_margin=16, workers=2)
SIZES = [(301, 375), (427, 640), (333, 97), (40, 51), (255, 256), (100, 300)]
"""(height, width) of the test photographs."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    china, flower = load_sample_images().images
    for split in ("train", "val"):
        for name, photo in (("china", china), ("flower", flower)):
            (folder / split / name).mkdir(parents=True)
            for i, (h, w) in enumerate(SIZES):
                image = Image.fromarray(photo[:h, :w])
                target = folder / split / name / f"{i}"
                if i % 3 == 2:
                    image.convert("L").save(f"{target}.png")
                else:
                    image.save(f"{target}.jpg", quality=92)
    return folder


def loader(root: Path, split: Split, *, devices: int = 1, a: int = 1, n: int = 4, **kw: Any) -> Any:
    return open_loader(
        replace(CONFIG, root=str(root), **kw),
        split=split,
        mesh=make_mesh(jax.devices()[:devices]),
        accumulation=a,
        images_per_pass=n,
        seed=5,
        num_classes=2,
    )


def take(source: Any, start: int, count: int) -> list[tuple[np.ndarray, ...]]:
    batches = source.batches(start)
    kept = [next(batches) for _ in range(count)]  # held, so that reused buffers would show
    batches.close()
    source.close()
    return [tuple(np.asarray(x) for x in batch) for batch in kept]


def assert_close(dali: Any, pillow: Any) -> None:
    """Equal labels and masks, every image within one grey level on average."""
    for a, b in zip(dali, pillow, strict=True):
        assert np.array_equal(a[1], b[1]) and np.array_equal(a[2], b[2])
        difference = np.abs(a[0].astype(int) - b[0].astype(int))
        assert difference.mean(axis=(2, 3, 4)).max() <= 1.0


@pytest.mark.parametrize("split", ["train", "val"])
def test_dali_shows_what_pillow_shows(root: Path, split: Split) -> None:
    count = 12 if split == "train" else 3
    assert_close(
        take(loader(root, split), 0, count), take(loader(root, split, backend="folder"), 0, count)
    )


def test_evaluation_ends_and_masks_the_padding(root: Path) -> None:
    batches = list(loader(root, "val", n=5).batches(0))
    assert [int(b.mask.sum()) for b in batches] == [5, 5, 2]
    labels = np.concatenate([np.asarray(b.labels)[np.asarray(b.mask)] for b in batches])
    assert labels.tolist() == [0] * 6 + [1] * 6


def test_resume_equals_an_uninterrupted_run(root: Path) -> None:
    whole = take(loader(root, "train"), 0, 7)
    for a, b in zip(take(loader(root, "train"), 4, 3), whole[4:], strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_accumulation_and_devices_do_not_change_the_step(root: Path) -> None:
    one = take(loader(root, "train", n=8), 0, 2)
    two = take(loader(root, "train", a=2, n=4, devices=4), 0, 2)
    for a, b in zip(one, two, strict=True):
        assert all(np.array_equal(x.reshape(y.shape), y) for x, y in zip(a, b, strict=True))


def odd_files(kind: str, path: Path) -> None:
    """A file that DALI can't read, or reads differently."""
    photo = Image.fromarray(load_sample_images().images[0][:120, :150])
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not an image")
    elif kind == "link":
        path.symlink_to("nowhere.jpg")
    elif kind == "truncated":
        photo.save(path, "jpeg", quality=95)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "huge":
        Image.new("1", (70000, 1000)).save(path, "png")


@pytest.mark.parametrize("kind", ["empty", "text", "link", "truncated", "huge"])
def test_bad_file_policies(root: Path, tmp_path: Path, kind: str) -> None:
    for split in ("train", "val"):
        for name in ("china", "flower"):
            (tmp_path / split / name).mkdir(parents=True)
            for path in (root / split / name).iterdir():
                (tmp_path / split / name / path.name).symlink_to(path)
    bad = tmp_path / "val" / "china" / "2x.jpg"
    odd_files(kind, bad)
    with pytest.raises(UserError, match="2x.jpg"):
        take(loader(tmp_path, "val"), 0, 3)
    source = loader(tmp_path, "val", on_bad_image="skip")
    batches = take(source, 0, 4)
    assert source.bad_files == [str(bad)]
    assert sum(int(b[2].sum()) for b in batches) == 12
    assert_close(
        batches, take(loader(tmp_path, "val", on_bad_image="skip", backend="folder"), 0, 4)
    )


@pytest.mark.parametrize("kind", ["cmyk", "rgba", "palette", "wide", "la"])
def test_other_kinds_of_images_equal_pillows(tmp_path: Path, kind: str) -> None:
    photo = Image.fromarray(load_sample_images().images[1][:150, :200])
    grey = photo.convert("L")
    black = Image.merge("CMYK", (*photo.convert("CMYK").split()[:3], grey.point(lambda x: x // 3)))
    alpha = photo.copy()
    alpha.putalpha(grey)
    image = {
        "cmyk": black,
        "rgba": alpha,
        "palette": photo.quantize(64),
        "wide": Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
        "la": alpha.convert("LA"),
    }[kind]
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            image.save(tmp_path / split / name / ("x.jpg" if kind == "cmyk" else "x.png"))
    dali = take(loader(tmp_path, "val", n=2), 0, 1)
    assert_close(dali, take(loader(tmp_path, "val", n=2, backend="folder"), 0, 1))


@pytest.mark.gpu
def test_the_gpu_shows_what_pillow_shows(root: Path) -> None:
    devices = len(jax.devices())
    n = 4 * devices
    dali = take(loader(root, "train", backend="dali-gpu", n=n, devices=devices), 0, 2)
    assert_close(dali, take(loader(root, "train", backend="folder", n=n, devices=devices), 0, 2))
