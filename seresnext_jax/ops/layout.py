"""How the arrays of a network are stored on a device."""

from typing import Any

from jax.experimental.layout import Format, Layout
from jax.sharding import Sharding

_CUDNN_KERNEL = (3, 0, 1, 2)
"""The axes of a kernel (kh, kw, I, O) from the outermost in memory: O, kh, kw, I."""


def inference_format(x: Any, sharding: Sharding) -> Format:
    """Where an array of a folded network goes, and the order of its axes there.

    On a GPU kernels are stored as cuDNN reads them, so they are not rearranged in every call. For
    `jax.device_put`.
    """
    platforms = {str(device.platform) for device in sharding.device_set}  # type: ignore[attr-defined]
    axes = tuple(range(x.ndim))
    if platforms <= {"gpu", "cuda"} and x.ndim == 4:
        axes = _CUDNN_KERNEL
    return Format(Layout(axes), sharding)
