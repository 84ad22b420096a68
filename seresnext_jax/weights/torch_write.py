"""Writes PyTorch files. Importing this module requires PyTorch."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from seresnext_jax.errors import UserError
from seresnext_jax.output import replacing
from seresnext_jax.weights.state_dict import StateDict

try:
    import torch
    from safetensors.torch import save
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
    buffer = io.BytesIO()
    torch.save(_to_torch(content), buffer)
    _write(path, buffer.getbuffer())


def write_safetensors(path: Path, weights: StateDict) -> None:
    """Write a state dict as safetensors, atomically.

    Raises:
      UserError: `path` can't be written.
    """
    _write(path, save(_to_torch(weights), metadata={"format": "pt"}))


def _to_torch(value: Any) -> Any:
    """Convert arrays in nested containers to tensors."""
    if isinstance(value, dict):
        return {key: _to_torch(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_to_torch(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.require(value, requirements=("C", "W")))
    return value


def _write(path: Path, content: bytes | memoryview) -> None:
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(
            f"{path} can't be written ({error.strerror}): choose another place"
        ) from error
