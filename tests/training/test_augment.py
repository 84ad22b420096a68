"""AutoAugment, RandAugment and random erasing against Pillow, the papers' formulas and NumPy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from seresnext_jax.config import DataConfig
from seresnext_jax.training.augment import apply_operations, augment, draw_rows, erase
from seresnext_jax.training.policies import BINS, Policy, auto_augment, rand_augment

SIZE = 48
GREY = (128, 128, 128)
AS_IN_A_RUN = {"xla_backend_optimization_level": 3}
"""Without optimisation, as the tests compile, no multiplication is fused with an addition."""


def pictures() -> np.ndarray:
    """Noise, narrow noise, ramps, one colour, and something smooth; (5, SIZE, SIZE, 3) uint8."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE]
    shape = (SIZE, SIZE, 3)
    smooth = 128 + 1.5 * rng.normal(size=shape).cumsum(axis=0).cumsum(axis=1)
    found = [
        rng.integers(0, 256, shape),
        rng.integers(60, 190, shape),
        np.stack([5 * x, 5 * y, 2 * (x + y)], axis=-1),
        np.full(shape, 77),
        np.clip(smooth, 0, 255),
    ]
    return np.stack(found).astype(np.uint8)


# ---- the operations ----------------------------------------------------------------------------


def affine(*matrix: float, resample: Image.Resampling) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=GREY
    )


def rotated(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees, fillcolor=GREY)


def solarize_add(image: Image.Image, addition: int) -> Image.Image:
    return image.point(3 * [min(255, v + addition) if v < 128 else v for v in range(256)])


def by_pillow(name: str, m: float, sign: int) -> Callable[[Image.Image], Image.Image]:
    nearest, bicubic = Image.Resampling.NEAREST, Image.Resampling.BICUBIC
    enhancers = {
        "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "brightness": ImageEnhance.Brightness,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name.startswith("change "):
        return lambda image: enhancers[name[7:]](image).enhance(1 + sign * m)
    table: dict[str, Callable[[Image.Image], Image.Image]] = {
        "identity": lambda image: image,
        "shearX": affine(1, sign * m, 0, 0, 1, 0, resample=bicubic),
        "shearY": affine(1, 0, 0, sign * m, 1, 0, resample=bicubic),
        "translateX": affine(1, 0, sign * m, 0, 1, 0, resample=nearest),
        "translateY": affine(1, 0, 0, 0, 1, sign * m, resample=nearest),
        "rotate": lambda image: rotated(image, sign * m),
        "color": lambda image: ImageEnhance.Color(image).enhance(m),
        "posterize": lambda image: ImageOps.posterize(image, int(m)),
        "solarize": lambda image: ImageOps.solarize(image, m),  # type: ignore[arg-type]
        "solarizeadd": lambda image: solarize_add(image, int(m)),
        "invert": ImageOps.invert,
        "autocontrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
    }
    return table[name]


POLICIES = {
    "autoaugment": auto_augment(),
    **{f"randaugment {m}": rand_augment(1, m, SIZE) for m in (0, 9, 17, 30)},
}


@pytest.mark.parametrize("name", POLICIES)
def test_every_operation_gives_pillows_pixels(name: str) -> None:
    policy, images = POLICIES[name], pictures()
    originals = [Image.fromarray(image) for image in images]
    table = policy.operations(SIZE)
    apply: Any = jax.jit(
        lambda rows: apply_operations(jnp.asarray(images), table, rows),
        compiler_options=AS_IN_A_RUN,
    )
    seen = set()
    for candidates, firsts in zip(policy.choices, policy.first_rows, strict=True):
        for choice, first in zip(candidates, firsts, strict=True):
            for row, sign in ((first, 1), (first + 1, -1)):
                operation = by_pillow(choice.name, choice.magnitude, sign)
                wanted = np.stack([np.asarray(operation(image)) for image in originals])
                found = np.asarray(apply(jnp.full(len(images), row)))
                different = np.abs(found.astype(int) - wanted)
                seen.add(choice.name)
                # Pillow computes these two with float64: values next to a whole number may be
                # rounded to the other side of it.
                share = {"autocontrast": 0.01, "shearX": 1e-4, "shearY": 1e-4}.get(choice.name, 0)
                assert different.max() <= (share > 0), (choice, sign)
                assert (different > 0).mean() <= share, (choice, sign)
    assert len(seen) == (11 if name == "autoaugment" else 14)
    np.testing.assert_array_equal(apply(jnp.zeros(len(images), int)), images)


# ---- the policies ------------------------------------------------------------------------------


def test_autoaugment_is_the_originals_policy() -> None:
    policy = auto_augment()
    pairs = list(zip(*policy.choices, strict=True))
    assert len(pairs) == 25
    assert pairs[0] == (("equalize", 0.8, 0.0), ("shearY", 0.8, pytest.approx(0.12)))
    assert pairs[2] == (("color", 0.4, pytest.approx(0.28)), ("rotate", 0.6, 24.0))
    assert pairs[6][1] == ("solarizeadd", 0.8, 33.0)
    assert pairs[12][0] == ("posterize", 0.4, 2.0)
    assert pairs[15] == (("rotate", 1.0, 21.0), ("translateY", 0.8, 225.0))
    assert pairs[22][1] == ("solarize", 0.6, pytest.approx(256.0))
    assert {choice.probability for choice in policy.choices[0]} == {0, 0.2, 0.4, 0.6, 0.8, 1}


def test_randaugments_ranges_are_torchvisions() -> None:
    (weak,), (strong,) = (rand_augment(1, m, 331).choices for m in (0, BINS - 1))
    assert {choice.magnitude for choice in weak if choice.name.startswith("change")} == {0}
    found = {choice.name: choice.magnitude for choice in strong}
    assert found["shearX"] == pytest.approx(0.3) and found["translateX"] == pytest.approx(150)
    assert found["rotate"] == 30 and found["change color"] == pytest.approx(0.9)
    assert found["posterize"] == 4 and found["solarize"] == 0
    assert [c.magnitude for c in weak if c.name in ("posterize", "solarize")] == [8, 255]


def draw_many(policy: Policy, count: int) -> jax.Array:
    return jax.vmap(lambda key: draw_rows(key, policy))(jax.random.split(jax.random.key(1), count))


def test_draws_follow_the_policy() -> None:
    policy, count = auto_augment(), 8000
    rows = np.asarray(draw_many(policy, count))
    for number, (candidates, firsts) in enumerate(
        zip(policy.choices, policy.first_rows, strict=True)
    ):
        for choice, first in zip(candidates, firsts, strict=True):
            for row in (first, first + 1):
                share = float(np.mean(rows[:, number] == row))
                assert share == pytest.approx(choice.probability / 50, abs=0.007)
    # A pair stays together: round 2 has the same index where both are applied.
    both = rows[(rows > 0).all(axis=1)] - policy.first_rows[:, 0]
    np.testing.assert_array_equal(both[:, 0] // 2, both[:, 1] // 2)

    policy = rand_augment(2, 9, SIZE)
    for number, row_numbers in enumerate(np.asarray(draw_many(policy, count)).T):
        shares = np.bincount(row_numbers - policy.first_rows[number, 0], minlength=28) / count
        np.testing.assert_allclose(shares, 1 / 28, atol=0.008)


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        (auto_augment(), [[0, 98], [24, 73], [0, 67], [49, 100]]),
        (rand_augment(3, 9, SIZE), [[24, 44, 84], [2, 51, 71], [19, 45, 80], [17, 38, 79]]),
    ],
)
def test_the_draws_of_an_image_stay_what_they_are(policy: Policy, wanted: list[list[int]]) -> None:
    """A run that was begun by an earlier version continues as it would have."""
    assert draw_many(policy, 4).tolist() == wanted


@pytest.mark.parametrize("name", ["autoaugment", "randaugment"])
def test_rounds_are_applied_one_after_another(name: Any) -> None:
    config = DataConfig(augmentation=name, randaugment_num_ops=3)
    policy = auto_augment() if name == "autoaugment" else rand_augment(3, 9, SIZE)
    table = policy.operations(SIZE)
    images = jnp.asarray(pictures())
    keys = jax.random.split(jax.random.key(2), len(images))
    found = jax.jit(lambda keys, images: augment(keys, images, config))(keys, images)
    assert found.dtype == jnp.uint8 and found.shape == images.shape
    apply = jax.jit(lambda images, rows: apply_operations(images, table, rows))
    wanted = images
    for rows in jax.vmap(lambda key: draw_rows(key, policy))(keys).T:
        wanted = apply(wanted, rows)
    np.testing.assert_array_equal(found, wanted)
    assert augment(keys, images, DataConfig()) is images


# ---- random erasing ----------------------------------------------------------------------------


def test_erased_boxes_are_distributed_as_torchvisions() -> None:
    height, width, count, probability = 24, 32, 4000, 0.25
    keys = jax.random.split(jax.random.key(0), count)
    images = jnp.ones((count, height, width, 3))
    erased = np.asarray(jax.jit(erase, static_argnums=2)(keys, images, probability))
    assert set(np.unique(erased)) == {0, 1}
    gone = (erased == 0).all(axis=3)
    np.testing.assert_array_equal(gone, (erased == 0).any(axis=3))
    touched = gone.any(axis=(1, 2))
    assert touched.mean() == pytest.approx(probability, abs=0.03)
    for box in gone[touched][:50]:
        rows, columns = box.any(axis=1), box.any(axis=0)
        assert box.sum() == rows.sum() * columns.sum()
        for line in (rows, columns):
            assert np.abs(np.diff(line.astype(int))).sum() <= 2, "in one piece"

    rng = np.random.default_rng(0)
    wanted = np.zeros((height, width))
    for _ in range(count):
        for _ in range(10):
            area = rng.uniform(0.02, 1 / 3) * height * width
            ratio = np.exp(rng.uniform(np.log(0.3), np.log(3.3)))
            h, w = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
            if h < height and w < width:
                top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
                wanted[top : top + h, left : left + w] += probability / count
                break
    np.testing.assert_allclose(gone.mean(axis=0), wanted, atol=0.02)


def test_without_a_probability_nothing_is_erased() -> None:
    images = jnp.ones((4, 8, 8, 3))
    keys = jax.random.split(jax.random.key(0), 4)
    np.testing.assert_array_equal(erase(keys, images, 0.0), images)
