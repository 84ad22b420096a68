"""Writes PyTorch files. Importing this module requires PyTorch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from seresnext_jax.errors import UserError
from seresnext_jax.weights.state_dict import StateDict

try:
    import torch
    from safetensors.torch import save_file
except ModuleNotFoundError as error:
    raise UserError(
        "writing PyTorch files needs PyTorch, which is missing: pip install 'torch>=2.10'"
    ) from error


def write_torch_file(path: Path, content: dict[str, Any]) -> None:
    """Write a state dict or a checkpoint for `torch.load`, atomically.

    Args:
      content: the content of the file, with numpy arrays for tensors.

    Raises:
      UserError: `path` can't be written.
    """
    with _atomic(path) as part:
        torch.save(_to_torch(content), part)


def write_safetensors(path: Path, weights: StateDict) -> None:
    """Write a state dict as safetensors, atomically.

    Raises:
      UserError: `path` can't be written.
    """
    with _atomic(path) as part:
        save_file(_to_torch(weights), part, metadata={"format": "pt"})


def _to_torch(value: Any) -> Any:
    """Convert arrays in nested containers to tensors."""
    if isinstance(value, dict):
        return {key: _to_torch(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_to_torch(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.require(value, requirements=("C", "W")))
    return value


@contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    """A file next to `path` that replaces it if the block succeeds, and is deleted otherwise."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path} can't be written ({error}): choose another place") from error
    finally:
        part.unlink(missing_ok=True)
