"""Max pooling for NVIDIA GPUs; the forward pass records which pixel of each window won.

XLA's gradient of a window reduction is three kernels that read and write padded copies of the
input. With the position of each maximum kept as one byte, it is one gather that does not read the
input.
"""

import jax
import jax.numpy as jnp
from jax import lax

_CENTRE, _OUTSIDE = 4, 255
"""A position in a window is 3 · row + column; `_OUTSIDE` is the position of no pixel."""


@jax.custom_vjp
def max_pool_on_gpu(x: jax.Array) -> jax.Array:
    """`ops.pooling.max_pool` for NVIDIA GPUs."""
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)


def _forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, tuple[int, ...]]]:
    best, place = _best_and_place(x)
    return best, (place, x.shape[1:3])


def _best_and_place(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The maxima (N, ⌈H/2⌉, ⌈W/2⌉, C), and the uint8 position of each in its window.

    Of equal values the first one wins, and a NaN wins over any number, as in torch.
    """
    n, h, w, c = x.shape
    out_h, out_w = (h + 1) // 2, (w + 1) // 2
    padded = jnp.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)), constant_values=-jnp.inf)
    best = jnp.full((n, out_h, out_w, c), -jnp.inf, x.dtype)
    place = jnp.full(best.shape, _CENTRE, jnp.uint8)
    for candidate in range(9):
        top, left = divmod(candidate, 3)
        value = padded[:, top : top + 2 * out_h : 2, left : left + 2 * out_w : 2]
        wins = (value > best) | jnp.isnan(value)
        best, place = jnp.where(wins, value, best), jnp.where(wins, jnp.uint8(candidate), place)
    return best, place


def _backward(saved: tuple[jax.Array, tuple[int, ...]], gradient: jax.Array) -> tuple[jax.Array]:
    """Each pixel takes the gradient of the windows that it won.

    Row 2i is the middle row of window i. Row 2i + 1 is the last row of window i and the first of
    window i + 1. Columns are alike.
    """
    place, (h, w) = saved
    row = lax.broadcasted_iota(jnp.int32, (1, h, 1, 1), 1)
    column = lax.broadcasted_iota(jnp.int32, (1, 1, w, 1), 2)
    total = jnp.zeros((), gradient.dtype)
    for next_h in (0, 1):
        for next_w in (0, 1):
            own_h, own_w = _own_place(row, next_h), _own_place(column, next_w)
            won = _at_pixels(place, next_h, next_w, h, w, fill=_OUTSIDE) == 3 * own_h + own_w
            total += jnp.where(won, _at_pixels(gradient, next_h, next_w, h, w, fill=0), 0)
    return (total,)


def _own_place(index: jax.Array, is_next: int) -> jax.Array:
    """A row's position in its window or, if `is_next`, in the next (even rows: `_OUTSIDE`)."""
    if not is_next:
        return 1 + index % 2
    return jnp.where(index % 2 == 1, 0, _OUTSIDE)


def _at_pixels(x: jax.Array, next_h: int, next_w: int, h: int, w: int, *, fill: int) -> jax.Array:
    """Each pixel's value from its window or the next: (N, ⌈H/2⌉, ⌈W/2⌉, C) → (N, H, W, C)."""
    x = jnp.pad(x, ((0, 0), (0, next_h), (0, next_w), (0, 0)), constant_values=fill)
    x = x[:, next_h:, next_w:]
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)[:, :h, :w]


max_pool_on_gpu.defvjp(_forward, _backward)
