"""Packs the class folders of a split into shards; can resume, and compares each image it wrote.

Until a split is complete, its folder has a file `PACKING` with the plan, and loaders refuse it. A
shard gets its final name only after it was compared; its part of the index is written before that.
"""

import fcntl
import io
import json
import os
import tarfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seresnext_jax.commands import command
from seresnext_jax.data.files import FileList, Listing
from seresnext_jax.data.headers import FACTS, UNKNOWN, are_unchanged, read_header
from seresnext_jax.data.images import BadImage, Member
from seresnext_jax.data.index import SplitIndex, open_index, write_index
from seresnext_jax.data.shards import BLOCK, PACKING, PLACE, SUFFIX, ShardList, index_beside
from seresnext_jax.data.walk import is_hidden
from seresnext_jax.errors import UserError, printable
from seresnext_jax.output import replacing

_FORMAT = 1
_READING_THREADS = 8
"""Threads that read files; on a network disk they mostly wait."""
_FILES_AHEAD = 4 * _READING_THREADS
"""Maximum number of files that are read ahead, so that a shard need not fit in memory."""


class Shard(NamedTuple):
    """One shard of the plan."""

    path: Path
    images: np.ndarray
    """(R,) int64 indices into the file list, in the order of the shard."""

    @property
    def part(self) -> Path:
        """The shard's part of the index."""
        return self.path.with_name(f".{self.path.name}.npz")


def pack_split(
    files: FileList,
    folder: Path,
    *,
    images_per_shard: int,
    shuffled: bool,
    progress: Callable[[int, int], None],
) -> int:
    """Pack a split, or continue packing it; returns the number of shards.

    Args:
      files: class folders.
      folder: for the shards; created if it does not exist.
      shuffled: mix the images of all classes, for training that reads shard after shard.
      progress: called with (images packed, total images) after each shard.

    Raises:
      UserError: there are no images; the folder has other files, or shards of other images or
        options; an image can't be read, or has changed since the folder was completed; another
        packer is at work; or a file can't be written.
    """
    if not files.paths:
        raise UserError(f"{printable(files.folder)} has no images: nothing can be packed")
    shards = plan(files, folder, images_per_shard=images_per_shard, shuffled=shuffled)
    try:
        if index_beside(folder).exists() and not (folder / PACKING).exists():
            _check_finished(files, folder)
            return len(shards)
        _start(files, folder, images_per_shard, shuffled)
        with _alone(folder):
            done = 0
            for shard in shards:
                if not _is_packed(files, shard):
                    _write_shard(files, shard)
                done += len(shard.images)
                progress(done, len(files.paths))
            _finish(files, folder, shards)
    except OSError as error:
        raise UserError(
            f"packing into {printable(folder)} failed ({error.strerror or error}): what is packed "
            f"is kept; fix that and run {command('pack_data')} again as before"
        ) from error
    return len(shards)


def plan(files: FileList, folder: Path, *, images_per_shard: int, shuffled: bool) -> list[Shard]:
    """Assign the images to shards; the same for the same number of files and options."""
    number = len(files.paths)
    order = np.random.default_rng(0).permutation(number) if shuffled else np.arange(number)
    starts = range(0, number, images_per_shard)
    digits = max(6, len(str(len(starts))))
    return [
        Shard(
            folder / f"{folder.name}-{shard:0{digits}}{SUFFIX}",
            order[start : start + images_per_shard],
        )
        for shard, start in enumerate(starts)
    ]


# ---- the folder --------------------------------------------------------------------------------


def _start(files: FileList, folder: Path, images_per_shard: int, shuffled: bool) -> None:
    """Write the plan, or compare it with the one on disk."""
    facts = {
        "format": _FORMAT,
        "files": files.fingerprint(""),
        "images_per_shard": images_per_shard,
        "shuffled": shuffled,
    }
    begun = json.dumps(facts).encode()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / PACKING
    if not file.exists():
        if any(not is_hidden(path.name) for path in folder.iterdir()):
            raise UserError(
                f"{printable(folder)} has other files: give --out an empty folder or a new one"
            )
        with replacing(file, durable=True) as target:
            target.write(begun)
    elif file.read_bytes() != begun:
        raise UserError(
            f"{printable(folder)} was begun with other images or options: run "
            f"{command('pack_data')} with those, or remove the folder"
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Refuse a folder that another packer is writing to, if its file system supports locks."""
    with (folder / PACKING).open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another program is packing into {printable(folder)}: wait for its "
                "end, or give --out another folder"
            ) from error
        except OSError:
            pass
        yield


def _finish(files: FileList, folder: Path, shards: list[Shard]) -> None:
    """Write the index; the folder then counts as packed."""
    places, facts = np.zeros(len(files.paths), PLACE), np.zeros(len(files.paths), FACTS)
    for number, shard in enumerate(shards):
        with np.load(shard.part, allow_pickle=False) as part:
            facts[shard.images] = part["facts"]
            places[shard.images] = part["places"]
        places["shard"][shard.images] = number
    packed = ShardList(
        folder,
        files.paths,
        files.labels,
        files.class_names,
        shards=tuple(shard.path.name for shard in shards),
        lengths=tuple(shard.path.stat().st_size for shard in shards),
        places=places,
    )
    index = SplitIndex(packed, facts, Listing(packed, {}), 0, None)
    write_index(index, index_beside(folder), durable=True)
    (folder / PACKING).unlink()
    _tidy_up(folder)


def _tidy_up(folder: Path) -> None:
    """Remove what a complete folder does not need."""
    for name in (f".*{SUFFIX}.npz", ".*.tmp"):
        for path in folder.glob(name):
            path.unlink()


def _check_finished(files: FileList, folder: Path) -> None:
    """Refuse a complete folder with other or outdated images; else clean it up."""
    packed = open_index(folder, "", lambda line: None)
    if packed.files.fingerprint("") != files.fingerprint(""):
        raise UserError(
            f"{printable(folder)} contains shards of other images: give --out another folder, or "
            "remove it"
        )
    changed = _changed(files, np.arange(len(files.paths)), packed.facts)
    if len(changed):
        raise UserError(
            f"{len(changed)} image(s) have changed since they were packed in {printable(folder)} "
            f"(first: {printable(files.paths[changed[0]])}): remove that folder, or give --out "
            "another one"
        )
    with suppress(OSError):  # the folder may be read-only by now
        _tidy_up(folder)


def _is_packed(files: FileList, shard: Shard) -> bool:
    """Whether a shard is complete, and its images have not changed since."""
    if not (shard.path.exists() and shard.part.exists()):
        return False
    with np.load(shard.part, allow_pickle=False) as part:
        return not len(_changed(files, shard.images, part["facts"]))


def _changed(files: FileList, images: np.ndarray, facts: np.ndarray) -> np.ndarray:
    """The given images whose files have changed or vanished since they were packed."""
    return images[~are_unchanged(files.os_paths(images), facts)]


# ---- one shard ---------------------------------------------------------------------------------


def _write_shard(files: FileList, shard: Shard) -> None:
    """Write a shard and its part of the index."""
    unfinished = shard.path.with_name(f".{shard.path.name}.tmp")
    sums, times = [], []
    with unfinished.open("wb") as raw, ThreadPoolExecutor(_READING_THREADS) as pool:
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
            indices = shard.images.tolist()
            read = _read_ahead(map(files.path, indices), pool)
            for i, (data, mtime) in zip(indices, read, strict=True):
                member = tarfile.TarInfo(files.paths[i])
                member.size, member.mtime = len(data), mtime // 10**9
                tar.addfile(member, io.BytesIO(data))
                sums.append(zlib.crc32(data))
                times.append(mtime)
        raw.flush()
        os.fsync(raw.fileno())
    places, facts = _read_back(unfinished, files, shard, sums)
    facts["mtime_ns"], facts["length"] = times, places["length"]
    with replacing(shard.part, durable=True) as part:
        np.savez(part, places=places, facts=facts)
    unfinished.replace(shard.path)


def _read_ahead(paths: Iterable[str], pool: ThreadPoolExecutor) -> Iterator[tuple[bytes, int]]:
    """Yield `_read_file` of each path, in order; reads at most `_FILES_AHEAD` files ahead."""
    ahead: deque[Future[tuple[bytes, int]]] = deque()
    for path in paths:
        ahead.append(pool.submit(_read_file, path))
        if len(ahead) > _FILES_AHEAD:
            yield ahead.popleft().result()
    yield from (file.result() for file in ahead)


def _read_file(path: str) -> tuple[bytes, int]:
    """The bytes of a file and its mtime in nanoseconds."""
    try:
        with open(path, "rb") as file:
            return file.read(), os.fstat(file.fileno()).st_mtime_ns
    except OSError as error:
        raise UserError(
            f"can't read {printable(path)}: {error.strerror}; make it readable or remove it, and "
            f"run {command('pack_data')} again (with another --out if it was removed)"
        ) from error


def _read_back(
    path: Path, files: FileList, shard: Shard, sums: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Compare each member's name and CRC-32 with what was written.

    Returns:
      (R,) `PLACE`, with shard 0, and (R,) `FACTS`.

    Raises:
      UserError: something differs, or the shard is not a tar file any more.
    """
    places, facts = np.zeros(len(shard.images), PLACE), np.zeros(len(shard.images), FACTS)
    differs = UserError(
        f"{printable(path)} reads back differently from what was written: check the disk, then "
        f"run {command('pack_data')} again"
    )
    with path.open("rb") as raw:
        try:
            with tarfile.open(fileobj=raw) as tar:
                members = tar.getmembers()
        except tarfile.TarError as error:
            raise differs from error
        if len(members) != len(sums):  # tarfile takes a damaged header for the end
            raise differs
        for row, member in enumerate(members):
            raw.seek(member.offset_data - BLOCK)
            header, data = raw.read(BLOCK), raw.read(member.size)
            name = files.paths[shard.images[row]]
            if member.name != name or zlib.crc32(data) != sums[row]:
                raise differs
            places[row] = (0, member.size, member.offset_data, zlib.crc32(header))
            facts[row] = _facts_of(Member(name, data))
    return places, facts


def _facts_of(image: Member) -> tuple[int, ...]:
    """`FACTS` of an image; zeros if it can't be decoded, so that each run reports it."""
    try:
        return *read_header(image, with_turn=True, with_end=True), 0, 0
    except BadImage:
        return UNKNOWN
