"""2-D convolution in the formulation that is fastest on each platform.

Arrays are NHWC, kernels HWIO with I = channels / groups, on every platform: the formulation never
shows in the parameters.
"""

from functools import partial
from typing import Any

import jax
from jax import lax

from seresnext_jax.ops.cpu.convolution import conv2d_on_cpu
from seresnext_jax.ops.cpu.grouped_native import compilation_problem
from seresnext_jax.ops.gpu.convolution import conv2d_on_gpu


# Jitted, so that it is traced once for all layers of a shape, not once for each layer.
@partial(jax.jit, static_argnames=("stride", "padding", "groups", "portable"))
def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    portable: bool = False,
) -> jax.Array:
    """Convolve with symmetric zero padding, as `torch.nn.functional.conv2d` does.

    Inside `jax.shard_map`, x and the kernel must vary over the same mesh axes (`mesh.vary`).

    Args:
      x: (N, H, W, C).
      kernel: (kh, kw, C / groups, O), of x's dtype.
      portable: use XLA's own operations only, so that other programs can run an exported network.

    Returns:
      (N, (H + 2 padding - kh) // stride + 1, likewise, O), of x's dtype.
    """
    options: dict[str, Any] = {"stride": stride, "padding": padding, "groups": groups}
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(conv2d_on_cpu, **options, portable=portable),
        default=partial(conv2d_on_gpu, **options),
    )


def cpu_kernel_problem() -> str:
    """Why the C++ kernel for CPUs can't be used on this machine; "" if it can."""
    return compilation_problem()
