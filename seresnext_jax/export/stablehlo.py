"""StableHLO files, serialized by `jax.export`; they need only JAX, on a CPU or an NVIDIA GPU."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from seresnext_jax.export.exported_network import Array, ExportPrecision, portable_forward
from seresnext_jax.weights.info import Weights

RUNTIME = "jax"


def serialize_stablehlo(weights: Weights, precision: ExportPrecision) -> bytes:
    """The content of a file with the network and its weights; the batch size is dynamic."""
    forward, variables = portable_forward(weights, precision)
    constants = jax.tree.map(jnp.asarray, variables)
    size = weights.info.image_size
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8)

    @jax.jit
    def classify(images: jax.Array) -> Any:
        return forward(constants, images)

    return bytes(export.export(classify, platforms=("cpu", "cuda"))(images).serialize())


def run_stablehlo(content: bytes, pixels: Array) -> Array:
    """The logits (N, K) float32 that a file's content computes on JAX's default device."""
    return np.asarray(export.deserialize(bytearray(content)).call(pixels))
