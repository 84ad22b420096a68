"""The network that is exported, with BatchNorm folded, and the logits it is checked against."""

from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from seresnext_jax.config import ModelConfig
from seresnext_jax.data.normalize import normalize
from seresnext_jax.model.network import ResNet, make_network
from seresnext_jax.training.inference import folded_forward
from seresnext_jax.training.precision import POLICIES
from seresnext_jax.weights.info import Tree, Weights

INPUT, OUTPUT = "images", "logits"
"""Names of the input (N, S, S, 3) uint8 and of the output (N, classes) float32."""
Array = np.ndarray[Any, Any]
ExportPrecision = Literal["fp32", "bf16", "fp16"]


def portable_forward(
    weights: Weights, precision: ExportPrecision
) -> tuple[jax.stages.Wrapped, Tree]:
    """Like `folded_forward`, but without the C++ kernel, which other programs do not have."""
    network = _network(weights, precision)
    portable = network.clone(options=replace(network.options, portable=True))
    return folded_forward(portable, weights.variables, precision)


def own_logits(weights: Weights, pixels: Array) -> Array:
    """The reference logits (N, K): computed in float32, with BatchNorm not folded.

    Args:
      pixels: (N, S, S, 3) uint8.
    """
    network = _network(weights, "fp32")

    @jax.jit
    def forward(variables: Tree, images: jax.Array) -> Any:
        return network.apply(variables, normalize(images), train=False)

    with jax.default_matmul_precision("highest"):
        return np.asarray(forward(weights.variables, jnp.asarray(pixels)))


def _network(weights: Weights, precision: ExportPrecision) -> ResNet:
    model = ModelConfig(arch=weights.info.architecture, num_classes=weights.info.num_classes)
    return make_network(model, POLICIES[precision].compute_dtype)
