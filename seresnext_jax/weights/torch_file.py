"""PyTorch files of the original: the tables of tensors in one, and writing one.

Importing this file needs PyTorch; read.py imports it only to read a torch file.
"""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from seresnext_jax.errors import UserError, shown
from seresnext_jax.weights.state_dict import StateDict

try:
    import torch
    from safetensors.torch import save_file
except ModuleNotFoundError as error:
    raise UserError(
        "torch files need PyTorch, which is missing: pip install 'torch>=2.10'"
    ) from error

from seresnext_jax.weights.torch_content import explaining_damage, read_content

_MOST_EPOCHS = 10**6
_WEIGHTS = ("state_dict", "model")
_EMA = ("state_dict_ema", "ema_state_dict")


@dataclass(frozen=True)
class TorchFile:
    """What one file contains, tensors as numpy arrays (bfloat16 widened to float32)."""

    kind: str
    """``state dict`` or ``checkpoint``."""
    weights: StateDict | None
    """Names as in the file; None in a checkpoint with only the moving average."""
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


# ---- reading -----------------------------------------------------------------------------------


def read_torch_file(path: Path) -> TorchFile:
    """Read a ``.pth.tar``, ``.pt`` or ``.safetensors`` file without running anything in it.

    Raises:
      UserError: it is missing, damaged, of another kind, or would run code.
    """
    with explaining_damage(path):
        content = read_content(path)
        if not isinstance(content, Mapping):
            raise UserError(
                f"{path} contains a {type(content).__name__}: a state dict was expected"
            )
        weights, ema = _find_table(content, _WEIGHTS), _find_table(content, _EMA)
        is_state_dict = weights is None and ema is None
        if is_state_dict:
            weights = content
        epoch, optimizer = _number(content.get("epoch")), content.get("optimizer")
        if not (isinstance(optimizer, Mapping) and {"state", "param_groups"} <= optimizer.keys()):
            optimizer = None
        return TorchFile(
            kind="state dict" if is_state_dict else "checkpoint",
            weights=None if weights is None else _state_dict(path, weights),
            ema=None if ema is None else _state_dict(path, ema),
            dtypes=_dtypes(weights or ema or {}),
            epoch=None if epoch is None or not 0 <= epoch <= _MOST_EPOCHS else int(epoch),
            best_prec1=_number(content.get("best_prec1")),
            arch=content.get("arch"),
            optimizer=_to_numpy(path, optimizer),
        )


def _find_table(content: Mapping[Any, Any], keys: tuple[str, ...]) -> Mapping[Any, Any] | None:
    return next((content[key] for key in keys if isinstance(content.get(key), Mapping)), None)


def _state_dict(path: Path, table: Mapping[Any, Any]) -> StateDict:
    wrong = [
        key
        for key, value in table.items()
        # Names go into one-line messages: no terminal codes.
        if not (isinstance(key, str) and key.isascii() and key.isprintable())
        or not torch.is_tensor(value)
    ]
    if wrong or not table:
        what = f"{shown(ascii(wrong[0]))} is not the name of a tensor" if wrong else "it is empty"
        raise UserError(
            f"{path} contains no state dict ({what}): name-to-tensor pairs were expected"
        )
    return {name: _to_numpy(path, tensor) for name, tensor in table.items()}


def _dtypes(table: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    floating = {
        str(x.dtype).removeprefix("torch.") for x in table.values() if x.is_floating_point()
    }
    return tuple(sorted(floating))


def _number(value: Any) -> float | None:
    """A finite number, also as a tensor of one element; None for anything else."""
    if torch.is_tensor(value) and value.numel() == 1 and not value.is_meta:
        value = value.item()
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:
        return None


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
    # More entries than stored numbers: as an array it may fill the memory.
    if (
        value.layout == torch.strided
        and not value.is_meta
        and (value.numel() * value.element_size() > value.untyped_storage().nbytes())
    ):
        raise UserError(
            f"{path} contains a tensor of shape {tuple(value.shape)} that repeats fewer numbers: "
            "save its weights as dense float32"
        )
    try:
        if value.is_complex():
            raise TypeError("the network is real")
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    except (RuntimeError, TypeError) as error:
        kind = f"{value.layout} {value.dtype}".replace("torch.", "")
        raise UserError(
            f"{path} contains a {kind} tensor on {value.device}: save its weights as dense float32"
        ) from error


# ---- writing -----------------------------------------------------------------------------------


def write_torch_file(path: Path, content: dict[str, Any]) -> None:
    """Write a state dict or a checkpoint that `torch.load` reads, completely or not at all.

    Args:
      content: what the file contains, with numpy arrays for tensors.

    Raises:
      UserError: `path` can't be written.
    """
    with _atomic(path) as part:
        torch.save(_to_torch(content), part)


def write_safetensors(path: Path, weights: StateDict) -> None:
    """Write a state dict as safetensors, completely or not at all.

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


@contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    """A file beside `path` that replaces it if the block succeeds and is deleted if not."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path} can't be written ({error}): choose another place") from error
    finally:
        part.unlink(missing_ok=True)
