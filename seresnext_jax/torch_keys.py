"""Maps names and axis orders between the original's state dict and this network's variables.

The path ``("params", "layers", "0", "2", "conv1", "kernel")`` of a variable corresponds to the key
``layers.0.2.conv1.weight``. NVIDIA: image_classification/models/resnet.py.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

Path = tuple[str, ...]
Array = np.ndarray[Any, Any]

PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel and torch.compile put before every key."""
COUNTER = "num_batches_tracked"
"""BatchNorm's step counter in the original's state dict; not used here."""

_EXTRAS = {"total_ops", "total_params", "n_averaged"}
"""Entries that profilers and torch's `AveragedModel` add to a state dict."""
_LOSS = re.compile(r"(?:\w*_)?(?:criterion|loss)(?:_\w*)?\.", re.IGNORECASE)
_START = re.compile(r"(?:^|\.)(?=layers\.\d+\.\d+\.|layer\d+\.\d+\.|conv1\.|bn1\.|fc\.)")
"""Where the network's own names start in a key."""

_BATCH_NORM = re.compile(r"bn\d+")
_STATISTICS = {"mean": "running_mean", "var": "running_var"}
_OLD_STAGE = re.compile(r"layer(\d{1,9})\.")
_NEW_STAGE = re.compile(r"layers\.(\d{1,9})\.")
_NUMBER = re.compile(r"\d{1,9}")

_ORDER = (
    # A module's children, then its own entries, as the original registers them.
    "conv1 bn1 conv2 bn2 conv3 bn3 layers fc downsample squeeze expand "
    f"weight bias running_mean running_var {COUNTER}"
).split()
_RANK = {name: i for i, name in enumerate(_ORDER)}


# ---- names -------------------------------------------------------------------------------------


def torch_key(path: Path) -> str:
    """The current-layout key for the path of a variable.

    Raises:
      ValueError: `path` does not start with ``params`` or ``batch_stats``, or its last name is
        unknown.
    """
    collection, *modules, leaf = path
    if collection == "batch_stats" and leaf in _STATISTICS:
        return ".".join((*modules, _STATISTICS[leaf]))
    if collection == "params" and leaf in ("kernel", "scale"):
        return ".".join((*modules, "weight"))
    if collection == "params" and leaf == "bias":
        return ".".join((*modules, "bias"))
    raise ValueError(f"{'/'.join(path)} is not a variable of the network")


def flax_path(key: str) -> Path:
    """The path of the variable for a current-layout key; the inverse of `torch_key`.

    Raises:
      ValueError: the last part of `key` is not one of weight, bias, running_mean, running_var.
    """
    *modules, leaf = key.split(".")
    for name, torch_name in _STATISTICS.items():
        if leaf == torch_name:
            return ("batch_stats", *modules, name)
    if leaf == "weight":
        return ("params", *modules, "scale" if _is_batch_norm(modules) else "kernel")
    if leaf == "bias":
        return ("params", *modules, "bias")
    raise ValueError(f"{key} is not an entry of the original's state dict")


def _is_batch_norm(modules: list[str]) -> bool:
    if not modules:
        return False
    return bool(_BATCH_NORM.fullmatch(modules[-1])) or modules[-2:] == ["downsample", "1"]


def split_prefix(key: str) -> tuple[str, str]:
    """Split a key into its wrapper prefix, such as ``module._orig_mod.`` or "", and the rest."""
    rest = key
    while rest.startswith(PREFIXES):
        rest = rest.partition(".")[2]
    return key[: len(key) - len(rest)], rest


def common_prefix(keys: Iterable[str]) -> str:
    """The prefix of more than half of the keys, such as ``net.backbone.``; "" if there is none."""
    names = list(keys)
    prefixes = Counter(key[: found.end()] for key in names if (found := _START.search(key)))
    prefix, count = prefixes.most_common(1)[0] if prefixes else ("", 0)
    return prefix if 2 * count > len(names) else ""


def is_extra(key: str) -> bool:
    """Whether a key belongs to a profiler, a weight averager or a loss, not to the network."""
    return key.rpartition(".")[2] in _EXTRAS or bool(_LOSS.match(key))


def is_old_layout(key: str) -> bool:
    """Whether a key without prefix names a stage as the NGC files do, ``layer1.``."""
    return bool(_OLD_STAGE.match(key))


def to_current_layout(key: str) -> str:
    """``layer1.`` → ``layers.0.`` at the front of a key; any other key is unchanged."""
    match = _OLD_STAGE.match(key)
    return f"layers.{int(match[1]) - 1}.{key[match.end() :]}" if match else key


def to_ngc_layout(key: str) -> str:
    """``layers.0.`` → ``layer1.`` at the front of a key; any other key is unchanged."""
    match = _NEW_STAGE.match(key)
    return f"layer{int(match[1]) + 1}.{key[match.end() :]}" if match else key


def order(key: str) -> tuple[tuple[int, str], ...]:
    """Sort key that puts current-layout keys in the order of the original's state dict."""
    return tuple(
        (int(part), "") if _NUMBER.fullmatch(part) else (_RANK.get(part, len(_RANK)), part)
        for part in key.split(".")
    )


# ---- arrays ------------------------------------------------------------------------------------


def to_torch_array(array: Array) -> Array:
    """HWIO → OIHW, (in, out) → (out, in), a vector unchanged. I is input channels / groups."""
    if array.ndim == 4:
        return np.ascontiguousarray(array.transpose(3, 2, 0, 1))
    return np.ascontiguousarray(array.T)


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that `to_torch_array` gives an array of `shape`."""
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


def to_flax_array(array: Array) -> Array:
    """OIHW → HWIO, (out, in) → (in, out), a vector unchanged."""
    if array.ndim == 4:
        return np.ascontiguousarray(array.transpose(2, 3, 1, 0))
    return np.ascontiguousarray(array.T)


def is_gate_weight(key: str) -> bool:
    """Whether `key` is an SE gate's weight, which files store as linear or as a 1×1 convolution."""
    return key.endswith((".squeeze.squeeze.weight", ".squeeze.expand.weight"))


def as_linear(array: Array) -> Array:
    """(out, in, 1, 1) → (out, in); any other array is unchanged."""
    return array[:, :, 0, 0] if array.ndim == 4 and array.shape[2:] == (1, 1) else array
