"""AutoAugment, RandAugment and random erasing, on the device: the same for every input backend.

One image gets one operation at a time, but a device works on all images at once. So each operation
is a row of parameters (policies.py), and every image goes through the same few stages, one of which
changes it. The draws depend on the seed, the step, and the image's position in the step.
"""

import jax
import jax.numpy as jnp
import numpy as np

from seresnext_jax.config import DataConfig
from seresnext_jax.training.policies import (
    AUTOCONTRAST,
    EQUALIZE,
    LUT,
    Operations,
    Policy,
    auto_augment,
    rand_augment,
)

_FILL = 128
"""The grey level that replaces pixels from outside the image."""
_ERASED_AREA, _ERASED_RATIO, _ATTEMPTS = (0.02, 1 / 3), (0.3, 3.3), 10
"""Random erasing: area as a share of the image, height / width, attempts at a box that fits."""


# ---- choosing ----------------------------------------------------------------------------------


def augment(keys: jax.Array, images: jax.Array, config: DataConfig) -> jax.Array:
    """Apply the policy of `config.augmentation`, if there is one.

    Args:
      keys: (N,) one key for each image.
      images: (N, S, S, 3) uint8.

    Returns:
      Images of the same shape and type.
    """
    if config.augmentation == "none":
        return images
    size = images.shape[1]
    policy = auto_augment()
    if config.augmentation == "randaugment":
        policy = rand_augment(config.randaugment_num_ops, config.randaugment_magnitude, size)
    operations = policy.operations(size)
    rows = jax.vmap(lambda key: draw_rows(key, policy))(keys)
    for number in range(rows.shape[1]):
        images = apply_operations(images, operations, rows[:, number])
    return images


def draw_rows(key: jax.Array, policy: Policy) -> jax.Array:
    """Draw the row of `Policy.operations` for each round of one image: (rounds,) int32; 0: none."""
    rounds, candidates = policy.probabilities.shape
    index_key, apply_key, sign_key = jax.random.split(key, 3)
    index = jax.random.randint(index_key, (1 if policy.together else rounds,), 0, candidates)
    each = jnp.arange(rounds), jnp.broadcast_to(index, (rounds,))
    applied = jax.random.uniform(apply_key, (rounds,)) < jnp.asarray(policy.probabilities)[each]
    negative = jax.random.bernoulli(sign_key, shape=(rounds,))
    return jnp.where(applied, jnp.asarray(policy.first_rows)[each] + negative, 0)


# ---- applying ----------------------------------------------------------------------------------


def apply_operations(images: jax.Array, table: Operations, rows: jax.Array) -> jax.Array:
    """Apply one operation to each image.

    Args:
      images: (N, S, S, 3) uint8.
      table: operations for this size.
      rows: (N,) int32, the row of the table for each image.

    Returns:
      Images of the same shape and type.
    """
    row = Operations(*(jnp.asarray(part)[rows] for part in table))
    x = images.astype(jnp.int32)
    x = _shear(_nearest(x, row), row)
    x = _change_levels(x, table, row)
    if np.any(table.color != 1):
        x = _blend(_luma(x)[..., None], x, row.color)
    if np.any(table.sharpness != 1):
        x = _blend(_smooth(x), x, row.sharpness)
    return x.astype(jnp.uint8)


def _nearest(x: jax.Array, row: Operations) -> jax.Array:
    """Apply the affine map, with nearest-pixel sampling; here and below x is (N, S, S, 3) int32."""
    size = x.shape[1]
    a, b, c, d, e, f = (row.affine[:, i, None, None] for i in range(6))
    column, line = jnp.arange(size)[None, None, :], jnp.arange(size)[None, :, None]
    from_x, from_y = (a * column + b * line + c) >> 16, (d * column + e * line + f) >> 16
    inside = (from_x >= 0) & (from_x < size) & (from_y >= 0) & (from_y < size)
    number = jnp.arange(x.shape[0])[:, None, None]
    found = x[number, jnp.clip(from_y, 0, size - 1), jnp.clip(from_x, 0, size - 1)]
    return jnp.where(inside[..., None], found, _FILL)


def _shear(x: jax.Array, row: Operations) -> jax.Array:
    """Shift each row or column by a non-integer number of pixels, with Pillow's bicubic weights."""
    size = x.shape[1]
    turn = row.vertical[:, None, None, None]
    x = jnp.where(turn, x.swapaxes(1, 2), x)
    start = jnp.arange(size) + row.shift[:, :, None]  # (N, line, column)

    def pixel(offset: int) -> jax.Array:
        index = jnp.clip(start + offset, 0, size - 1)[..., None]
        return jnp.take_along_axis(x, index, axis=2).astype(jnp.float32)

    v1, v2, v3, v4 = (pixel(offset) for offset in (-1, 0, 1, 2))
    fraction = row.fraction[:, :, None, None]
    cubic = v4 - v3 + v2 - v1
    square = 2 * (v1 - v2) + v3 - v4
    value = v2 + fraction * (v3 - v1 + fraction * (square + fraction * cubic))
    middle = start + row.fraction[:, :, None] + 0.5
    inside = ((middle >= 0) & (middle < size))[..., None]
    sheared = jnp.where(inside, jnp.clip(value, 0, 255).astype(jnp.int32), _FILL)
    return jnp.where(turn, sheared.swapaxes(1, 2), sheared)


def _change_levels(x: jax.Array, table: Operations, row: Operations) -> jax.Array:
    """Map each grey level by a table: the row's, or one from the image's histogram or mean."""
    lut = jnp.broadcast_to(row.lut[:, None], (x.shape[0], 3, 256))
    if np.any(table.source != LUT):
        counts = _histograms(x)
        source = row.source[:, None, None]
        lut = jnp.where(source == AUTOCONTRAST, _autocontrast(counts), lut)
        lut = jnp.where(source == EQUALIZE, _equalize(counts), lut)
    if np.any(table.contrast != 1):
        pixels = x.shape[1] * x.shape[2]
        total = jnp.sum(_luma(x), axis=(1, 2), dtype=jnp.uint32)
        mean = total // pixels + (2 * (total % pixels) >= pixels)
        lut = _blend(mean.astype(jnp.int32)[:, None, None], lut, row.contrast)
    number = jnp.arange(x.shape[0])[:, None, None, None]
    return lut[number, jnp.arange(3), x]


def _histograms(x: jax.Array) -> jax.Array:
    """The count of each level in each channel: (N, 3, 256) int32."""
    number = jnp.arange(x.shape[0])[:, None, None, None]
    return jnp.zeros((x.shape[0], 3, 256), jnp.int32).at[number, jnp.arange(3), x].add(1)


def _autocontrast(counts: jax.Array) -> jax.Array:
    """Tables (N, 3, 256) int32 that map each channel's lowest level to 0 and its highest to 255."""
    level = jnp.arange(256)
    low = jnp.argmax(counts > 0, axis=2)[..., None]
    high = 255 - jnp.argmax(counts[..., ::-1] > 0, axis=2)[..., None]
    stretched = (level - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, jnp.clip(stretched, 0, 255), level)


def _equalize(counts: jax.Array) -> jax.Array:
    """Tables (N, 3, 256) int32 that make the levels of each channel about equally frequent."""
    high = 255 - jnp.argmax(counts[..., ::-1] > 0, axis=2)[..., None]
    last = jnp.take_along_axis(counts, high, axis=2)
    step = (jnp.sum(counts, axis=2, keepdims=True) - last) // 255
    below = jnp.cumsum(counts, axis=2) - counts
    spread = (step // 2 + below) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.clip(spread, 0, 255), jnp.arange(256))


def _luma(x: jax.Array) -> jax.Array:
    """Pillow's grey level of RGB, (N, S, S)."""
    return (19595 * x[..., 0] + 38470 * x[..., 1] + 7471 * x[..., 2] + (1 << 15)) >> 16


def _smooth(x: jax.Array) -> jax.Array:
    """The mean of 3 × 3 pixels with the middle counted five times; the border is unchanged."""
    size = x.shape[1]
    near = 4 * x[:, 1:-1, 1:-1]
    for down in range(3):
        for right in range(3):
            near += x[:, down : size - 2 + down, right : size - 2 + right]
    return x.at[:, 1:-1, 1:-1].set((2 * near + 13) // 26)


def _blend(other: jax.Array, x: jax.Array, factor: jax.Array) -> jax.Array:
    """other + factor · (x - other), rounded down, with one factor for each image.

    Pillow rounds the product to float32 before it adds. A compiler may fuse the two operations and
    round once. So the factor is split into its upper 16 bits and the rest; both products are exact.
    """
    factor = factor.reshape(-1, *(1,) * (x.ndim - 1))
    first = (factor.view(jnp.int32) & ~0xFF).view(jnp.float32)
    difference = (x - other).astype(jnp.float32)
    product = first * difference + (factor - first) * difference
    return jnp.clip(other.astype(jnp.float32) + product, 0, 255).astype(jnp.int32)


# ---- random erasing ----------------------------------------------------------------------------


def erase(keys: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Random erasing (Zhong et al. 2020): a random box becomes 0, the mean colour.

    The box is drawn as in torchvision; if ten attempts give no box that fits, nothing is erased.

    Args:
      keys: (N,) one key for each image.
      images: (N, H, W, 3) float, normalised.
      probability: of erasing a box, for each image.
    """
    height, width = images.shape[1:3]
    boxes = jax.vmap(lambda key: _random_box(key, height, width, probability))(keys)
    return jnp.where(boxes[..., None], 0.0, images)


def _random_box(key: jax.Array, height: int, width: int, probability: float) -> jax.Array:
    """(H, W) bool: True in the box, False everywhere if nothing is erased."""
    area_key, ratio_key, place_key, apply_key = jax.random.split(key, 4)
    low, high = _ERASED_AREA
    area = height * width * jax.random.uniform(area_key, (_ATTEMPTS,), minval=low, maxval=high)
    low, high = np.log(_ERASED_RATIO)
    ratio = jnp.exp(jax.random.uniform(ratio_key, (_ATTEMPTS,), minval=low, maxval=high))
    tall = jnp.rint(jnp.sqrt(area * ratio)).astype(jnp.int32)
    wide = jnp.rint(jnp.sqrt(area / ratio)).astype(jnp.int32)
    fits = (tall < height) & (wide < width)
    first = jnp.argmax(fits)
    place = jax.random.uniform(place_key, (2,))
    applied = fits[first] & (jax.random.uniform(apply_key) < probability)

    def inside(place: jax.Array, length: jax.Array, size: int) -> jax.Array:
        start = (place * (size - length + 1)).astype(jnp.int32)
        position = jnp.arange(size)
        return (position >= start) & (position < start + length)

    rows, columns = inside(place[0], tall[first], height), inside(place[1], wide[first], width)
    return applied & rows[:, None] & columns[None, :]
