"""The forward pass for inference, with BatchNorm folded into the convolutions."""

from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from seresnext_jax.config import Precision
from seresnext_jax.data.normalize import normalize
from seresnext_jax.model.fold import fold_batch_norm
from seresnext_jax.model.network import ResNet
from seresnext_jax.ops.layout import inference_format
from seresnext_jax.training.precision import POLICIES

Tree = Any


def folded_forward(
    network: ResNet, variables: Tree, precision: Precision
) -> tuple[jax.stages.Wrapped, Tree]:
    """A forward pass with BatchNorm folded, and the variables that it takes.

    Returns:
      ``forward(variables, images)``, compiled: (N, H, W, 3) uint8 → logits (N, K) float32; and the
      folded variables, on the host (`ops.layout.inference_format` says how to place them).
    """
    folded, variables = fold_batch_norm(network, variables)

    @jax.jit
    def forward(variables: Tree, images: jax.Array) -> Any:
        with jax.default_matmul_precision(POLICIES[precision].matmul_precision):
            return folded.apply(variables, normalize(images), train=False)

    return forward, variables


def place_folded(variables: Tree) -> Tree:
    """Place the variables of `folded_forward` on the first device."""
    device = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.device_put(x, inference_format(x, device)), variables)
