"""Walking a dataset before training: what is wrong with it, and how to mend it."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seresnext_jax.config import DataConfig
from seresnext_jax.data.files import EXTENSIONS, FileList, empty_classes, list_images
from seresnext_jax.data.folder import BadImage, open_rgb
from seresnext_jax.data.open import split_folder
from seresnext_jax.errors import UserError

SPLITS = ("train", "val")
_AT_ONCE = 1024
"""Images given to the threads at a time; all of ImageNet's would wait in gigabytes."""


@dataclass(frozen=True)
class Findings:
    """What a walk found."""

    problems: tuple[str, ...]
    """One line each: what is wrong, and the mend."""
    facts: tuple[tuple[str, str], ...]
    """Counts that are worth knowing and no problem."""


def check_data(
    config: DataConfig, num_classes: int, progress: Callable[[int, int], None]
) -> Findings:
    """Look at every file of both splits and decode every image.

    Args:
      progress: told (images decoded, images in all) after each image.

    Raises:
      UserError: no dataset was named.
    """
    problems: list[str] = []
    facts: list[tuple[str, str]] = []
    splits: dict[str, FileList] = {}
    for split in SPLITS:
        folder = split_folder(config, split)  # type: ignore[arg-type]
        problems += _unsorted(folder)
        try:
            splits[split] = list_images(folder)
        except UserError as error:
            problems.append(str(error))
    for split, files in splits.items():
        facts += _counts(split, files)
        problems += empty_classes(files)
        problems += _class_problems(split, files, num_classes)
    if len(splits) == len(SPLITS):
        problems += _differing(splits["train"].class_names, splits["val"].class_names)
    paths = {split: _paths(files) for split, files in splits.items()}
    looks = _look_at_all(paths, config.workers, progress)
    problems += _shared_images(paths, looks)
    problems += [look.problem for look in looks.values() if look.problem is not None]
    return Findings(tuple(problems), tuple(facts))


def _unsorted(folder: Path) -> list[str]:
    """Images that lie beside the class folders instead of in them."""
    try:
        loose = [e.name for e in os.scandir(folder) if e.is_file() and _is_image(e.name)]
    except OSError:  # `list_images` says so
        return []
    if not loose:
        return []
    return [
        f"{len(loose)} images lie in {folder} itself ({min(loose)}, ...) and would be left out: "
        "move each into the folder of its class; for ImageNet's val the classes are in "
        "ILSVRC2012_validation_ground_truth.txt, line by line"
    ]


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS


def _counts(split: str, files: FileList) -> list[tuple[str, str]]:
    sizes = np.bincount(files.labels, minlength=len(files.class_names))
    listed = set(_paths(files))
    others = [p for p in files.folder.rglob("*") if p.is_file() and p not in listed]
    return [
        (f"{split}: images", str(len(files.paths))),
        (f"{split}: classes", str(len(files.class_names))),
        (f"{split}: images per class", f"{sizes.min()} to {sizes.max()}"),
        (f"{split}: other files, left out", str(len(others))),
    ]


def _class_problems(split: str, files: FileList, num_classes: int) -> list[str]:
    problems = []
    found = len(files.class_names)
    if found != num_classes:
        problems.append(
            f"{split}/ has {found} class folders but --model.num-classes is {num_classes}: give "
            f"--model.num-classes {found}, or mend the folder"
        )
    spelled = defaultdict(list)
    for name in files.class_names:
        spelled["".join(name.split()).casefold()].append(name)
    for names in spelled.values():
        if len(names) > 1:
            problems.append(
                f"{split}/ has the folders {', '.join(map(repr, names))}, which look like one "
                "class: merge them"
            )
    return problems


def _differing(train: tuple[str, ...], val: tuple[str, ...]) -> list[str]:
    return [
        f"{len(extra)} class folder(s) only in {name}/ ({', '.join(sorted(extra)[:3])}): add them "
        "to the other split or remove them"
        for name, extra in (("train", set(train) - set(val)), ("val", set(val) - set(train)))
        if extra
    ]


def _paths(files: FileList) -> list[Path]:
    return [files.folder / path for path in files.paths]


class _Look(NamedTuple):
    """What one image showed."""

    problem: str | None
    digest: bytes | None
    """Of the file's bytes, where a file of the other split is as large."""


def _look_at_all(
    paths: dict[str, list[Path]], workers: int, progress: Callable[[int, int], None]
) -> dict[Path, _Look]:
    sizes = {path: _size(path) for split in paths.values() for path in split}
    train, val = ({sizes[path] for path in paths.get(split, ())} for split in SPLITS)
    shared = train & val
    todo = ((path, size in shared) for path, size in sizes.items())

    looks: dict[Path, _Look] = {}
    with ThreadPoolExecutor(workers) as pool:
        while some := list(islice(todo, _AT_ONCE)):
            for (path, _), look in zip(
                some, pool.map(lambda item: _look(*item), some), strict=True
            ):
                looks[path] = look
                progress(len(looks), len(sizes))
    return looks


def _size(path: Path) -> int:
    """Bytes; -1 of a file that isn't there."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _look(path: Path, with_digest: bool) -> _Look:
    try:
        open_rgb(path)
        digest = hashlib.sha256(path.read_bytes()).digest() if with_digest else None
    except (BadImage, OSError) as cause:
        return _Look(f"{path} can't be decoded ({cause}): replace or delete it", None)
    return _Look(None, digest)


def _shared_images(paths: dict[str, list[Path]], looks: dict[Path, _Look]) -> list[str]:
    """Files of val that are, byte for byte, in train too: validation would flatter."""
    known = {looks[path].digest for path in paths.get("train", ())} - {None}
    shared = [path for path in paths.get("val", ()) if looks[path].digest in known]
    if not shared:
        return []
    return [
        f"{len(shared)} images of val/ are in train/ too ({min(shared)}, ...): remove them from "
        "one split, or the accuracy is not that on new images"
    ]
