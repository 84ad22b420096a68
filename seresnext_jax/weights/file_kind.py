"""Detects what a file is from its first bytes, never from its name."""

import shlex
import tarfile
import zipfile
from pathlib import Path
from typing import Literal

from seresnext_jax.errors import UserError, shown

FileKind = Literal["zip", "pickle", "safetensors"]
"""zip: what torch.save writes; pickle: what it wrote before torch 1.6, and any other pickle."""

WEIGHTS_SUFFIXES = (".pth.tar", ".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".pkl")

_COMPRESSED = {
    # First bytes, name, and the command that unpacks it.
    b"\x1f\x8b": ("gzip", "gunzip -c"),
    b"BZh": ("bzip2", "bunzip2 -c"),
    b"\xfd7zXZ\0": ("xz", "unxz -c"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd -c"),
}
_FOREIGN = {
    b"\x89HDF": "an HDF5 file, as Keras writes",
    b"\x93NUMPY": "one numpy array",
    b"GGUF": "a GGUF file of a language model",
    b"7z\xbc\xaf\x27\x1c": "a 7-zip archive: unpack it and give the file inside",
    b"Rar!": "a RAR archive: unpack it and give the file inside",
    b"%PDF": "a PDF document",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"\x7fELF": "a program",
}
_EXPORT = "save the PyTorch model's state_dict() with torch.save instead"
_PICKLES = (b"(dp", b"(lp", b"(d.", b"}", b"]", b"ccollections\n", b"ccopy_reg\n", b"L1195")


def file_kind(path: Path) -> FileKind:
    """The format of a file that can contain weights.

    Raises:
      UserError: the file is missing, or is something else; the message says what to do.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder without weights: {files_in(path)}")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(1024)
            file.seek(max(0, size - 8))
            tail = file.read(8)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; check its path and permissions") from error
    if not head:
        raise UserError(f"{path} is empty: get it again")
    if head.startswith(b"PK"):
        return "zip"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 10**8:
        return "safetensors"
    if what := _other_kind(path, head, tail):
        raise UserError(f"{path} is {what}")
    if (head[0] == 0x80 and head[1:2] <= b"\x05") or head.startswith(_PICKLES):
        return "pickle"
    if size < 8 and path.suffix == ".safetensors":
        raise UserError(f"{path} is not a complete safetensors file: get it again")
    if head.isascii() and "".join(head.decode().split()).isprintable():
        raise UserError(f"{path} is not a PyTorch file but text: give the file of weights")
    raise UserError(f"{path} is not a PyTorch file, or it is damaged: get it again")


def _other_kind(path: Path, head: bytes, tail: bytes) -> str | None:
    """Another kind of file, and what to do about it; None if its kind is not known."""
    if head.startswith(b"version https://git-lfs"):
        return (
            "a git-lfs pointer, not the weights themselves: run git lfs pull in the folder it "
            "came in"
        )
    for start, (name, command) in _COMPRESSED.items():
        if head.startswith(start):
            inner = path.with_name(f"unpacked-{path.stem if path.suffix != '.tar' else path.name}")
            words = f"{command} {shlex.quote(str(path))} > {shlex.quote(str(inner))}"
            return f"compressed with {name}: run {words} and give the new file"
    if head[257:262] == b"ustar":
        return _tar_advice(path)
    for start, name in _FOREIGN.items():
        if head.startswith(start):
            return name if ":" in name else f"{name}, not a PyTorch file: {_EXPORT}"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:1] == b"<":
        return "a web page, not a PyTorch file: download the file itself"
    if text[:1] == b"{" and text[1:].lstrip()[:1] in (b'"', b"}"):
        return "JSON text, not a PyTorch file: give the file with the weights in the same folder"
    if head[4:8] == b"TFL3":
        return f"a TensorFlow Lite model: {_EXPORT}"
    if tail == (0xDB4775248B80FB57).to_bytes(8, "little"):
        return f"the index of a TensorFlow checkpoint: {_EXPORT}"
    if head[:3] == b"\x08\x01\x12" or (head[:1] == b"\x0a" and b"\x12\x0bPlaceholder" in head):
        return f"a TensorFlow model: {_EXPORT}"
    if head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x3a", b"\x1a", b"\x22"):
        return f"an ONNX model: {_EXPORT}"
    if not head.strip(b"\0") and len(head) > 16:
        return "an unfinished download (it starts with zeros): get it again"
    return None


def _tar_advice(path: Path) -> str:
    try:
        with tarfile.open(path, "r:") as archive:
            names = [m.name for m in archive if m.isfile()][:1000]
    except (tarfile.TarError, OSError, ValueError):
        return "a damaged tar archive: get it again"
    inside = [name for name in names if name.endswith(WEIGHTS_SUFFIXES)] or names
    if not inside:
        return "a tar archive without files: get it again"
    if not inside[0].isprintable():
        return "a tar archive: unpack it and give the file inside"
    name = inside[0]
    return (
        f"a tar archive around {shown(name)}: run tar -xf {shlex.quote(str(path))} "
        f"{shlex.quote(name)} and give that file"
    )


def files_in(folder: Path) -> str:
    """Advice on which file to give instead of a folder."""
    names = sorted(p.name for p in folder.iterdir())
    if "saved_model.pb" in names:
        return f"it is a TensorFlow model; {_EXPORT}"
    weights = [name for name in names if name.endswith(WEIGHTS_SUFFIXES)]
    if weights:
        listed = ", ".join(shown(folder / name) for name in weights[:4])
        return f"give the file inside ({listed}{', ...' if len(weights) > 4 else ''})"
    return "give the file inside"


def hugging_face_file(folder: Path) -> Path | None:
    """The weights file in a folder of the Hugging Face hub; None if it is another kind of folder.

    Raises:
      UserError: its weights are in several files.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
        if (folder / f"{name}.index.json").is_file():
            raise UserError(f"{folder} has its weights in several files: save them as one")
    return None


def check_archive(path: Path) -> tuple[zipfile.ZipFile, str]:
    """The archive that torch.save wrote, and the prefix of its entries, such as ``archive/``.

    Raises:
      UserError: it was not written by torch.save; the message says what it is.
      zipfile.BadZipFile: it is damaged or truncated.
    """
    archive = zipfile.ZipFile(path)
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") for name in names):
        raise UserError(
            f"{path} is a TorchScript program: if you trust it, save its weights with import "
            f"torch; torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pth')"
        )
    if any(name.endswith("/archive_format") or "/data/weights/" in name for name in names):
        raise UserError(f"{path} is a program of torch.export: {_EXPORT}")
    pickles = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
    if not pickles:
        raise UserError(f"{path} is {_other_archive(path, names)}")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UserError(
            f"{path} was packed again, with compression: get the file as torch.save wrote it"
        )
    return archive, min(pickles, key=len).removesuffix("data.pkl")


def _other_archive(path: Path, names: list[str]) -> str:
    inside = [name for name in names if name.endswith(WEIGHTS_SUFFIXES)]
    if inside:
        name = shown(inside[0])
        return f"a zip archive around {name}: unpack it and give that file"
    if names and all(name.endswith(".npy") for name in names):
        return f"a numpy .npz file, not a PyTorch file: {_EXPORT}"
    if any(name.endswith((".weights.h5", "saved_model.pb")) for name in names):
        return f"a Keras or TensorFlow model: {_EXPORT}"
    listed = f" ({shown(names[0])}, ...)" if names else ""
    return f"a zip archive without weights{listed}: give a PyTorch file"
