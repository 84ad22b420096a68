"""The original's state dict ↔ the variables of the network."""

from collections import Counter
from typing import Literal

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from seresnext_jax import torch_keys
from seresnext_jax.errors import UserError, shown
from seresnext_jax.weights.identify import identify
from seresnext_jax.weights.info import Array, Tree, Weights, WeightsInfo

StateDict = dict[str, Array]
Layout = Literal["ngc", "current"]


def from_state_dict(state: StateDict, *, source: str) -> Weights:
    """The weights in a state dict of any accepted spelling.

    Args:
      source: its name in messages, usually the path of its file.

    Returns:
      Float32 copies, and an info with what the state dict shows: architecture, number of classes,
      layout, prefix, form of the SE weights, counters.

    Raises:
      UserError: it is not one of the architectures; the message lists the differences from the
        nearest one.
    """
    tensors: StateDict = {}
    counters: list[int] = []
    layout: Layout = "current"
    prefixes: Counter[str] = Counter()
    gate_axes: set[int] = set()
    for name, array in state.items():
        prefix, key = torch_keys.split_prefix(name)
        prefixes[prefix] += 1
        if torch_keys.is_old_layout(key):
            layout, key = "ngc", torch_keys.to_current_layout(key)
        if key.endswith("." + torch_keys.COUNTER):
            counters += [int(array)] if array.shape == () and array.dtype.kind == "i" else []
            continue
        if torch_keys.is_gate_weight(key):
            gate_axes.add(array.ndim)
            array = torch_keys.as_linear(array)
        if key in tensors:
            raise UserError(
                f"{source} contains {shown(key)} twice, under two spellings: remove one of them"
            )
        tensors[key] = array

    shapes = {key: x.shape for key, x in tensors.items()}
    architecture, num_classes = identify(shapes, source=source)
    flat = {
        torch_keys.flax_path(key): torch_keys.to_flax_array(x.astype(np.float32))
        for key, x in tensors.items()
    }
    info = WeightsInfo(
        architecture,
        num_classes,
        layout=layout,
        prefix=prefixes.most_common(1)[0][0],
        se_weights="convolution" if 4 in gate_axes else "linear" if 2 in gate_axes else "none",
        batches_tracked=max(counters, default=None),
    )
    return Weights(unflatten_dict(flat), info)


def to_state_dict(
    variables: Tree, *, layout: Layout, prefix: str = "", batches_tracked: int = 0
) -> StateDict:
    """The original's state dict of the network's variables, entries in its order.

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
