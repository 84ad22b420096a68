"""Identifies the architecture of a set of tensors, or the differences from the nearest one."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache

import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from seresnext_jax import torch_keys
from seresnext_jax.config import ModelConfig
from seresnext_jax.errors import UserError, shown
from seresnext_jax.model.network import (
    ARCHITECTURES,
    Architecture,
    ResNet,
    abstract_variables,
    make_network,
)
from seresnext_jax.weights.info import Tree

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each entry of a state dict, by its key in the current layout, without counters."""

_LISTED = 8
"""Number of differences of each kind that a message names."""
_MOST_CLASSES = 10**7
_BLOCK = re.compile(r"layers\.(\d+)\.(\d+)\.")
_OTHER_GATE = re.compile(r"\.(?:se|se_module|se_layer|attn)\.(?:fc|conv)([12])\.")


def network(architecture: str, num_classes: int) -> ResNet:
    """The float32 network of an architecture."""
    config = ModelConfig(arch=architecture, num_classes=num_classes)
    return make_network(config, jnp.dtype("float32"))


@lru_cache
def expected_shapes(architecture: str, num_classes: int) -> Shapes:
    """The shapes in an architecture's state dict, SE weights as linear."""
    return _torch_shapes(abstract_variables(network(architecture, num_classes)))


def _torch_shapes(variables: Tree) -> Shapes:
    return {
        torch_keys.torch_key(path): torch_keys.torch_shape(x.shape)
        for path, x in flatten_dict(variables).items()
    }


def identify(shapes: Shapes, *, source: str, name: Callable[[str], str] = str) -> tuple[str, int]:
    """The architecture and number of classes that have these shapes.

    Args:
      name: returns the source's name for a key, for the message.

    Raises:
      UserError: none has them; the message lists the differences from the nearest one.
    """
    arch = matching_architecture(shapes)
    if arch is None:
        raise UserError(f"{source} fits no architecture; {nearest_difference(shapes, name)}")
    return arch, _num_classes(shapes)


def matching_architecture(shapes: Shapes) -> str | None:
    """The architecture that has exactly these shapes; None: there is none."""
    num_classes = _num_classes(shapes)
    same = (a for a in _candidates(shapes) if shapes == expected_shapes(a, num_classes))
    return next(same, None)


def nearest_difference(shapes: Shapes, name: Callable[[str], str] = str) -> str:
    """A line that names the architecture nearest to these shapes, and how they differ from it."""
    num_classes = _num_classes(shapes)
    as_ours = {_as_our_gate(key): _without_ones(key, shape) for key, shape in shapes.items()}
    wanted = {arch: expected_shapes(arch, num_classes) for arch in _candidates(shapes)}
    nearest = min(wanted, key=lambda arch: _differences(as_ours, wanted[arch], name)[0])
    text = f"from {nearest} it differs by {_differences(shapes, wanted[nearest], name)[1]}"
    if as_ours.keys() == shapes.keys():
        return text
    widths = sorted({x[0] for k, x in as_ours.items() if k.endswith(".squeeze.squeeze.weight")})
    ours = ARCHITECTURES[nearest].squeeze
    return (
        "it is another network, with other names for its SE gates, which are "
        f"{', '.join(map(str, widths))} wide "
        f"({f'{ours} in every block' if ours else 'none'} in {nearest}); {text}"
    )


def _num_classes(shapes: Shapes) -> int:
    head = shapes.get("fc.bias", shapes.get("fc.weight", ()))
    return head[0] if head and 1 <= head[0] <= _MOST_CLASSES else 1000


def _candidates(shapes: Shapes) -> list[str]:
    """The architectures of the same depth, or all if there are none; the likely ones come first.

    Computing an architecture's shapes takes a second.
    """
    blocks = {found.groups() for key in shapes if (found := _BLOCK.match(key))}
    depth = Counter(stage for stage, _ in blocks)
    layers = tuple(depth[str(stage)] for stage in range(len(depth)))
    same_depth = [arch for arch, row in ARCHITECTURES.items() if row.layers == layers]
    return sorted(
        same_depth or ARCHITECTURES, key=lambda arch: not _looks_like(ARCHITECTURES[arch], shapes)
    )


def _as_our_gate(key: str) -> str:
    """Translate a key of timm's SE gates, such as ``.se.fc1.``, to this network's name."""
    return _OTHER_GATE.sub(
        lambda found: ".squeeze.squeeze." if found[1] == "1" else ".squeeze.expand.", key
    )


def _without_ones(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if _OTHER_GATE.search(key) and shape[2:] == (1, 1) else shape


def _looks_like(arch: Architecture, shapes: Shapes) -> bool:
    """Whether the first block has the width, groups and gate of this architecture."""
    width = arch.widths[0]
    outputs = width * arch.expansion if arch.block == "basic" else width
    gated = "layers.0.0.squeeze.squeeze.weight" in shapes
    conv2 = shapes.get("layers.0.0.conv2.weight")
    return conv2 == (outputs, width // arch.cardinality, 3, 3) and gated == bool(arch.squeeze)


def check_variables(variables: Tree, architecture: str, num_classes: int, *, source: str) -> None:
    """Check that variables have the shapes of an architecture.

    Raises:
      UserError: they have other shapes, or the architecture is unknown.
    """
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"{source} is of an unknown architecture, {shown(architecture)}: convert again"
        )
    try:
        found = _torch_shapes(variables)
    except ValueError as error:
        raise UserError(
            f"{source} contains more than weights ({shown(error)}): convert again"
        ) from error
    if found != (wanted := expected_shapes(architecture, num_classes)):
        raise UserError(
            f"{source} names the architecture {architecture}, but differs from it by "
            f"{_differences(found, wanted)[1]}"
        )


def _differences(
    found: Shapes, wanted: Shapes, name: Callable[[str], str] = str
) -> tuple[int, str]:
    """How many entries differ, and a line: ``2 missing (- fc.weight, - fc.bias); 1 misshaped ...``.

    The entries of each kind are in the original's order, under the source's names.
    """
    both = found.keys() & wanted.keys()
    misshaped = {key for key in both if found[key] != wanted[key]}
    kinds = {
        "unexpected": {key: f"+ {shown(name(key))}" for key in found.keys() - wanted.keys()},
        "missing": {key: f"- {shown(name(key))}" for key in wanted.keys() - found.keys()},
        "misshaped": {
            key: f"~ {shown(f'{name(key)} {found[key]} for {wanted[key]}')}" for key in misshaped
        },
    }
    parts = []
    for kind, entries in kinds.items():
        first = [entries[key] for key in sorted(entries, key=torch_keys.order)[:_LISTED]]
        more = ", ..." if len(entries) > _LISTED else ""
        parts += [f"{len(entries)} {kind} ({', '.join(first)}{more})"] if entries else []
    return sum(map(len, kinds.values())), "; ".join(parts)
