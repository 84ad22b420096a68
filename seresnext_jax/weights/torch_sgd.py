"""The state dict of a `torch.optim.SGD` ↔ the momentum of each parameter."""

from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from seresnext_jax import torch_keys
from seresnext_jax.config import OptimConfig
from seresnext_jax.errors import UserError
from seresnext_jax.weights.info import Tree


def parameter_groups(params: Tree, *, single: bool) -> list[list[str]]:
    """The torch names of each parameter group of the original's optimizer, in its order.

    Group 0 has no weight decay: the names that contain "bn". Group 1 is the rest.
    NVIDIA: image_classification/optimizers.py, get_sgd_optimizer.

    Args:
      single: all parameters in one group, as with ``--bn-weight-decay``.
    """
    keys = sorted(
        (torch_keys.torch_key(("params", *path)) for path in flatten_dict(params)),
        key=torch_keys.order,
    )
    if single:
        return [keys]
    return [[k for k in keys if "bn" in k], [k for k in keys if "bn" not in k]]


def momentum_from_torch(
    optimizer: dict[str, Any], params: Tree, *, source: str, before_training: bool = False
) -> Tree:
    """The momentum of each parameter, float32.

    It is zero where the file has none: before the first step, or if its group has momentum 0.

    Args:
      optimizer: the state dict of a `torch.optim.SGD`, arrays for tensors.
      params: the parameters of the same network.
      before_training: the file was written before the first step.

    Raises:
      UserError: it is another optimizer, or its groups, buffers or shapes differ from the
        original's.
    """

    def refuse(what: str) -> UserError:
        return UserError(f"{source} {what}: convert the weights only")

    param_groups = sgd_groups(optimizer, source=source)
    sizes = [len(group["params"]) for group in param_groups]
    groups = parameter_groups(params, single=len(sizes) == 1)
    if sizes != [len(group) for group in groups]:
        wanted = [len(group) for group in groups]
        raise refuse(f"has optimizer groups of {sizes} tensors, not the original's {wanted}")
    momentum = {path: np.zeros(x.shape, np.float32) for path, x in flatten_dict(params).items()}
    missing = []
    for group, keys in zip(param_groups, groups, strict=True):
        for identity, key in zip(group["params"], keys, strict=True):
            buffer = optimizer["state"].get(identity, {}).get("momentum_buffer")
            if buffer is None:
                missing += [key] if group["momentum"] else []
                continue
            if not isinstance(buffer, np.ndarray):
                raise refuse(f"has no tensor as the momentum of {key}")
            path = torch_keys.flax_path(key)[1:]
            # A momentum has the axes of its parameter, also for the gates' weights.
            array = torch_keys.as_linear(buffer) if torch_keys.is_gate_weight(key) else buffer
            array = torch_keys.to_flax_array(array.astype(np.float32))
            if not np.isfinite(array).all():
                raise refuse(f"has NaN or infinity in the momentum of {key}")
            if array.shape != momentum[path].shape:
                raise refuse(f"has a momentum of shape {buffer.shape} for {key}")
            momentum[path] = array
    if missing and not before_training:
        raise refuse(f"lacks the momentum of {len(missing)} tensors (first: {missing[0]})")
    return dict(unflatten_dict(momentum))


def sgd_groups(optimizer: dict[str, Any], *, source: str) -> list[dict[str, Any]]:
    """The parameter groups of a `torch.optim.SGD`'s state dict, checked.

    Raises:
      UserError: they or the state are malformed or belong to another optimizer.
    """
    states, groups = optimizer["state"], optimizer["param_groups"]
    entries = list(states.values()) if isinstance(states, dict) else [None]
    if not all(isinstance(entry, dict) and set(entry) <= {"momentum_buffer"} for entry in entries):
        raise UserError(
            f"{source} is the state of an optimizer other than SGD: convert the weights only"
        )
    if not isinstance(groups, list) or not all(_is_sgd_group(group) for group in groups):
        raise UserError(
            f"{source} has optimizer groups that are not those of SGD: convert the weights only"
        )
    return groups


def _is_sgd_group(group: Any) -> bool:
    numbers = ("lr", "momentum", "dampening", "weight_decay", "nesterov")
    return (
        isinstance(group, dict)
        and all(isinstance(group.get(name), int | float) for name in numbers)
        and isinstance(group.get("params"), list)
        and all(isinstance(identity, int) for identity in group["params"])
    )


def momentum_to_torch(momentum: Tree, config: OptimConfig, *, lr: float) -> dict[str, Any]:
    """The state dict of the original's `torch.optim.SGD`, arrays for tensors.

    Args:
      lr: the learning rate of the last step.
    """
    arrays = {
        torch_keys.torch_key(("params", *path)): torch_keys.to_torch_array(np.asarray(x))
        for path, x in flatten_dict(momentum).items()
    }
    groups = parameter_groups(momentum, single=config.decay_mask == "all")
    decays = [config.weight_decay] if len(groups) == 1 else [0.0, config.weight_decay]
    keys = [key for group in groups for key in group]
    identity = {key: i for i, key in enumerate(keys)}
    return {
        "state": {identity[key]: {"momentum_buffer": arrays[key]} for key in keys},
        "param_groups": [
            {
                "lr": lr,
                "momentum": config.momentum,
                "dampening": 0,
                "weight_decay": decay,
                "nesterov": config.nesterov,
                "params": [identity[key] for key in group],
            }
            for group, decay in zip(groups, decays, strict=True)
        ],
    }
