"""Small datasets in class folders and in shards, and what their loaders give."""

import tarfile
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seresnext_jax.config import DataConfig
from seresnext_jax.data.files import FileList
from seresnext_jax.data.open import SPLITS, Split
from seresnext_jax.data.pack import pack_split
from tests.data.loaders import list_images, open_split

CONFIG = DataConfig(backend="folder", image_size=16, eval_margin=4, workers=1)


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def write_folders(root: Path) -> Path:
    """Class folders with JPEGs and PNGs, some of them deeper, and a name that is not ASCII."""
    for split in SPLITS:
        for label, name in enumerate(("ant", "bee", "çat")):
            folder = root / split / name
            (folder / "deep").mkdir(parents=True)
            for i in range(4):
                seed = 100 * label + i + (split == "val") * 50
                picture(seed, 40 + 3 * i).save(folder / f"{i}.jpg", quality=95)
            picture(seed + 9).save(folder / "deep" / f"{'x' * 120}.png")
    return root


def pack_files(
    files: FileList,
    out: Path,
    *,
    images_per_shard: int = 4,
    shuffled: bool = False,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> None:
    """One split as shards."""
    pack_split(files, out, images_per_shard=images_per_shard, shuffled=shuffled, progress=progress)


def pack(root: Path, out: Path, **options: int) -> Path:
    """Both splits as shards, shuffled for training."""
    for split in SPLITS:
        files = list_images(root / split)
        pack_files(files, out / split, shuffled=split == "train", **options)
    return out


def loader(root: Path, split: Split, **options: Any) -> Any:
    config = replace(CONFIG, root=str(root), index="", **options)
    return open_split(config, split, n=5, num_classes=3)


def batches(root: Path, split: Split, **options: Any) -> list[tuple[np.ndarray, ...]]:
    """All batches of an evaluation, or of two epochs."""
    source = loader(root, split, **options)
    number = source.num_steps * (1 if split == "val" else 2)
    found = [
        tuple(map(np.asarray, b)) for _, b in zip(range(number), source.batches(0), strict=False)
    ]
    source.close()
    return found


def same(one: Any, other: Any) -> bool:
    return all(
        np.array_equal(x, y)
        for a, b in zip(one, other, strict=True)
        for x, y in zip(a, b, strict=True)
    )


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, BytesIO(data))


def jpeg(seed: int) -> bytes:
    buffer = BytesIO()
    picture(seed).save(buffer, "jpeg")
    return buffer.getvalue()


def webdataset(folder: Path, *, prefix: str = "") -> Path:
    """Two shards of samples with their labels, 0 to 2."""
    for shard in range(2):
        members = {}
        for i in range(6):
            key = f"{prefix}{shard}{i:05}"
            members |= {f"{key}.cls": str(i % 3).encode(), f"{key}.jpg": jpeg(10 * shard + i)}
            members[f"{key}.json"] = b"{}"
        write_tar(folder / f"{shard:06}.tar", members)
    return folder
