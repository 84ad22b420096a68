"""State dicts of the original ↔ variables of the network, and weights read from any of their homes.

Needs torch only to open a torch file.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
import numpy as np

from seresnext_jax import torch_keys
from seresnext_jax.checkpoint.store import find_checkpoint, read_arrays, read_meta
from seresnext_jax.config import ModelConfig
from seresnext_jax.errors import UserError, shown
from seresnext_jax.model.network import (
    ARCHITECTURES,
    Architecture,
    ResNet,
    abstract_variables,
    make_network,
)
from seresnext_jax.weights.folder import (
    WeightsInfo,
    check_info,
    flatten,
    load_weights,
    unflatten,
    weights_folder,
)

if TYPE_CHECKING:
    from seresnext_jax.weights.torch_file import TorchFile

Array = np.ndarray[Any, Any]
StateDict = dict[str, Array]
Tree = dict[str, Any]
Layout = Literal["ngc", "current"]
Gate = Literal["linear", "convolution", "none"]
Shapes = Mapping[str, tuple[int, ...]]

_LISTED = 8
"""Differences of each kind that a message names."""
_BLOCK = re.compile(r"layers\.(\d+)\.(\d+)\.")


@dataclass(frozen=True)
class Seen:
    """How a state dict spells what it holds."""

    architecture: str
    num_classes: int
    layout: Layout
    """``ngc`` (layer1.) or ``current`` (layers.0.)."""
    prefix: str
    """What stands before every key: ``module.``, or nothing."""
    gate: Gate
    """How the SE weights are kept: (out, in), (out, in, 1, 1), or not at all."""
    batches_tracked: int | None
    """The BatchNorms' counters, the largest if they differ; None: there are none."""


# ---- state dicts -------------------------------------------------------------------------------


def from_state_dict(state: StateDict, *, source: str) -> tuple[Tree, Seen]:
    """The network's variables (float32) in a state dict of any accepted spelling.

    Args:
      source: what messages call it, the file's path say.

    Raises:
      UserError: it is not one of the architectures; the message lists the differences from the
        nearest one.
    """
    tensors, spelling = _normalise(state, source)
    shapes = {key: x.shape for key, x in tensors.items()}
    architecture, num_classes = identify(shapes, source=source)
    seen = Seen(architecture, num_classes, *spelling)
    flat = {
        "/".join(torch_keys.flax_path(key)): torch_keys.to_flax_array(x.astype(np.float32))
        for key, x in tensors.items()
    }
    return unflatten(flat), seen


def _normalise(
    state: StateDict, source: str
) -> tuple[StateDict, tuple[Layout, str, Gate, int | None]]:
    """Current-layout names, 2-D gate weights, no counters; and how they were spelled."""
    tensors: StateDict = {}
    counters: list[int] = []
    layout: Layout = "current"
    prefixes: Counter[str] = Counter()
    gates: set[int] = set()
    for name, array in state.items():
        prefix, key = torch_keys.split_prefix(name)
        prefixes[prefix] += 1
        if torch_keys.is_old_layout(key):
            layout, key = "ngc", torch_keys.to_current_layout(key)
        if key.endswith("." + torch_keys.COUNTER):
            counters += [int(array)] if array.shape == () and array.dtype.kind == "i" else []
            continue
        if torch_keys.is_gate_weight(key):
            gates.add(array.ndim)
            array = torch_keys.as_linear(array)
        if key in tensors:
            raise UserError(
                f"{source} holds {shown(key)} twice, under two spellings: remove one of them"
            )
        tensors[key] = array
    gate: Gate = "convolution" if 4 in gates else "linear" if 2 in gates else "none"
    prefix = prefixes.most_common(1)[0][0]
    return tensors, (layout, prefix, gate, max(counters, default=None))


def to_state_dict(
    variables: Tree, *, layout: Layout, prefix: str = "", batches_tracked: int = 0
) -> StateDict:
    """The original's state dict of the network's variables, entries in its order.

    Args:
      batches_tracked: forward passes trained, for the counter that stands in each BatchNorm.
    """
    state = {
        torch_keys.torch_key(tuple(path.split("/"))): torch_keys.to_torch_array(np.asarray(x))
        for path, x in flatten(variables).items()
    }
    for key in [k for k in state if k.endswith(".running_var")]:
        counter = key.removesuffix("running_var") + torch_keys.COUNTER
        state[counter] = np.array(batches_tracked, np.int64)
    spell = torch_keys.to_ngc_layout if layout == "ngc" else torch_keys.to_current_layout
    return {prefix + spell(key): state[key] for key in sorted(state, key=torch_keys.order)}


# ---- architectures -----------------------------------------------------------------------------


def network(architecture: str, num_classes: int) -> ResNet:
    """The float32 network of an architecture."""
    config = ModelConfig(arch=architecture, num_classes=num_classes)
    return make_network(config, jnp.dtype("float32"))


@lru_cache
def expected_shapes(architecture: str, num_classes: int) -> Shapes:
    """The shape of every entry of an architecture's state dict but the counters."""
    return torch_shapes(abstract_variables(network(architecture, num_classes)))


def torch_shapes(variables: Tree) -> Shapes:
    """The shapes that variables have in a current-layout state dict."""
    return {
        torch_keys.torch_key(tuple(path.split("/"))): torch_keys.torch_shape(x.shape)
        for path, x in flatten(variables).items()
    }


def identify(shapes: Shapes, *, source: str) -> tuple[str, int]:
    """The architecture and number of classes that current-layout shapes belong to.

    Raises:
      UserError: to none; the message lists the differences from the nearest one.
    """
    head = shapes.get("fc.bias", shapes.get("fc.weight", (1000,)))
    num_classes = head[0] if head else 1000
    blocks = {found.groups() for key in shapes if (found := _BLOCK.match(key))}
    depth = Counter(stage for stage, _ in blocks)
    layers = tuple(depth[str(stage)] for stage in range(len(depth)))
    same_depth = [name for name, arch in ARCHITECTURES.items() if arch.layers == layers]
    # The likely ones first: to find an architecture's shapes takes a second.
    candidates = sorted(
        same_depth or ARCHITECTURES, key=lambda name: not _looks_like(ARCHITECTURES[name], shapes)
    )
    for name in candidates:
        if shapes == expected_shapes(name, num_classes):
            return name, num_classes
    differences = {n: difference(shapes, expected_shapes(n, num_classes)) for n in candidates}
    nearest = min(differences, key=lambda name: sum(map(len, differences[name])))
    raise UserError(
        f"{source} fits no architecture; from {nearest} it differs by "
        f"{describe(differences[nearest])}"
    )


def _looks_like(arch: Architecture, shapes: Shapes) -> bool:
    """Whether the first block has this architecture's width, groups and gate."""
    width = arch.widths[0]
    outputs = width * arch.expansion if arch.block == "basic" else width
    gated = "layers.0.0.squeeze.squeeze.weight" in shapes
    conv2 = shapes.get("layers.0.0.conv2.weight")
    return conv2 == (outputs, width // arch.cardinality, 3, 3) and gated == bool(arch.squeeze)


def difference(found: Shapes, wanted: Shapes) -> tuple[list[str], list[str], list[str]]:
    """What is unexpected, missing and misshaped, each sorted in the original's order."""
    unexpected = sorted(found.keys() - wanted.keys(), key=torch_keys.order)
    missing = sorted(wanted.keys() - found.keys(), key=torch_keys.order)
    misshaped = [
        f"{key} {found[key]} for {wanted[key]}"
        for key in sorted(found.keys() & wanted.keys(), key=torch_keys.order)
        if found[key] != wanted[key]
    ]
    return unexpected, missing, misshaped


def describe(differences: tuple[list[str], list[str], list[str]]) -> str:
    """A difference as one line: ``2 missing (- fc.weight, - fc.bias); 1 misshaped (~ ...)``."""
    parts = []
    kinds = (("unexpected", "+"), ("missing", "-"), ("misshaped", "~"))
    for (kind, sign), found in zip(kinds, differences, strict=True):
        listed = ", ".join(f"{sign} {shown(entry)}" for entry in found[:_LISTED])
        more = ", ..." if len(found) > _LISTED else ""
        parts += [f"{len(found)} {kind} ({listed}{more})"] if found else []
    return "; ".join(parts)


# ---- any source --------------------------------------------------------------------------------


def read_weights(path: Path | str, *, ema: bool = False) -> tuple[Tree, WeightsInfo]:
    """Read weights from a weights folder, a checkpoint or a torch file.

    Args:
      path: a folder of `save_weights`, anything `find_checkpoint` understands, or a
        file that `torch_file.read` does.
      ema: the moving average instead of the weights. Where there is nothing else, it is taken
        without asking, and the result says so.

    Returns:
      ``{"params": ..., "batch_stats": ...}`` as float32 numpy arrays, and what is known of them.

    Raises:
      UserError: nothing there, damaged, of no known architecture, or without a moving average.
    """
    path = Path(path)
    found = find_weights(path)
    if found.is_file():
        return from_torch_file(open_torch_file(found), path, ema=ema)
    if weights_folder(found):
        variables, info = load_weights(found)
        if ema and not info.ema:
            raise UserError(f"{path} holds no moving average: leave --ema out")
        _check_variables(variables, info, path)
        return variables, info
    return _from_checkpoint(found, ema=ema)


def find_weights(path: Path) -> Path:
    """The weights folder, checkpoint or torch file that `path` means.

    Raises:
      UserError: there is none.
    """
    if found := weights_folder(path) or find_checkpoint(path):
        return found
    if not path.is_file():
        raise UserError(f"{path} holds neither weights nor a checkpoint: check the path")
    return path


def _check_variables(variables: Tree, info: WeightsInfo, path: Path) -> None:
    """Hold the arrays of a weights folder against the architecture it names."""
    if info.architecture not in ARCHITECTURES:
        raise UserError(
            f"{path} is of an unknown architecture, {shown(info.architecture)}: convert again"
        )
    try:
        found = torch_shapes(variables)
    except ValueError as error:
        raise UserError(
            f"{path} holds other things than weights ({shown(error)}): convert again"
        ) from error
    if found != (wanted := expected_shapes(info.architecture, info.num_classes)):
        raise UserError(
            f"{path} does not hold the {info.architecture} it names; it differs by "
            f"{describe(difference(found, wanted))}"
        )


def _from_checkpoint(folder: Path, *, ema: bool) -> tuple[Tree, WeightsInfo]:
    weights, meta = read_arrays(folder, "weights"), read_meta(folder)
    if ema and "ema" not in weights:
        raise UserError(f"{folder} holds no moving average: leave --ema out")
    variables = weights["ema"] if ema else weights
    info = WeightsInfo(
        architecture=meta.config.model.arch,
        num_classes=meta.config.model.num_classes,
        class_names=meta.class_names or None,
        image_size=meta.config.data.image_size,
        eval_margin=meta.config.data.eval_margin,
        source=folder.name,
        ema=ema,
        epoch=meta.epoch,
        top1=meta.top1,
    )
    try:
        check_info(info)
    except ValueError as error:
        raise UserError(
            f"checkpoint {folder} has a meta of another kind ({shown(error)}): choose another one"
        ) from error
    return {name: variables[name] for name in ("params", "batch_stats")}, info


def is_torch_file(path: Path) -> bool:
    """Whether `read_weights` takes `path` for a torch file."""
    return path.is_file() and not weights_folder(path)


def open_torch_file(path: Path) -> "TorchFile":
    """`torch_file.read`; see `torch_io`."""
    file: TorchFile = torch_io().read(path)
    return file


def torch_io() -> ModuleType:
    """The module convert.torch_file, loaded where it is needed.

    Raises:
      UserError: torch is not installed.
    """
    try:
        from seresnext_jax.weights import torch_file
    except ModuleNotFoundError as error:
        raise UserError(
            "torch files need PyTorch, which is missing: pip install 'torch>=2.10'"
        ) from error
    return torch_file


def from_torch_file(file: "TorchFile", path: Path, *, ema: bool) -> tuple[Tree, WeightsInfo]:
    """The variables in a torch file, and what is known of them.

    Raises:
      UserError: no known architecture, or not the kind of weights that was asked for.
    """
    if ema and file.ema is None:
        raise UserError(f"{path} holds no moving average: leave --ema out")
    ema = ema or file.weights is None
    variables, seen = from_state_dict(file.state(ema=ema), source=str(path))
    info = WeightsInfo(
        architecture=seen.architecture,
        num_classes=seen.num_classes,
        source=path.name,
        sha256=_sha256(path),
        kind=f"torch {file.kind}",
        layout=seen.layout,
        prefix=seen.prefix,
        se_weights=seen.gate,
        dtype=", ".join(file.dtypes),
        batches_tracked=seen.batches_tracked,
        ema=ema,
        epoch=file.epoch,
    )
    return variables, info


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
