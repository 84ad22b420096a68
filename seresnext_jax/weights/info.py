"""Weights in memory: the variables of a network, and the facts that are recorded with them."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any, Self, get_args

import numpy as np

from seresnext_jax.config import Interpolation, SizesOfWeights
from seresnext_jax.data.class_names import choose_names

Array = np.ndarray[Any, Any]
Tree = dict[str, Any]
"""Nested dictionaries of arrays."""


@dataclass(frozen=True)
class WeightsInfo:
    """The facts recorded with a set of weights; also the fields of metadata.json."""

    architecture: str
    """A name in seresnext_jax/model/network.py."""
    num_classes: int
    class_names: tuple[str, ...] | None = None
    image_size: int = 224
    """Width and height of the network's input, in pixels."""
    eval_margin: int = 32
    """Evaluation resizes the shorter side to image_size + this before the centre crop."""
    interpolation: Interpolation = "bilinear"
    """The filter of that resizing."""
    source: str = ""
    """Name of the file or folder that the weights were read from."""
    sha256: str | None = None
    """SHA-256 of the source, if it is a single file."""
    kind: str | None = None
    """Kind of the source: ``torch state dict`` or ``torch checkpoint``. This and the next four are
    None if the source is not a PyTorch file."""
    layout: str | None = None
    """Layout of the names in the source: ``ngc`` (layer1.) or ``current`` (layers.0.)."""
    prefix: str | None = None
    """Prefix of the names in the source: ``module.``, ``model.``, or ""."""
    se_weights: str | None = None
    """How the source stores the SE weights: ``linear`` (out, in), ``convolution`` (out, in, 1, 1),
    or ``none``."""
    dtype: str | None = None
    """Floating-point types in the source, usually ``float32``."""
    batches_tracked: int | None = None
    """The source's BatchNorm counter (the largest, if they differ); None: it has none."""
    ema: bool = False
    """Whether these are the moving average."""
    epoch: int | None = None
    """Epochs of training completed."""
    top1: float | None = None
    """Validation accuracy in percent."""
    table: str | None = None
    """The table of tensors in the source: ``state_dict``; ``.`` if the file is the table."""
    notes: tuple[str, ...] = ()
    """What was left out or changed when the weights were read."""
    versions: dict[str, str] = field(
        default_factory=lambda: {
            name: version(name) for name in ("jax", "flax", "numpy", "safetensors")
        }
    )
    """Versions of the packages that wrote the weights."""

    def with_class_names(self, file: str) -> Self:
        """The same facts with the class names in the file of ``--class-names``; "": unchanged.

        Raises:
          UserError: as `choose_names`.
        """
        return replace(self, class_names=choose_names(file, self.class_names, self.num_classes))


@dataclass(frozen=True)
class Weights:
    """The variables of a network and the facts recorded with them."""

    variables: Tree
    """``{"params": ..., "batch_stats": ...}``: float32 numpy arrays."""
    info: WeightsInfo
    exact: Mapping[tuple[str, ...], Array] = field(default_factory=dict)
    """By path, the tensors that float32 can't represent exactly, in the source's dtype."""


def size_note(options: SizesOfWeights, info: WeightsInfo) -> str:
    """A line on the image sizes used with weights from a PyTorch file, which does not record them.

    "" if the weights have another source or the user gave both sizes.

    Args:
      options: the sizes on the command line.
    """
    from_torch = info.kind is not None
    if not from_torch or (options.image_size and options.eval_margin >= 0):
        return ""
    used = options.resolve(info.image_size, info.eval_margin, info.interpolation)
    return (
        f"images are resized to {used.image_size + used.eval_margin} and cropped to "
        f"{used.image_size} pixels; the weights come from a PyTorch file, which does not record "
        "the size they were trained with: --data.image-size and --data.eval-margin set other sizes"
    )


def check_info(info: WeightsInfo) -> None:
    """Check the fields that the programs rely on.

    Raises:
      ValueError: a field is wrong; the message names it.
    """
    if not isinstance(info.architecture, str):
        raise ValueError(f"architecture is {info.architecture!r}")
    for name, low in (("num_classes", 1), ("image_size", 1), ("eval_margin", 0)):
        value = getattr(info, name)
        if type(value) is not int or not low <= value <= 10**7:
            raise ValueError(f"{name} is {value!r}")
    if info.interpolation not in get_args(Interpolation):
        raise ValueError(f"interpolation is {info.interpolation!r}")
    names = info.class_names
    if names is None:
        return
    if not all(isinstance(name, str) for name in names):
        raise ValueError("class_names are not all text")
    if len(names) != info.num_classes:
        raise ValueError(f"{len(names)} class_names for num_classes {info.num_classes}")


def to_json(value: Any) -> str:
    """Indented JSON; NaN and infinity, which JSON lacks, become null."""
    return json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
