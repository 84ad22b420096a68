"""Walking a dataset before training: what is wrong with it, and how to mend it."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from seresnext_jax.config import DataConfig
from seresnext_jax.data.files import EXTENSIONS, FileList, scan_folder
from seresnext_jax.data.folder import BadImage, open_rgb
from seresnext_jax.data.open import split_folder
from seresnext_jax.errors import UserError

SPLITS = ("train", "val")


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
      progress: told (images decoded, images in all) now and then.

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
            splits[split] = scan_folder(folder)
        except UserError as error:
            problems.append(str(error))
    for split, files in splits.items():
        facts += _counts(split, files)
        problems += _class_problems(split, files, num_classes)
    if len(splits) == len(SPLITS):
        problems += _differing(splits["train"].class_names, splits["val"].class_names)
        problems += _shared_images(splits)
    problems += _undecodable(list(splits.values()), config.workers, progress)
    return Findings(tuple(problems), tuple(facts))


def _unsorted(folder: Path) -> list[str]:
    """Images that lie beside the class folders instead of in them."""
    if not folder.is_dir():
        return []
    loose = [e.name for e in os.scandir(folder) if e.is_file() and _is_image(e.name)]
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
    sizes = Counter(files.labels.tolist())
    listed = {files.folder / path for path in files.paths}
    others = [p for p in files.folder.rglob("*") if p.is_file() and p not in listed]
    return [
        (f"{split}: images", str(len(files.paths))),
        (f"{split}: classes", str(len(files.class_names))),
        (f"{split}: images per class", f"{min(sizes.values())} to {max(sizes.values())}"),
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


def _shared_images(splits: dict[str, FileList]) -> list[str]:
    """Files of val that are, byte for byte, in train too: validation would flatter."""
    by_size: dict[str, dict[int, list[Path]]] = {}
    for split, files in splits.items():
        sizes: dict[int, list[Path]] = defaultdict(list)
        for path in files.paths:
            whole = files.folder / path
            if whole.exists():
                sizes[whole.stat().st_size].append(whole)
        by_size[split] = sizes
    shared = []
    for size in by_size["train"].keys() & by_size["val"].keys() - {0}:
        known = {_digest(path) for path in by_size["train"][size]}
        shared += [path for path in by_size["val"][size] if _digest(path) in known]
    if not shared:
        return []
    return [
        f"{len(shared)} images of val/ are in train/ too ({min(shared)}, ...): remove them from "
        "one split, or the accuracy is not that on new images"
    ]


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def _undecodable(
    splits: list[FileList], workers: int, progress: Callable[[int, int], None]
) -> list[str]:
    paths = [files.folder / path for files in splits for path in files.paths]

    def problem(path: Path) -> str | None:
        try:
            open_rgb(path)
        except BadImage as cause:
            return f"{path} can't be decoded ({cause}): replace or delete it"
        return None

    found = []
    with ThreadPoolExecutor(workers) as pool:
        for done, line in enumerate(pool.map(problem, paths), start=1):
            if line is not None:
                found.append(line)
            if done % max(1, len(paths) // 10) == 0 or done == len(paths):
                progress(done, len(paths))
    return found
