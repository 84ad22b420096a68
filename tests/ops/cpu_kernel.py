"""What JAX remembers about the C++ kernel of grouped convolutions."""

from seresnext_jax.ops.convolution import conv2d
from seresnext_jax.ops.cpu.grouped_native import is_available


def forget_the_cpu_kernel() -> None:
    """Forget whether it is there, and every convolution that was traced with that knowledge."""
    is_available.cache_clear()
    conv2d.clear_cache()
