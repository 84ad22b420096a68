"""What the tests of conversion share: a tiny network in PyTorch, its state dict, the commands."""

from pathlib import Path
from typing import Any

import torch

from convert.__main__ import main
from seresnext_jax.model.network import ARCHITECTURES
from tests.reference import torch_model

TINY = "se-resnext-tiny"
CLASSES = 7
StateDict = dict[str, torch.Tensor]


def reference(arch: str, num_classes: int) -> torch_model.ResNet:
    """The PyTorch network of a row of this project's table."""
    return torch_model.ResNet(torch_model.Architecture(**vars(ARCHITECTURES[arch])), num_classes)


def trained_like() -> torch_model.ResNet:
    """A tiny network in which no two channels are alike, with counters of its own."""
    torch.manual_seed(0)
    made = reference(TINY, CLASSES)
    torch_model.randomize_like_trained(made, seed=0, image_size=64)
    for name, counter in made.named_buffers():
        if name.endswith("num_batches_tracked"):
            counter.fill_(1234)
    return made


def as_numpy(state: StateDict) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in state.items()}


def without_counters(state: StateDict) -> StateDict:
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


def assert_same_state(found: StateDict, wanted: StateDict) -> None:
    """Bit for bit, in order, the counters included."""
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name], tensor), name


def save_as(file: Path, state: StateDict) -> Path:
    torch.save(state, file)
    return file


def command(*words: object) -> int:
    return main([str(word) for word in words])
