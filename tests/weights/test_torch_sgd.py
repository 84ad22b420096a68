"""The state of PyTorch's optimizer in a file: what differs from a config, and what is refused."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from seresnext_jax.errors import UserError
from seresnext_jax.weights import training_state as training
from seresnext_jax.weights.state_dict import from_state_dict
from seresnext_jax.weights.torch_sgd import momentum_from_torch
from tests.weights.conversion import as_numpy
from tests.weights.test_training_state import CONFIG, numpy_optimizer, trained

GROUP = {"lr": 0.1, "momentum": 0.875, "dampening": 0, "nesterov": False, "params": []}


@pytest.mark.parametrize(
    ("decays", "mask", "more", "notes"),
    [
        ([0, 0.01], "nvidia-names", {}, []),
        ([0.01], "all", {}, []),
        ([0.01], "no-bn", {}, ["the file decays every BatchNorm, the config no BatchNorm: add"]),
        ([0, 0], "no-bn", {}, ["the file has weight_decay 0, the config 0.01: add"]),
        ([0.02, 0.01], "all", {}, ["the file decays its groups by [0.02, 0.01], the config has"]),
        ([0, 0.01], "nvidia-names", {"dampening": 0.1}, ["the file's dampening is left out"]),
    ],
)
def test_differences_from_the_files_optimizer(
    decays: list[float], mask: Any, more: dict[str, Any], notes: list[str]
) -> None:
    groups = [GROUP | {"weight_decay": decay} for decay in decays]
    groups[-1] |= more
    found = training.differences(groups, replace(CONFIG.optim, decay_mask=mask), lr=None)
    assert len(found) == len(notes)
    assert all(line.startswith(note) for line, note in zip(found, notes, strict=True))


def test_optimizers_that_are_not_the_originals() -> None:
    model, optimizer = trained("nvidia-names")
    weights = from_state_dict(as_numpy(model.state_dict()), source="reference")
    params = weights.variables["params"]

    def refusal(change: Callable[[dict[str, Any]], Any]) -> str:
        state = copy.deepcopy(numpy_optimizer(optimizer))
        change(state)
        with pytest.raises(UserError, match=": convert the weights only$") as caught:
            momentum_from_torch(state, params, source="file")
        return str(caught.value)

    # RMSprop with momentum has momentum buffers, too.
    assert "of an optimizer other than SGD" in refusal(
        lambda s: s["state"][0].update(square_avg=np.zeros(3), step=1)
    )
    assert "not those of SGD" in refusal(lambda s: s["param_groups"][0].pop("nesterov"))
    assert "not those of SGD" in refusal(lambda s: s["param_groups"][0].update(params=None))
    assert "not those of SGD" in refusal(lambda s: s["param_groups"][1].update(lr="fast"))
    assert "not those of SGD" in refusal(lambda s: s.update(param_groups=3))
    assert "an optimizer other than" in refusal(lambda s: s.update(state=[]))
    assert "lacks the momentum of 1 tensors (first: bn1.weight)" in refusal(
        lambda s: s["state"].pop(0)
    )
    for buffer, why in (
        ("x", "no tensor as the momentum of bn1.weight"),
        (np.full(64, np.nan), "NaN or infinity in the momentum of bn1.weight"),
        (np.zeros(3), r"a momentum of shape (3,) for bn1.weight"),
    ):
        assert why in refusal(lambda s, x=buffer: s["state"][0].update(momentum_buffer=x))
    assert "not those of SGD" in refusal(lambda s: s["param_groups"][0]["params"].append("x"))


def test_without_momentum_there_are_no_buffers() -> None:
    model, optimizer = trained("nvidia-names")
    params = from_state_dict(as_numpy(model.state_dict()), source="reference").variables["params"]
    state = numpy_optimizer(optimizer)
    for group in state["param_groups"]:
        group["momentum"] = 0
    momentum = momentum_from_torch({**state, "state": {}}, params, source="file")
    assert not any(x.any() for x in jax.tree.leaves(momentum))
