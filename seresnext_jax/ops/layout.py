"""The memory layout of a network's arrays on a device."""

from typing import Any

from jax.experimental.layout import Format, Layout
from jax.sharding import Sharding

_CUDNN_KERNEL = (3, 0, 1, 2)
"""The axes of a kernel (kh, kw, I, O) from the outermost in memory: O, kh, kw, I."""


def inference_format(x: Any, sharding: Sharding) -> Format:
    """The layout and sharding of a folded network's array, for `jax.device_put`.

    On a GPU, kernels are stored in the order that cuDNN reads, so they are not transposed in every
    call.
    """
    platforms = {str(device.platform) for device in sharding.device_set}  # type: ignore[attr-defined]
    axes = tuple(range(x.ndim))
    if platforms <= {"gpu", "cuda"} and x.ndim == 4:
        axes = _CUDNN_KERNEL
    return Format(Layout(axes), sharding)
