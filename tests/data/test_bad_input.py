"""A damaged tree of images: what docs/data.md says of each kind, in both backends."""

import builtins
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from seresnext_jax.config import Backend, DataConfig
from seresnext_jax.data.batch import Loader
from seresnext_jax.data.classes import check_train
from seresnext_jax.data.open import Split
from seresnext_jax.errors import UserError
from tests.data.loaders import list_images, open_split

Writer = Callable[[Path], object]
CONFIG = DataConfig(image_size=16, eval_margin=4, workers=2)
BACKENDS: list[Backend] = ["folder", "dali-cpu"]


def photo(width: int = 40, height: int = 30) -> Image.Image:
    """A smooth random colour image."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def cut_short(path: Path) -> None:
    photo(300, 200).save(path, "jpeg", quality=95)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def wide(path: Path) -> None:
    grey = np.asarray(photo().convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(path, "png")


def transparent(path: Path) -> None:
    image = photo()
    image.putalpha(128)
    image.save(path, "png")


def animated(path: Path) -> None:
    photo().save(path, "gif", save_all=True, append_images=[Image.new("RGB", (40, 30))])


USED: dict[str, Writer] = {
    "1x1.png": lambda path: photo(1, 1).save(path),
    "20000-wide.jpg": lambda path: photo(20000, 20).save(path),
    "16-bit.png": wide,
    "animated.jpg": animated,
    "cmyk.jpg": lambda path: photo().convert("CMYK").save(path),
    "grey.jpg": lambda path: photo().convert("L").save(path),
    "palette.png": lambda path: photo().quantize(16).save(path),
    "png-inside.jpg": lambda path: photo().save(path, "png"),
    "rgba.png": transparent,
    "дог\u00e9 犬.jpg": lambda path: photo().save(path),
    os.fsdecode(b"latin-\xe9.jpg"): lambda path: photo().save(path),
    "deep/er/nested.JPEG": lambda path: photo().save(path, "jpeg"),
}
"""Images of every other kind than a plain colour JPEG."""

BAD: dict[str, Writer] = {
    "broken-link.jpg": lambda path: path.symlink_to("nowhere.jpg"),
    "empty.jpg": lambda path: path.write_bytes(b""),
    "huge.png": lambda path: Image.new("1", (70000, 2000)).save(path),
    "pipe.jpg": os.mkfifo,
    "read-error.jpg": lambda path: path.symlink_to("/proc/self/mem"),
    "text.jpg": lambda path: path.write_text("<html>"),
    "truncated.jpg": cut_short,
}

LEFT_OUT: dict[str, Writer] = {
    ".hidden.jpg": lambda path: path.write_bytes(b""),
    ".cache/inside.jpg": lambda path: path.write_bytes(b""),
    "linked-folder": lambda path: path.symlink_to(path.parent),
    "notes.txt": lambda path: path.write_text(""),
}


def write(folder: Path, writers: dict[str, Writer]) -> None:
    for name, writer in writers.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        writer(folder / name)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of two plain images each."""
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            plain = {f"{i}.jpg": lambda path: photo().save(path) for i in "xy"}
            write(tmp_path / split / name, plain)
    return tmp_path


def loader(
    root: Path, backend: Backend, policy: Any, *, split: Split = "val", at_once: int = 4
) -> Loader:
    """A loader of `at_once` images a step."""
    data = replace(CONFIG, root=str(root), backend=backend, on_bad_image=policy)
    return open_split(data, split, n=at_once)


def counted(source: Loader, epochs: int = 1) -> int:
    """How many images count."""
    with closing(source.batches(0)) as batches:  # type: ignore[type-var]
        steps = islice(batches, epochs * source.num_steps)
        return sum(int(np.asarray(mask).sum()) for _, _, mask in steps)


def read(
    root: Path, backend: Backend, policy: Any = "error", *, epochs: int = 1, **options: Any
) -> tuple[int, list[str]]:
    """Read a split; returns how many images count, and the names of the bad ones."""
    with closing(loader(root, backend, policy, **options)) as source:
        count = counted(source, epochs)
        return count, sorted(os.path.basename(path) for path in source.bad_files)


@pytest.mark.filterwarnings("ignore:Pillow reads a batch that DALI refused")
@pytest.mark.parametrize("backend", BACKENDS)
def test_images_of_every_kind_are_used_and_other_files_left_out(
    root: Path, backend: Backend
) -> None:
    write(root / "val" / "ant", USED | LEFT_OUT)
    assert read(root, backend) == (4 + len(USED), [])


@pytest.mark.parametrize("backend", BACKENDS)
def test_skip_counts_and_lists_every_bad_file(root: Path, backend: Backend) -> None:
    write(root / "val" / "bee", BAD)
    assert read(root, backend, "skip") == (4, sorted(BAD))


@pytest.mark.parametrize("backend", BACKENDS)
def test_skip_in_training_lasts_for_epochs(root: Path, backend: Backend) -> None:
    write(root / "train" / "bee", BAD)
    assert (4 + len(BAD)) % 2, "one image of an epoch fills no step of two"
    count, bad = read(root, backend, "skip", split="train", at_once=2, epochs=4)
    assert bad == sorted(BAD)
    assert 12 <= count <= 16


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_of_bad_files_only_are_masked(root: Path, backend: Backend) -> None:
    """The last step of val, filled up with its bad last image, among them."""
    write(root / "val" / "bee", {f"z{i}.jpg": BAD["text.jpg"] for i in range(5)})
    assert read(root, backend, "skip") == (4, [f"z{i}.jpg" for i in range(5)])
    assert read(root, backend, "skip", at_once=1) == (4, [f"z{i}.jpg" for i in range(5)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", BAD)
def test_error_names_the_bad_file_in_one_line(root: Path, backend: Backend, name: str) -> None:
    write(root / "val" / "bee", {name: BAD[name]})
    with pytest.raises(UserError) as caught:
        read(root, backend)
    line = str(caught.value)
    assert str(root / "val" / "bee" / name) in line and "skip" in line and "\n" not in line


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["empty.jpg", "truncated.jpg"])
def test_error_ends_training_too(root: Path, backend: Backend, name: str) -> None:
    write(root / "train" / "bee", {name: BAD[name]})
    with pytest.raises(UserError, match=name):
        read(root, backend, split="train", at_once=1, epochs=1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_unreadable_file_is_bad(
    root: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions do not bind the superuser, who may run this test: so `open` refuses for them."""
    forbidden = str(root / "val" / "ant" / "x.jpg")

    def refusing(real: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(path: Any, *args: Any, **options: Any) -> Any:
            if not isinstance(path, int) and os.fsdecode(path) == forbidden:
                raise PermissionError(13, "Permission denied", forbidden)
            return real(path, *args, **options)

        return refuse

    monkeypatch.setattr(builtins, "open", refusing(builtins.open))
    monkeypatch.setattr(os, "open", refusing(os.open))
    assert read(root, backend, "skip") == (3, ["x.jpg"])
    with pytest.raises(UserError, match="x.jpg: Permission denied"):
        read(root, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_file_that_is_deleted_meanwhile_is_bad(root: Path, backend: Backend) -> None:
    """Its header has been read, so DALI is the first to miss it.

    It is the last of four steps: DALI reads two steps ahead, into the next evaluation.
    """
    source = loader(root, backend, "skip", at_once=1)
    assert counted(source) == 4
    (root / "val" / "bee" / "y.jpg").unlink()
    assert counted(source) == 3
    assert source.bad_files == [str(root / "val" / "bee" / "y.jpg")]
    source.close()


def test_an_empty_class_is_named(root: Path) -> None:
    (root / "val" / "ant" / "x.jpg").unlink()
    (root / "val" / "ant" / "y.jpg").unlink()
    with pytest.warns(UserWarning, match=r"val has no images of 1 of 2 classes \(ant\)"):
        read(root, "folder")
    with pytest.raises(UserError, match="ant has no images: add images or remove the folder"):
        check_train(list_images(root / "val"), 2)  # as in training
