"""Reads everything in a torch file, for tests of what is accepted and refused."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seresnext_jax.weights.state_dict import StateDict
from seresnext_jax.weights.torch_file import TorchFile, open_torch_file


@dataclass
class Content:
    """What a torch file contains, as arrays."""

    file: TorchFile
    weights: StateDict | None
    """None: there is only a moving average."""
    ema: StateDict | None
    dtypes: tuple[str, ...]
    optimizer: dict[str, Any] | None

    def __getattr__(self, name: str) -> Any:
        """The other facts: kind, epoch, best_prec1, arch."""
        return getattr(self.file, name)


def read_torch_file(path: Path) -> Content:
    """Read and check weights, average and optimizer."""
    file = open_torch_file(path)
    table, average = file.choose_table(), file.choose_table(ema=True)
    return Content(
        file,
        None if table.is_average else file.read_table(table),
        file.read_table(average) if average.is_average else None,
        table.dtypes,
        file.optimizer,
    )
