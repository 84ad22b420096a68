"""A damaged tree of images: what docs/reliability.md says of each kind, in both backends."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from seresnext_jax.config import Backend, DataConfig
from seresnext_jax.data.open import open_loader
from seresnext_jax.errors import UserError
from seresnext_jax.mesh import make_mesh

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
    "deep/er/nested.JPEG": lambda path: photo().save(path, "jpeg"),
}
"""Images of every other kind than a plain colour JPEG."""

BAD: dict[str, Writer] = {
    "broken-link.jpg": lambda path: path.symlink_to("nowhere.jpg"),
    "empty.jpg": lambda path: path.write_bytes(b""),
    "huge.png": lambda path: Image.new("1", (70000, 1000)).save(path),
    "pipe.jpg": os.mkfifo,
    "text.jpg": lambda path: path.write_text("<html>"),
    "truncated.jpg": cut_short,
}

LEFT_OUT: dict[str, Writer] = {
    ".hidden.jpg": lambda path: path.write_bytes(b""),
    ".cache/inside.jpg": lambda path: path.write_bytes(b""),
    "linked-folder": lambda path: path.symlink_to(path.parent.parent / "bee"),
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


def evaluate(root: Path, backend: Backend, policy: Any = "error") -> tuple[int, list[str]]:
    """Read the val split once; returns how many images count, and the names of the bad ones."""
    source = open_loader(
        replace(CONFIG, root=str(root), backend=backend, on_bad_image=policy),
        split="val",
        mesh=make_mesh(jax.devices()[:1]),
        accumulation=1,
        images_per_pass=4,
        seed=1,
        num_classes=2,
    )
    try:
        count = sum(int(np.asarray(mask).sum()) for _, _, mask in source.batches(0))
        return count, sorted(os.path.basename(path) for path in source.bad_files)
    finally:
        source.close()


@pytest.mark.filterwarnings("ignore:Pillow reads a batch that DALI refused")
@pytest.mark.parametrize("backend", BACKENDS)
def test_images_of_every_kind_are_used_and_other_files_left_out(
    root: Path, backend: Backend
) -> None:
    write(root / "val" / "ant", USED | LEFT_OUT)
    assert evaluate(root, backend) == (4 + len(USED), [])


@pytest.mark.parametrize("backend", BACKENDS)
def test_skip_counts_and_lists_every_bad_file(root: Path, backend: Backend) -> None:
    write(root / "val" / "bee", BAD)
    assert evaluate(root, backend, "skip") == (4, sorted(BAD))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", BAD)
def test_error_names_the_bad_file_in_one_line(root: Path, backend: Backend, name: str) -> None:
    write(root / "val" / "bee", {name: BAD[name]})
    with pytest.raises(UserError) as caught:
        evaluate(root, backend)
    line = str(caught.value)
    assert str(root / "val" / "bee" / name) in line and "skip" in line and "\n" not in line


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_unreadable_file_is_bad(
    root: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions do not bind the superuser, who may run this test: so `stat` refuses for them."""
    forbidden = str(root / "val" / "ant" / "x.jpg")
    real = os.stat

    def stat(path: Any, *args: Any, **options: Any) -> os.stat_result:
        if str(path) == forbidden:
            raise PermissionError(13, "Permission denied", forbidden)
        return real(path, *args, **options)

    monkeypatch.setattr(os, "stat", stat)
    assert evaluate(root, backend, "skip") == (3, ["x.jpg"])


def test_an_empty_class_is_named(root: Path) -> None:
    (root / "val" / "ant" / "x.jpg").unlink()
    (root / "val" / "ant" / "y.jpg").unlink()
    with pytest.raises(UserError, match="ant holds no image"):
        evaluate(root, "folder")
