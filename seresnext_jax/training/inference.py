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
    """Return a forward pass with BatchNorm folded, and the variables that it takes.

    Returns:
      ``forward(variables, images)``, jitted: (N, H, W, 3) uint8 → logits (N, K) float32; and the
      folded variables, which `place_folded` puts on a device.
    """
    folded, variables = fold_batch_norm(network, variables)

    @jax.jit
    def forward(variables: Tree, images: jax.Array) -> Any:
        with jax.default_matmul_precision(POLICIES[precision].matmul_precision):
            return folded.apply(variables, normalize(images), train=False)

    return forward, variables


def place_folded(variables: Tree) -> Tree:
    """Put the variables of `folded_forward` on the first device, in its preferred layout."""
    device = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.device_put(x, inference_format(x, device)), variables)
