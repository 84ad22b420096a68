"""Checks a dataset before training: reports what is wrong with it and how to fix it."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seresnext_jax.config import InputConfig
from seresnext_jax.data.files import (
    FileList,
    class_problems,
    differing_classes,
    list_images,
    number_problems,
)
from seresnext_jax.data.formats import count_kinds, has_image_suffix
from seresnext_jax.data.images import BadImage, decode_rgb, is_meant_as_image
from seresnext_jax.data.open import SPLITS, Split, split_folder
from seresnext_jax.data.walk import is_hidden
from seresnext_jax.errors import UserError, printable

_AT_ONCE = 1024
"""Images queued at a time; queueing all of ImageNet would take gigabytes."""


class CheckResult(NamedTuple):
    """What `check_data` found."""

    problems: list[str]
    """One line per problem: what is wrong, and how to fix it."""
    facts: list[tuple[str, str]]
    """What was counted, as (name, text) pairs."""


def check_data(
    data: InputConfig, num_classes: int, progress: Callable[[int, int], None]
) -> CheckResult:
    """Look at every file of both splits and decode every image.

    Args:
      progress: called with (images decoded, total images) after each image.

    Raises:
      UserError: no dataset was named.
    """
    problems: list[str] = []
    facts: list[tuple[str, str]] = []
    splits: dict[Split, FileList] = {}
    for split in SPLITS:
        folder = split_folder(data, split)
        problems += _loose_images(folder)
        try:
            splits[split] = list_images(folder)
        except UserError as error:
            problems.append(str(error))
    for split, files in splits.items():
        facts += _counts(split, files)
        if split == "train":
            problems += class_problems(files, num_classes)
        else:  # a class may have no images here
            problems += number_problems(files.class_names, files.folder, num_classes)
        problems += _similar_names(files)
        problems += _images_left_out(split, files)
    if len(splits) == len(SPLITS):
        problems += differing_classes(splits["train"].class_names, splits["val"].class_names)
    paths = {split: _paths(files) for split, files in splits.items()}
    bad, digests = _decode_all(paths, data.workers, progress)
    problems += _shared_images(paths, digests)
    return CheckResult(problems + bad, facts)


def _loose_images(folder: Path) -> list[str]:
    """One line on images that are not in a class folder."""
    try:
        loose = [e.name for e in os.scandir(folder) if e.is_file() and has_image_suffix(e.name)]
    except OSError:  # `list_images` reports it
        return []
    loose = [name for name in loose if not is_hidden(name)]
    if not loose:
        return []
    return [
        f"{len(loose)} images are directly in {printable(folder)} ({printable(min(loose))}, ...) "
        "and would be left out: move each into the folder of its class; for ImageNet's val the "
        "classes are in ILSVRC2012_validation_ground_truth.txt, line by line"
    ]


def _images_left_out(split: str, files: FileList) -> list[str]:
    """One line on unlisted files that are images or seem to be meant as images."""
    paths = [str(files.folder / p) for p in files.left_out if not has_image_suffix(p)]
    meant = [path for path in paths if is_meant_as_image(path)]
    if not meant:
        return []
    return [
        f"{len(meant)} files in {split}/ seem to be images and would be left out "
        f"({count_kinds(meant)}; {printable(min(meant))}, ...): convert those in formats that are "
        "not supported to JPEG or PNG, give the others the suffix of their format, repair broken "
        "links, or remove them"
    ]


def _counts(split: str, files: FileList) -> list[tuple[str, str]]:
    sizes = np.bincount(files.labels, minlength=len(files.class_names))
    return [
        (f"{split}: images", str(len(files.paths))),
        (f"{split}: classes", str(len(files.class_names))),
        (f"{split}: images per class", f"{sizes.min()} to {sizes.max()}"),
        (f"{split}: files left out", files.count_left_out() or "0"),
    ]


def _similar_names(files: FileList) -> list[str]:
    """One line on each group of class folders whose names differ only in case and spaces."""
    alike = defaultdict(list)
    for name in files.class_names:
        alike["".join(name.split()).casefold()].append(name)
    return [
        f"{printable(files.folder)} has the folders {', '.join(map(repr, names))}, which look like "
        "one class: merge them"
        for names in alike.values()
        if len(names) > 1
    ]


def _paths(files: FileList) -> list[Path]:
    return [files.folder / path for path in files.paths]


def _decode_all(
    paths: dict[Split, list[Path]], workers: int, progress: Callable[[int, int], None]
) -> tuple[list[str], dict[Path, bytes]]:
    """One line on each image that can't be decoded, and the digests of possible duplicates."""
    sizes = {path: _size(path) for split in paths.values() for path in split}
    train, val = ({sizes[path] for path in paths.get(split, ())} for split in SPLITS)
    in_both = train & val
    todo = ((path, size in in_both) for path, size in sizes.items())

    problems: list[str] = []
    digests: dict[Path, bytes] = {}
    done = 0
    with ThreadPoolExecutor(workers) as pool:
        while some := list(islice(todo, _AT_ONCE)):
            results = pool.map(lambda item: _decode(*item), some)
            for (path, _), (problem, digest) in zip(some, results, strict=True):
                if problem is not None:
                    problems.append(problem)
                if digest is not None:
                    digests[path] = digest
                done += 1
                progress(done, len(sizes))
    return problems, digests


def _size(path: Path) -> int:
    """Size in bytes; -1 if the file is missing."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _decode(path: Path, with_digest: bool) -> tuple[str | None, bytes | None]:
    """What is wrong with an image, if anything, and the digest of its file if `with_digest`."""
    try:
        decode_rgb(path, lambda image: None)
        return None, hashlib.sha256(path.read_bytes()).digest() if with_digest else None
    except (BadImage, OSError) as cause:
        return (
            f"{printable(path)} can't be decoded ({printable(cause)}): replace or delete it",
            None,
        )


def _shared_images(paths: dict[Split, list[Path]], digests: dict[Path, bytes]) -> list[str]:
    """One line on val files that are also in train: they make the accuracy look too good."""
    train = {digests[path] for path in paths.get("train", ()) if path in digests}
    shared = [path for path in paths.get("val", ()) if digests.get(path) in train]
    if not shared:
        return []
    return [
        f"{len(shared)} images of val/ are in train/ too ({printable(min(shared))}, ...): remove "
        "them from one split, or the accuracy will be too high"
    ]
