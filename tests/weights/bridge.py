"""Carrying a PyTorch network of tests/reference over to Flax, for the parity tests."""

from typing import Any

import numpy as np
from torch import nn

from seresnext_jax.weights.state_dict import from_state_dict, to_state_dict


def to_variables(model: nn.Module) -> Any:
    """The network's variables in a model's state."""
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    return from_state_dict(state, source="model").variables


def by_torch_name(params: Any, batch_stats: Any) -> dict[str, np.ndarray]:
    """Arrays of Flax trees under the names, and in the axis order, of PyTorch."""
    state = to_state_dict({"params": params, "batch_stats": batch_stats}, layout="current")
    return {name: x for name, x in state.items() if not name.endswith("num_batches_tracked")}


def assert_close(found: Any, wanted: dict[str, Any], *, relative: float) -> None:
    """Each array's difference is at most `relative` of its counterpart, in the Euclidean norm."""
    assert found.keys() == wanted.keys()
    worst = {}
    for name, value in wanted.items():
        value = np.asarray(value)
        assert found[name].shape == value.shape, name
        worst[name] = float(np.linalg.norm(found[name] - value) / np.linalg.norm(value))
    bad = {name: error for name, error in worst.items() if not error <= relative}
    assert not bad, dict(sorted(bad.items(), key=lambda item: -item[1])[:5])
