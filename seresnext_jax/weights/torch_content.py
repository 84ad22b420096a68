"""From the bytes of a PyTorch file to plain Python values and tensors.

Reading never runs code of the file: pickles go through torch's restricted unpickler, which builds
tensors, plain containers and, in addition, the float64 numpy scalars that the original's optimizer
states contain (the learning rate). A file that asks for anything else is refused.
"""

import pickle
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy._core.multiarray import scalar
from safetensors import SafetensorError
from safetensors.torch import load_file

from seresnext_jax.errors import UserError, shown

_SAFE_GLOBALS: list[Any] = [
    (scalar, "numpy.core.multiarray.scalar"),  # as numpy 1 spelled it
    (scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype("float64")),
]
_DAMAGE = (
    # What torch and zipfile raise for bytes that are not what they should be.
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    MemoryError,
    OverflowError,
    struct.error,
)
_OLDEST_TORCH = (2, 10)
"""Before it, a crafted file got past ``weights_only=True`` (CVE-2026-24747)."""


def read_content(path: Path) -> Any:
    """What a file contains: nested containers of plain values and torch tensors.

    Raises:
      UserError: it is missing, of another kind, or PyTorch is too old to open it safely.
      Exception: it is damaged or would run code; see `explaining_damage`.
    """
    file_format = _format_of(path)
    if file_format == "safetensors":
        return load_file(path)
    if torch.__version__ < _OLDEST_TORCH:
        raise UserError(
            f"{path}: PyTorch {torch.__version__} can't open files of others safely: "
            "pip install 'torch>=2.10'"
        )
    if file_format == "zip":
        _check_archive(path)
    with torch.serialization.safe_globals(_SAFE_GLOBALS):
        # Only the zip format can be mapped into memory.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=file_format == "zip")


@contextmanager
def explaining_damage(path: Path) -> Iterator[None]:
    """Turn the errors of a damaged or malicious file into one line.

    Raises:
      UserError: the block failed.
    """
    damaged = f"{path} is not a PyTorch file, or it is damaged: get it again"
    try:
        yield
    except pickle.UnpicklingError as error:
        asked_for = re.search(r"(?:GLOBAL |but got <class ')([\w.]+)", str(error))
        raise UserError(
            f"{path} would call {shown(asked_for[1])} when loaded, so it was not opened: "
            "get the weights from a source you trust, as a plain state dict"
            if asked_for
            else damaged
        ) from error
    except SafetensorError as error:
        raise UserError(
            f"{path} is not a complete safetensors file ({shown(error)}): get it again"
        ) from error
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is cut off: get it again") from error
    except _DAMAGE as error:
        raise UserError(damaged) from error


def _format_of(path: Path) -> Literal["safetensors", "zip", "legacy"]:
    """The format of a file; legacy: what torch.save wrote before torch 1.6.

    Raises:
      UserError: there is no such file, or it can't be a PyTorch file.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder without weights: give the file inside")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the path of a PyTorch file") from error
    if not head:
        raise UserError(f"{path} is empty: get it again")
    if head.lstrip()[:1] == b"<":
        raise UserError(f"{path} is a web page, not a PyTorch file: download the file itself")
    if path.suffix == ".safetensors":
        return "safetensors"
    return "zip" if head.startswith(b"PK") else "legacy"


def _check_archive(path: Path) -> None:
    """Refuse zip archives that torch.save did not write.

    Raises:
      UserError: it is one of them.
      zipfile.BadZipFile: it is not an archive, or cut off; torch would still look for its parts.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise UserError(f"{path} is a TorchScript program: save the model's state_dict() instead")
    weights = (".pth.tar", ".pth", ".pt", ".safetensors")
    if inside := [entry.filename for entry in entries if entry.filename.endswith(weights)]:
        raise UserError(
            f"{path} is a zip archive around {shown(inside[0])}: unpack it and give that file"
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        # torch would take the compressed bytes for numbers.
        raise UserError(
            f"{path} was packed again, with compression: get the file as torch.save wrote it"
        )
