"""The DALI backend against the Pillow one on photographs; resuming, bad files, sharding."""

import shutil
import warnings
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import Base
from sklearn.datasets import load_sample_images

from seresnext_jax.config import DataConfig
from seresnext_jax.data import open as open_module
from seresnext_jax.data.open import Split, decoding_threads
from seresnext_jax.errors import UserError
from seresnext_jax.mesh import make_mesh
from tests.data.loaders import open_split

DALIGenericIterator = pytest.importorskip("nvidia.dali.plugin.jax").DALIGenericIterator
dali = pytest.importorskip("seresnext_jax.data.backends.dali")

CONFIG = DataConfig(backend="dali-cpu", image_size=64, eval_margin=16, workers=2)
SIZES = [(301, 375), (427, 640), (333, 97), (40, 51), (255, 256), (100, 300)]
"""(height, width) of the test photographs."""
RECIPE = {"image_size": 224, "eval_margin": 32}
"""The sizes of the ImageNet recipes."""


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
    data = replace(CONFIG, root=str(root), **kw)
    return open_split(data, split, devices=devices, a=a, n=n, seed=5)


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


@pytest.mark.parametrize(
    "sizes",
    [{}, RECIPE, {"interpolation": "bicubic"}, RECIPE | {"interpolation": "bicubic"}],
    ids=["small", "recipe", "bicubic", "bicubic recipe"],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_dali_shows_what_pillow_shows(root: Path, split: Split, sizes: dict[str, Any]) -> None:
    count = 12 if split == "train" and not sizes else 3
    dali = take(loader(root, split, **sizes), 0, count)
    assert_close(dali, take(loader(root, split, backend="folder", **sizes), 0, count))


def test_evaluation_ends_and_masks_the_padding(root: Path) -> None:
    batches = list(loader(root, "val", n=5).batches(0))
    assert [int(b.mask.sum()) for b in batches] == [5, 5, 2]
    labels = np.concatenate([np.asarray(b.labels)[np.asarray(b.mask)] for b in batches])
    assert labels.tolist() == [0] * 6 + [1] * 6


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The crop of each pipeline that a test builds."""
    crops: list[str] = []
    graph = dali._graph

    def recording(feed: Any, crop: Any, **options: Any) -> Any:
        crops.append(type(crop).__name__)
        return graph(feed, crop, **options)

    monkeypatch.setattr(dali, "_graph", recording)
    return crops


def same(one: Any, other: Any) -> bool:
    """Whether two sequences of batches are equal."""
    return all(
        np.array_equal(x, y)
        for a, b in zip(one, other, strict=True)
        for x, y in zip(a, b, strict=True)
    )


def test_one_pipeline_trains_several_epochs(root: Path, built: list[str]) -> None:
    whole = take(loader(root, "train"), 0, 7)  # of three steps each
    assert built == ["TrainCrop"]
    source = loader(root, "train")
    parts = [*islice(source.batches(0), 3), *islice(source.batches(3), 4)]
    assert same(parts, whole)
    assert built == ["TrainCrop"] * 2
    source.close()


def test_the_next_epoch_is_read_while_the_last_one_is_evaluated(root: Path) -> None:
    source = loader(root, "train")
    batches = source.batches(0)
    list(islice(batches, source.num_steps))
    (pipeline,) = source._pipelines
    first, *_ = pipeline.fed
    assert np.array_equal(first.rows.index, source._sampler.rows(source.num_steps).index)
    assert len(pipeline.fed) >= source._prefetch
    source.close()


def test_one_pipeline_evaluates_again_and_again(root: Path, built: list[str]) -> None:
    source = loader(root, "val", n=5)
    first = list(source.batches(0))
    assert len(first) == 3
    for _ in range(3):
        assert same(source.batches(0), first)
    assert built == ["CentreCrop"]
    source.close()


@pytest.mark.parametrize("steps", [1, 2])
def test_an_abandoned_evaluation_is_followed_by_a_whole_one(
    root: Path, built: list[str], steps: int
) -> None:
    source = loader(root, "val", n=5)
    first = list(source.batches(0))
    abandoned = source.batches(0)
    assert same(islice(abandoned, steps), first[:steps])
    assert same(source.batches(0), first)
    assert built == ["CentreCrop"] * 2
    assert same(abandoned, first[steps:]), "even the abandoned one could go on"
    source.close()


def test_a_bad_file_costs_a_pipeline_and_nothing_else(
    root: Path, tmp_path: Path, built: list[str]
) -> None:
    """Its header is whole, so that DALI meets it; it decodes the others as after a resume."""
    shutil.copytree(root, tmp_path / "data")
    odd_files("truncated", tmp_path / "data" / "val" / "china" / "2x.jpg")
    source = loader(tmp_path / "data", "val", on_bad_image="skip")
    first, again = (list(source.batches(0)) for _ in range(2))
    assert same(first, again)
    assert built == ["CentreCrop"] * 2, "a new one after the file was met"
    source.close()
    resumed = loader(tmp_path / "data", "val", on_bad_image="skip")
    assert same(resumed.batches(1), again[1:]), "the file is met in another pipeline"
    resumed.close()


def test_resume_equals_an_uninterrupted_run(root: Path) -> None:
    whole = take(loader(root, "train"), 0, 7)
    for a, b in zip(take(loader(root, "train"), 4, 3), whole[4:], strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_accumulation_and_devices_do_not_change_the_step(root: Path) -> None:
    one = take(loader(root, "train", n=8), 0, 2)
    two = take(loader(root, "train", a=2, n=4, devices=4), 0, 2)
    for a, b in zip(one, two, strict=True):
        assert all(np.array_equal(x.reshape(y.shape), y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("workers", "devices", "here", "threads"),
    [
        (1, 8, 1, 4),
        (4, 8, 1, 4),
        (7, 2, 1, 7),
        (1, 1, 1, 1),
        (4, 1, 8, 1),
        (1, 2, 2, 2),
        (7, 1, 2, 4),
    ],
)
def test_decoding_threads_on_four_cores(
    workers: int, devices: int, here: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process with all devices has as many as several processes with one each."""
    monkeypatch.setattr(open_module.os, "sched_getaffinity", lambda pid: range(4))
    monkeypatch.setattr(open_module, "processes_on_this_host", lambda: here)
    mesh = make_mesh(jax.devices()[:devices])
    data = DataConfig(workers=workers)
    assert decoding_threads(data, mesh, on_gpu=False) == threads
    assert decoding_threads(data, mesh, on_gpu=True) == workers  # of each GPU's own pipeline


def test_decoding_on_a_gpu_wants_one(root: Path) -> None:
    with pytest.raises(UserError, match="JAX runs on the cpu: give --data.backend dali-cpu"):
        loader(root, "val", backend="dali-gpu")


def test_an_error_that_no_file_made_passes_through(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = loader(root, "train")

    def out_of_memory(*args: Any) -> None:
        raise RuntimeError(
            "Error in MIXED operator `nvidia.dali.fn.decoders.image`, ... encountered:\n"
            "CUDA runtime API error cudaErrorMemoryAllocation (2): out of memory"
        )

    def wrong_window(*args: Any) -> None:
        raise RuntimeError("Error in CPU operator `nvidia.dali.fn.resize`, ... encountered: x")

    for fault in (out_of_memory, wrong_window):
        monkeypatch.setattr(DALIGenericIterator, "__next__", fault)
        with pytest.raises(RuntimeError, match="encountered"):
            next(source.batches(0))


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
        Image.new("1", (70000, 2000)).save(path, "png")


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


@pytest.mark.parametrize("kind", ["cmyk", "rgba", "palette", "wide", "la", "png-inside", "turned"])
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
        "png-inside": photo,
        "turned": photo,
    }[kind]
    jpeg = kind in ("cmyk", "turned")
    name = "x.jpg" if jpeg or kind == "png-inside" else "x.png"
    exif = Image.Exif()
    exif[Base.Orientation] = 6 if kind == "turned" else 1
    for split in ("train", "val"):
        for folder in ("a", "b"):
            (tmp_path / split / folder).mkdir(parents=True)
            image.save(tmp_path / split / folder / name, "jpeg" if jpeg else "png", exif=exif)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Pillow reads a batch")  # DALI itself must decode it
        dali = take(loader(tmp_path, "val", n=2), 0, 1)
    assert_close(dali, take(loader(tmp_path, "val", n=2, backend="folder"), 0, 1))
    if kind == "turned":  # as the camera's sensor had it: wider than high, and not a quarter turned
        upright = Image.fromarray(dali[0][0][0, 0])
        middle = photo.resize((107, 80), Image.Resampling.BILINEAR).crop((22, 8, 86, 72))
        assert np.abs(np.asarray(upright).astype(int) - np.asarray(middle)).mean() < 3


@pytest.mark.gpu
def test_the_gpu_shows_what_pillow_shows(root: Path) -> None:
    devices = len(jax.devices())
    n = 4 * devices
    dali = take(loader(root, "train", backend="dali-gpu", n=n, devices=devices), 0, 2)
    assert_close(dali, take(loader(root, "train", backend="folder", n=n, devices=devices), 0, 2))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["empty", "truncated"])
def test_the_gpu_leaves_bad_files_out(root: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(root, tmp_path / "data")
    bad = tmp_path / "data" / "val" / "china" / "2x.jpg"
    odd_files(kind, bad)
    devices = len(jax.devices())
    source = loader(tmp_path / "data", "val", backend="dali-gpu", n=devices, devices=devices)
    with pytest.raises(UserError, match="2x.jpg"):
        take(source, 0, source.num_steps)
    skipping = {"on_bad_image": "skip", "n": devices, "devices": devices}
    source = loader(tmp_path / "data", "val", backend="dali-gpu", **skipping)
    dali = take(source, 0, source.num_steps)
    assert source.bad_files == [str(bad)]
    folder = loader(tmp_path / "data", "val", backend="folder", **skipping)
    assert_close(dali, take(folder, 0, folder.num_steps))
