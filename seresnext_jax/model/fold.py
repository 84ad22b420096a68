"""BatchNorm folded into the convolutions before it: a faster network for inference.

In evaluation BatchNorm is ``slope · x + offset`` with constants. The slope goes into the kernel.
The offset stays as a bias, which a GPU adds, with the ReLU, inside the convolution.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from seresnext_jax.model.layers import BatchNorm
from seresnext_jax.model.network import ResNet

Tree = Any
Path = tuple[str, ...]


def fold_batch_norm(network: ResNet, variables: Tree) -> tuple[ResNet, Tree]:
    """Return a network without BatchNorm, and its variables; the logits are equal up to rounding.

    The convolutions' kernels and biases are rounded to the network's dtype here, once. The folded
    network can't be trained.
    """
    params, stats = flatten_dict(variables["params"]), flatten_dict(variables["batch_stats"])
    folded = dict(params)
    for *norm, name in stats:
        if name != "mean":
            continue
        scale, bias = folded.pop((*norm, "scale")), params[(*norm, "bias")]
        mean, var = stats[(*norm, "mean")], stats[(*norm, "var")]
        slope = scale / np.sqrt(var + BatchNorm.epsilon)
        kernel = (*_convolution_before(norm), "kernel")
        folded[kernel] = (params[kernel] * slope).astype(network.dtype)
        folded[(*norm, "bias")] = (bias - mean * slope).astype(network.dtype)
    options = replace(network.options, folded=True)
    return network.clone(options=options), {"params": unflatten_dict(folded)}


def _convolution_before(norm: list[str]) -> Path:
    """The path of the convolution: ``bn2`` → ``conv2``; in a sequence of layers, ``1`` → ``0``."""
    *parents, name = norm
    return (*parents, str(int(name) - 1) if name.isdecimal() else name.replace("bn", "conv"))
