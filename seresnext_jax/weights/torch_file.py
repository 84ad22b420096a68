"""PyTorch files of the original: safe reading, atomic writing. The only user of torch.

Reading never runs code of the file: pickles go through torch's restricted unpickler, which builds
tensors, plain containers and, on top, the float64 numpy scalars that the original's optimizer
states hold (the learning rate). A file that asks for anything else is refused.
"""

import contextlib
import math
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from seresnext_jax.errors import UserError, shown

Array = np.ndarray[Any, Any]
StateDict = dict[str, Array]

_SAFE_GLOBALS: list[Any] = [
    (scalar, "numpy.core.multiarray.scalar"),  # as numpy 1 spelled it
    (scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype("float64")),
]
_DAMAGE = (
    # What torch and zipfile answer to bytes that are not what they should be.
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
_MOST_EPOCHS = 10**6
_WEIGHTS = ("state_dict", "model")
_EMA = ("state_dict_ema", "ema_state_dict")


@dataclass(frozen=True)
class TorchFile:
    """What one file holds, tensors as numpy arrays (bfloat16 widened to float32)."""

    kind: str
    """``state dict`` or ``checkpoint``."""
    weights: StateDict | None
    """Names as in the file; None in a checkpoint of nothing but the moving average."""
    ema: StateDict | None
    dtypes: tuple[str, ...]
    """Types of the floating-point weights in the file."""
    epoch: int | None = None
    """Epochs completed."""
    best_prec1: float | None = None
    """Best validation accuracy, percent."""
    arch: Any = None
    """The architecture as the original's 20.06 release noted it."""
    optimizer: dict[str, Any] | None = None
    """``{"state": {id: {"momentum_buffer": array}}, "param_groups": [...]}``."""

    def state(self, *, ema: bool) -> StateDict:
        """The moving average or the weights; the file must hold them."""
        state = self.ema if ema else self.weights
        assert state is not None
        return state


# ---- reading -----------------------------------------------------------------------------------


def read(path: Path) -> TorchFile:
    """Read a ``.pth.tar``, ``.pt`` or ``.safetensors`` file without running anything in it.

    Raises:
      UserError: it is missing, damaged, of another kind, or would run code.
    """
    head = _head(path)
    try:
        return _recognise(path, _load(path, head))
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} {_refusal(str(error))}") from error
    except SafetensorError as error:
        raise UserError(
            f"{path} is no whole safetensors file ({shown(error)}): get it again"
        ) from error
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is cut off: get it again") from error
    except _DAMAGE as error:
        raise UserError(f"{path} is no PyTorch file, or a damaged one: get it again") from error


def _head(path: Path) -> bytes:
    """The first bytes of a file that can be a PyTorch file."""
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
    return head


def _load(path: Path, head: bytes) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if torch.__version__ < _OLDEST_TORCH:
        raise UserError(
            f"{path}: PyTorch {torch.__version__} can't open files of others safely: "
            "pip install 'torch>=2.10'"
        )
    if _is_zip(head):
        _check_archive(path)
    with torch.serialization.safe_globals(_SAFE_GLOBALS):
        # Only the zip format, not that of torch < 1.6, can be mapped into memory.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(head))


def _is_zip(head: bytes) -> bool:
    return head.startswith(b"PK")


def _check_archive(path: Path) -> None:
    """Refuse zip archives that torch.save did not write.

    Raises:
      UserError: it is one of them.
      zipfile.BadZipFile: it is none, or cut off; torch would look for its parts in its own way.
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


def _refusal(message: str) -> str:
    """Why the restricted unpickler stopped, and the mend."""
    if found := re.search(r"(?:GLOBAL |but got <class ')([\w.]+)", message):
        return (
            f"would call {shown(found[1])} when loaded, so it was not opened: "
            "get the weights from a source you trust, as a plain state dict"
        )
    return "is no PyTorch file, or a damaged one: get it again"


def _recognise(path: Path, content: Any) -> TorchFile:
    """Find the weights and what stands beside them."""
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}: a state dict was expected")
    tables = {
        name: next((content[key] for key in keys if isinstance(content.get(key), Mapping)), None)
        for name, keys in (("weights", _WEIGHTS), ("ema", _EMA))
    }
    if tables["weights"] is None and tables["ema"] is None:
        weights = _state_dict(path, content)
        return TorchFile("state dict", weights, None, _dtypes(content))
    found = {name: None if t is None else _state_dict(path, t) for name, t in tables.items()}
    epoch, best, optimizer = (content.get(k) for k in ("epoch", "best_prec1", "optimizer"))
    epoch = _number(epoch)
    if epoch is not None and not 0 <= epoch <= _MOST_EPOCHS:
        epoch = None
    if not (isinstance(optimizer, Mapping) and {"state", "param_groups"} <= optimizer.keys()):
        optimizer = None
    return TorchFile(
        kind="checkpoint",
        weights=found["weights"],
        ema=found["ema"],
        dtypes=_dtypes(tables["weights"] or tables["ema"] or {}),
        epoch=None if epoch is None else int(epoch),
        best_prec1=_number(best),
        arch=content.get("arch"),
        optimizer=_to_numpy(path, optimizer),
    )


def _state_dict(path: Path, table: Mapping[Any, Any]) -> StateDict:
    wrong = [k for k, v in table.items() if not (_is_name(k) and torch.is_tensor(v))]
    if wrong or not table:
        what = f"{shown(ascii(wrong[0]))} is no tensor's name" if wrong else "it is empty"
        raise UserError(f"{path} holds no state dict ({what}): name-to-tensor pairs were expected")
    return {name: _to_numpy(path, tensor) for name, tensor in table.items()}


def _is_name(key: Any) -> bool:
    """Whether a key is text that can stand in a one-line message, terminal codes kept out."""
    return isinstance(key, str) and key.isascii() and key.isprintable()


def _number(value: Any) -> float | None:
    """A finite number, also as a tensor of one element; None for anything else."""
    if torch.is_tensor(value) and value.numel() == 1 and not value.is_meta:
        value = value.item()
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:
        return None


def _dtypes(table: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    floating = {
        str(x.dtype).removeprefix("torch.") for x in table.values() if x.is_floating_point()
    }
    return tuple(sorted(floating))


def _to_numpy(path: Path, value: Any) -> Any:
    """Tensors in nested containers as arrays.

    Raises:
      UserError: numpy has no such kind (sparse, quantized, float8, ...), or it is complex.
    """
    if isinstance(value, Mapping):
        return {key: _to_numpy(path, inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_to_numpy(path, inner) for inner in value]
    if not torch.is_tensor(value):
        return value
    value = value.detach()
    if _repeats(value):
        raise UserError(
            f"{path} holds a tensor of shape {tuple(value.shape)} that repeats fewer numbers: "
            "save its weights as dense float32"
        )
    try:
        array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{path} {_unreadable(value)}") from error
    if np.iscomplexobj(array):
        raise UserError(f"{path} {_unreadable(value)}")
    return array


def _repeats(tensor: torch.Tensor) -> bool:
    """Whether a tensor has more entries than the file has numbers for it: a bomb, mostly."""
    if tensor.layout != torch.strided or tensor.is_meta:
        return False
    return bool(tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes())


def _unreadable(tensor: torch.Tensor) -> str:
    """What kind of tensor can't be converted, and the mend."""
    kind = f"{tensor.layout} {tensor.dtype}".replace("torch.", "")
    return f"holds a {kind} tensor on {tensor.device}: save its weights as dense float32"


# ---- writing -----------------------------------------------------------------------------------


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a state dict or a checkpoint that `torch.load` reads, whole or not at all.

    Args:
      content: what the file holds, with numpy arrays for tensors.

    Raises:
      UserError: `path` can't be written.
    """
    with _atomic(path) as part:
        torch.save(_to_torch(content), part)


def write_safetensors(path: Path, weights: StateDict) -> None:
    """Write a state dict as safetensors, whole or not at all.

    Raises:
      UserError: `path` can't be written.
    """
    with _atomic(path) as part:
        save_file(_to_torch(weights), part, metadata={"format": "pt"})


def _to_torch(value: Any) -> Any:
    """Arrays in nested containers as tensors."""
    if isinstance(value, dict):
        return {key: _to_torch(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_to_torch(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.require(value, requirements=("C", "W")))
    return value


@contextlib.contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place if the block succeeds, and vanishes if not."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path} can't be written ({error}): choose another place") from error
    finally:
        part.unlink(missing_ok=True)
