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
from seresnext_jax.data.classes import class_count_problems, class_problems, differing_classes
from seresnext_jax.data.files import FileList
from seresnext_jax.data.formats import count_kinds, has_image_suffix
from seresnext_jax.data.images import BadImage, Member, decode_rgb, is_meant_as_image
from seresnext_jax.data.index import open_index
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
    """The numbers of images, classes and left-out files, as (name, text) pairs."""


def check_data(
    data: InputConfig, num_classes: int, progress: Callable[[int, int], None]
) -> CheckResult:
    """Check every file of both splits, and decode every image.

    Args:
      progress: called with (images decoded, total images) after each image.

    Raises:
      UserError: no dataset was named, or its folder is missing.
    """
    problems: list[str] = []
    facts: list[tuple[str, str]] = []
    splits: dict[Split, FileList] = {}
    for split in SPLITS:
        folder = split_folder(data, split)
        problems += _loose_images(folder)
        try:
            splits[split] = open_index(folder, "", lambda line: None).files
        except UserError as error:
            problems.append(str(error))
    for split, files in splits.items():
        facts += _counts(split, files)
        if split == "train":
            problems += class_problems(files, num_classes)
        else:  # a class may have no images here
            problems += class_count_problems(files, num_classes)
        problems += _similar_names(files)
        problems += _images_left_out(split, files)
    if len(splits) == len(SPLITS):
        problems += differing_classes(splits["train"].class_names, splits["val"].class_names)
    bad, digests = _decode_all(splits, data.workers, progress)
    problems += _shared_images(splits, digests)
    return CheckResult(problems + bad, facts)


def _loose_images(folder: Path) -> list[str]:
    """One line on images directly in the split's folder; [] if there are none."""
    try:
        loose = [e.name for e in os.scandir(folder) if e.is_file() and has_image_suffix(e.name)]
    except OSError:  # `open_index` reports it
        return []
    loose = [name for name in loose if not is_hidden(name)]
    if not loose:
        return []
    return [
        f"{len(loose)} image(s) are directly in {printable(folder)} "
        f"(first: {printable(min(loose))}) and would be left out: move each into the "
        "folder of its class; for ImageNet's val the classes are in "
        "ILSVRC2012_validation_ground_truth.txt, line by line"
    ]


def _images_left_out(split: str, files: FileList) -> list[str]:
    """One line on files that seem to be images but lack an image suffix; [] if there are none."""
    paths = [str(files.folder / p) for p in files.left_out if not has_image_suffix(p)]
    meant = [path for path in paths if is_meant_as_image(path)]
    if not meant:
        return []
    return [
        f"{len(meant)} file(s) in {split}/ seem to be images and would be left out "
        f"({count_kinds(meant)}; first: {printable(min(meant))}): convert those in formats that "
        "are not supported to JPEG or PNG, give the others the suffix of their format, repair "
        "broken links, or remove them"
    ]


def _counts(split: str, files: FileList) -> list[tuple[str, str]]:
    sizes = np.bincount(files.labels, minlength=len(files.class_names))
    return [
        (f"{split}: images", str(len(files.paths))),
        (f"{split}: classes", str(len(files.class_names))),
        (
            f"{split}: images per class",
            f"{sizes.min(initial=len(files.paths))} to {sizes.max(initial=0)}",
        ),
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


def _decode_all(
    splits: dict[Split, FileList], workers: int, progress: Callable[[int, int], None]
) -> tuple[list[str], dict[Split, dict[int, bytes]]]:
    """One line on each image that can't be decoded, and the digests of possible duplicates.

    Only images whose size in bytes occurs in both splits can be duplicates.

    Returns:
      the lines, and the SHA-256 of the possible duplicates by split and index.
    """
    sizes = {
        split: np.array([files.num_bytes(index) for index in range(len(files.paths))])
        for split, files in splits.items()
    }
    train, val = (sizes.get(split, np.empty(0, np.int64)) for split in SPLITS)
    in_both = np.intersect1d(train, val)
    todo = (
        (split, index, bool(alike))
        for split, files in splits.items()
        for index, alike in enumerate(np.isin(sizes[split], in_both))
    )
    total = sum(map(len, sizes.values()))

    problems: list[str] = []
    digests: dict[Split, dict[int, bytes]] = {split: {} for split in SPLITS}
    done = 0
    with ThreadPoolExecutor(workers) as pool:
        while some := list(islice(todo, _AT_ONCE)):
            results = pool.map(lambda item: _decode(splits[item[0]], *item[1:]), some)
            for (split, index, _), (problem, digest) in zip(some, results, strict=True):
                if problem is not None:
                    problems.append(problem)
                if digest is not None:
                    digests[split][index] = digest
                done += 1
                progress(done, total)
    return problems, digests


def _decode(files: FileList, index: int, with_digest: bool) -> tuple[str | None, bytes | None]:
    """What is wrong with an image, or None; and its file's SHA-256 if `with_digest`, or None."""
    try:
        source = files.source(index)
        decode_rgb(source, lambda image: None)
        if not with_digest:
            return None, None
        data = source.data if isinstance(source, Member) else Path(source).read_bytes()
        return None, hashlib.sha256(data).digest()
    except (BadImage, OSError) as cause:
        where = printable(files.path(index))
        return f"{where} can't be decoded ({printable(cause)}): {files.fix_for_bad}", None


def _shared_images(
    splits: dict[Split, FileList], digests: dict[Split, dict[int, bytes]]
) -> list[str]:
    """One line on val files that are also in train: they make the accuracy look too high."""
    train = set(digests["train"].values())
    shared = [splits["val"].path(i) for i, found in digests["val"].items() if found in train]
    if not shared:
        return []
    return [
        f"{len(shared)} image(s) of val/ are also in train/ (first: {printable(min(shared))}): "
        "remove them from one split, or the accuracy will be too high"
    ]
