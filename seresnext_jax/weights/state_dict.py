"""The original's state dict ↔ the variables of the network."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from seresnext_jax import torch_keys
from seresnext_jax.errors import UserError, shown
from seresnext_jax.weights.identify import Shapes, identify
from seresnext_jax.weights.info import Array, Tree, Weights, WeightsInfo

StateDict = dict[str, Array]
Layout = Literal["ngc", "current"]


@dataclass(frozen=True)
class Spelling:
    """How a file names the entries of a state dict."""

    names: dict[str, str]
    """The key of each tensor in the current layout → its name in the file."""
    counters: tuple[str, ...]
    extras: tuple[str, ...]
    """Names of known entries that are not weights."""
    prefix: str
    layout: Layout

    def name(self, key: str) -> str:
        """The file's name for a key, even if the key is not in the file."""
        spell = torch_keys.to_ngc_layout if self.layout == "ngc" else torch_keys.to_current_layout
        return self.names.get(key) or self.prefix + spell(key)


def find_spelling(names: Iterable[str], *, source: str) -> Spelling:
    """Find out how the names of a state dict are spelled.

    Raises:
      UserError: two names mean the same entry.
    """
    names = list(names)
    shared = torch_keys.common_prefix(n for n in names if not torch_keys.is_extra(n))
    found: dict[str, str] = {}
    counters, extras = [], []
    layout: Layout = "current"
    prefixes: Counter[str] = Counter()
    for name in names:
        key = torch_keys.split_prefix(name.removeprefix(shared))[1]
        if torch_keys.is_extra(name) or torch_keys.is_extra(key):
            extras.append(name)
            continue
        prefixes[name[: len(name) - len(key)]] += 1
        if torch_keys.is_old_layout(key):
            layout, key = "ngc", torch_keys.to_current_layout(key)
        if key.endswith("." + torch_keys.COUNTER):
            counters.append(name)
            continue
        if key in found:
            raise UserError(
                f"{source} contains {shown(key)} twice, as {shown(found[key])} and {shown(name)}: "
                "remove one of them"
            )
        found[key] = name
    prefix = prefixes.most_common(1)[0][0] if prefixes else ""
    return Spelling(found, tuple(counters), tuple(extras), prefix, layout)


def plain_shapes(shapes: Mapping[str, tuple[int, ...]], spelling: Spelling | None = None) -> Shapes:
    """The shapes of a state dict by current-layout key, SE weights as linear (out, in)."""
    spelling = spelling or find_spelling(shapes, source="file")
    plain = {}
    for key, name in spelling.names.items():
        shape = shapes[name]
        is_convolution = torch_keys.is_gate_weight(key) and shape[2:] == (1, 1)
        plain[key] = shape[:2] if is_convolution else shape
    return plain


def from_state_dict(state: StateDict, *, source: str) -> Weights:
    """The weights in a state dict of any accepted spelling.

    Args:
      source: its name in messages, usually the path of its file.

    Returns:
      `Weights`: float32 copies of the tensors; those that float32 can't represent exactly also in
      their own dtype, as `exact`; and what the state dict shows: architecture, number of classes,
      layout, prefix, form of the SE weights, counters, notes on what was left out or narrowed.

    Raises:
      UserError: it fits none of the architectures (the message lists the differences from the
        nearest one), has two names for one entry, or contains NaN, infinity, or a value too large
        for float32.
    """
    spelling = find_spelling(state, source=source)
    shapes = plain_shapes({name: x.shape for name, x in state.items()}, spelling)
    architecture, num_classes = identify(shapes, source=source, name=spelling.name)
    gate_axes = {state[n].ndim for k, n in spelling.names.items() if torch_keys.is_gate_weight(k)}
    counters = [x for name in spelling.counters if (x := state[name]).shape == ()]

    flat, exact = {}, {}
    for key, name in spelling.names.items():
        array = state[name]
        check_finite(name, array, source=source)
        array = torch_keys.as_linear(array) if torch_keys.is_gate_weight(key) else array
        path = torch_keys.flax_path(key)
        with np.errstate(over="ignore"):
            narrow = array.astype(np.float32)
        if not np.isfinite(narrow).all():
            raise UserError(
                f"{source}: {shown(name)} contains numbers too large for float32, such as "
                f"{np.abs(array).max():.3g}: use other weights"
            )
        flat[path] = torch_keys.to_flax_array(narrow)
        if not _survives(array, narrow):
            exact[path] = torch_keys.to_flax_array(array)

    info = WeightsInfo(
        architecture,
        num_classes,
        layout=spelling.layout,
        prefix=spelling.prefix,
        se_weights="convolution" if 4 in gate_axes else "linear" if 2 in gate_axes else "none",
        batches_tracked=max((int(x) for x in counters if x.dtype.kind == "i"), default=None),
        notes=_notes(spelling.extras, {str(x.dtype) for x in exact.values()}, len(exact)),
    )
    return Weights(unflatten_dict(flat), info, exact)


def check_finite(name: str, array: Array, *, source: str) -> None:
    """Refuse a tensor with NaN or infinity.

    Raises:
      UserError: it contains some; the message gives its name and the number of such values.
    """
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        wrong = int(array.size - finite.sum())
        raise UserError(
            f"{source}: {shown(name)} contains NaN or infinity ({wrong} of {array.size} values), so"
            " the network can't give results: use weights from before the training diverged"
        )


def _survives(array: Array, narrow: Array) -> bool:
    """Whether float32 represents every value exactly."""
    if array.dtype.kind == "f" and array.dtype.itemsize <= 4:
        return True
    with np.errstate(invalid="ignore"):
        return bool(np.array_equal(narrow.astype(array.dtype), array))


def _notes(extras: tuple[str, ...], dtypes: set[str], narrowed: int) -> tuple[str, ...]:
    notes = []
    if extras:
        kinds = ", ".join(sorted({name.rpartition(".")[2] for name in extras}))
        one = len(extras) == 1
        are = "entry is not a weight and was" if one else "entries are not weights and were"
        notes += [f"{len(extras)} {are} ignored: {kinds}"]
    if narrowed:
        were = "tensor was" if narrowed == 1 else "tensors were"
        notes += [
            f"{narrowed} {were} narrowed from {', '.join(sorted(dtypes))} to float32, which "
            "changed values"
        ]
    return tuple(notes)


def to_state_dict(
    variables: Tree, *, layout: Layout, prefix: str = "", batches_tracked: int = 0
) -> StateDict:
    """The network's variables as a state dict of the original, with entries in its order.

    Args:
      batches_tracked: forward passes trained, for the counter of each BatchNorm.
    """
    state = {
        torch_keys.torch_key(path): torch_keys.to_torch_array(np.asarray(x))
        for path, x in flatten_dict(variables).items()
    }
    for key in [k for k in state if k.endswith(".running_var")]:
        counter = key.removesuffix("running_var") + torch_keys.COUNTER
        state[counter] = np.array(batches_tracked, np.int64)
    spell = torch_keys.to_ngc_layout if layout == "ngc" else torch_keys.to_current_layout
    return {prefix + spell(key): state[key] for key in sorted(state, key=torch_keys.order)}
