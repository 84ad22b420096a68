"""Random weights, drawn on the host with NumPy, so that nothing is compiled.

`network.init` draws from the same distributions, but takes half a minute to compile on a GPU.
"""

import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from seresnext_jax.model.layers import kaiming_std, linear_bound
from seresnext_jax.model.network import ResNet, abstract_variables

Tree = Any
Path = tuple[str, ...]

_NORMALIZATION = {"scale": 1.0, "bias": 0.0, "mean": 0.0, "var": 1.0}
"""Initial values of BatchNorm's variables."""


def init_variables(network: ResNet, seed: int) -> Tree:
    """Random params and batch_stats, float32 numpy arrays.

    Each array depends only on the seed and its own path. Threads share the work because NumPy's
    generators release the interpreter's lock.
    """
    shapes = {path: x.shape for path, x in flatten_dict(abstract_variables(network)).items()}
    with ThreadPoolExecutor() as pool:
        draws = pool.map(lambda path: _draw(network, shapes, path, seed), shapes)
        return unflatten_dict(dict(zip(shapes, draws, strict=True)))


def _draw(
    network: ResNet, shapes: dict[Path, tuple[int, ...]], path: Path, seed: int
) -> np.ndarray:
    """The initial value of one variable of a convolution, a linear layer or a BatchNorm."""
    options, shape = network.options, shapes[path]
    *_, module, name = path
    generator = np.random.default_rng([seed, zlib.crc32("/".join(path).encode())])
    kernel = shapes.get((*path[:-1], "kernel"))
    if kernel is None:
        is_zero = options.last_bn_0_init and (module, name) == (options.arch.last_norm, "scale")
        return np.full(shape, 0.0 if is_zero else _NORMALIZATION[name], np.float32)
    if len(kernel) == 4:
        std = np.float32(kaiming_std(kernel, options.init_mode))
        return generator.standard_normal(shape, np.float32) * std
    bound = linear_bound(kernel[0])
    return generator.uniform(-bound, bound, shape).astype(np.float32)
