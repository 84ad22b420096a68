"""Order, crops and evaluation windows against independent re-statements."""

import math
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from seresnext_jax.config import DataConfig
from seresnext_jax.data.sampler import EvalSampler, Streams, TrainSampler, crop_draws, epoch_order
from seresnext_jax.data.transform import ATTEMPTS, CentreCrop, TrainCrop

AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def train_sampler(images: int, a: int, n: int, columns: slice | None = None) -> TrainSampler:
    return TrainSampler(
        num_images=images,
        images_per_pass=n,
        columns=columns or slice(0, n),
        accumulation=a,
        seed=7,
    )


def eval_sampler(images: int, n: int) -> EvalSampler:
    return EvalSampler(num_images=images, images_per_pass=n, columns=slice(0, n))


def random_crop(
    draws: np.ndarray, height: int, width: int, area: tuple[float, float]
) -> tuple[int, ...]:
    """`TrainCrop` of one image: (top, left, height, width)."""
    crop = TrainCrop(DataConfig(crop_area=area, crop_ratio=RATIO))
    start, shape, _ = crop.numbers(np.array([[height, width]]), draws[None])
    return *start[0].tolist(), *shape[0].tolist()


def eval_window(height: int, width: int, shorter: int, size: int) -> tuple[int, ...]:
    """`CentreCrop` of one image: resized (height, width), (top, left)."""
    start, resized = CentreCrop(size, shorter - size).numbers(np.array([[height, width]]))
    return *resized[0].tolist(), *start[0].tolist()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8))


def test_the_crops_of_an_image_stay_what_they_are() -> None:
    """Recorded, so that a run that was begun by an earlier version continues as it would have."""
    draws = crop_draws(7, 2, 5, 1)
    assert draws[0, 0] == pytest.approx(0.31752643, abs=1e-8)
    assert draws[0, -1] == pytest.approx(0.90546626, abs=1e-8)
    crop = TrainCrop(DataConfig(image_size=32))
    start, shape, flip = crop.numbers(np.array([[90, 120]]), draws)
    assert [*start[0], *shape[0], *flip] == [15, 11, 58, 70, False]
    assert zlib.crc32(crop(NOISE, draws[0]).tobytes()) == 351433835
    assert zlib.crc32(CentreCrop(32, 8)(NOISE).tobytes()) == 1471542511
    assert str(crop) == (
        "Transform(split='train', image_size=32, eval_margin=32, crop_area=(0.08, 1.0), "
        "crop_ratio=(0.75, 1.3333333333333333), flip=True)"
    )


def test_interpolations() -> None:
    draws = crop_draws(7, 2, 5, 1)[0]

    def crops(interpolation: Any) -> tuple[np.ndarray, np.ndarray, str]:
        crop = TrainCrop(DataConfig(image_size=32, interpolation=interpolation))
        return crop(NOISE, draws), CentreCrop(32, 8, interpolation)(NOISE), str(crop)

    def by_pillow(filter: Image.Resampling) -> tuple[np.ndarray, np.ndarray]:
        window = NOISE.crop((11, 15, 11 + 70, 15 + 58)).resize((32, 32), filter)
        return np.asarray(window), np.asarray(NOISE.resize((53, 40), filter).crop((10, 4, 42, 36)))

    wanted = {
        "bilinear": Image.Resampling.BILINEAR,
        "triangular": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
    }
    for name, filter in wanted.items():
        for found, expected in zip(crops(name), by_pillow(filter), strict=False):
            np.testing.assert_array_equal(found, expected)
    assert crops("triangular")[2] == crops("bilinear")[2] != crops("bicubic")[2]


def test_order_is_a_permutation_fresh_for_each_epoch_and_seed() -> None:
    orders = [epoch_order(1000, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(1000))
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert np.mean(one == other) < 0.02
    assert np.array_equal(epoch_order(1000, 1, 1), orders[3])


@pytest.mark.parametrize("size", [1, 3, 5, 8])
def test_draws_of_a_position_do_not_depend_on_the_batch(size: int) -> None:
    whole = crop_draws(3, 2, 0, 40)
    parts = [crop_draws(3, 2, start, size) for start in range(0, 40, size)]
    assert np.array_equal(np.concatenate(parts)[:40], whole)
    assert whole.min() >= 0 and whole.max() < 1
    assert len(np.unique(whole)) == whole.size


def reference_crop(draws: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop.get_params, as its source reads, fed with given uniforms."""
    for i in range(ATTEMPTS):
        area = height * width * (AREA[0] + draws[i] * (AREA[1] - AREA[0]))
        low, high = math.log(RATIO[0]), math.log(RATIO[1])
        aspect = math.exp(low + draws[ATTEMPTS + i] * (high - low))
        w = math.floor(math.sqrt(area * aspect) + 0.5)
        h = math.floor(math.sqrt(area / aspect) + 0.5)
        if 0 < w <= width and 0 < h <= height:
            top = math.floor(draws[2 * ATTEMPTS] * (height - h + 1))
            return top, math.floor(draws[2 * ATTEMPTS + 1] * (width - w + 1)), h, w
    if width / height < min(RATIO):
        w, h = width, round(width / min(RATIO))
    elif width / height > max(RATIO):
        h, w = height, round(height * max(RATIO))
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (31, 640), (640, 31), (1, 1), (1, 9)])
def test_crop_equals_torchvisions_and_is_inside(size: tuple[int, int]) -> None:
    for draws in crop_draws(0, 0, 0, 300):
        top, left, h, w = random_crop(draws, *size, AREA)
        assert (top, left, h, w) == reference_crop(draws, *size)
        assert 0 <= top <= size[0] - h and 0 <= left <= size[1] - w and h > 0 and w > 0


@pytest.mark.parametrize("size", [(32, 32), (375, 500), (301, 257)])
def test_the_whole_image_can_be_had(size: tuple[int, int]) -> None:
    for draws in crop_draws(0, 0, 0, 20):
        assert random_crop(draws, *size, (1.0, 1.0)) == (0, 0, *size)


def test_eval_window_of_imagenets_commonest_size() -> None:
    assert eval_window(375, 500, 256, 224) == (256, 341, 16, 58)
    assert eval_window(500, 375, 256, 224) == (341, 256, 58, 16)


@pytest.mark.parametrize("free", range(9))
def test_eval_offset_rounds_half_to_even(free: int) -> None:
    _, _, top, left = eval_window(64 + free, 64 + free, 64 + free, 64)
    assert top == left == round(free / 2)


def test_a_step_is_the_same_however_it_is_cut_into_passes_and_processes() -> None:
    whole = train_sampler(100, 1, 24).rows(3)
    passes = train_sampler(100, 3, 8).rows(3)
    assert np.array_equal(whole.index, passes.index)
    assert np.array_equal(whole.draws, passes.draws)
    halves = [train_sampler(100, 3, 8, slice(c, c + 4)).rows(3) for c in (0, 4)]
    joined = np.concatenate([h.index.reshape(3, 4) for h in halves], axis=1)
    assert np.array_equal(joined.reshape(-1), whole.index)


def test_training_drops_the_rest_and_runs_into_the_next_epoch() -> None:
    train = train_sampler(50, 1, 16)
    assert train.num_steps == 3
    steps = iter(train.steps(2))
    last, following = train.rows(next(steps)), train.rows(next(steps))
    assert np.array_equal(last.index, epoch_order(50, 7, 0)[32:48])
    assert np.array_equal(following.index, epoch_order(50, 7, 1)[:16])


def test_evaluation_counts_every_image_once() -> None:
    val = eval_sampler(50, 16)
    steps = [val.rows(step) for step in val.steps(0)]
    assert len(steps) == val.num_steps == 4
    real = np.concatenate([s.index[s.mask] for s in steps])
    assert np.array_equal(real, np.arange(50))
    assert steps[-1].mask.sum() == 2


def test_a_limit_ends_epochs_and_evaluations_and_changes_no_step() -> None:
    train, val = train_sampler(50, 1, 16), eval_sampler(50, 16)
    short_train, short_val = replace(train, max_steps=2), replace(val, max_steps=2)
    assert short_train.num_steps == short_val.num_steps == 2
    assert replace(val, max_steps=9).num_steps == 4
    places = ((0, 1), (1, 0), (1, 1), (2, 0))
    for short_step, (epoch, step) in zip(short_train.steps(1), places, strict=False):
        found = short_train.rows(short_step)
        wanted = train.rows(epoch * train.num_steps + step)
        assert np.array_equal(found.index, wanted.index)
        assert np.array_equal(found.draws, wanted.draws)
    assert list(short_val.steps(0)) == list(val.steps(0))[:2]
    for step in short_val.steps(0):
        assert np.array_equal(short_val.rows(step).index, val.rows(step).index)


# ---- shard after shard -------------------------------------------------------------------------


def streams(at_once: int) -> tuple[Streams, np.ndarray, np.ndarray]:
    """Seven shards of different sizes, whose images are anywhere in the file list."""
    generator = np.random.default_rng(0)
    shards = generator.permutation(np.repeat(np.arange(7), [30, 12, 40, 1, 25, 30, 9]))
    offsets = generator.permutation(len(shards))
    return Streams.of(shards, offsets, at_once), shards, offsets


@pytest.mark.parametrize("at_once", [1, 3, 7, 100])
def test_an_epoch_by_shards_reads_each_image_once_and_each_shard_in_order(at_once: int) -> None:
    found, shards, offsets = streams(at_once)
    for epoch in range(3):
        order = found.order(5, epoch)
        assert np.array_equal(np.sort(order), np.arange(len(shards)))
        for shard in range(7):
            mine = offsets[order[shards[order] == shard]]
            assert np.array_equal(mine, np.sort(mine))


@pytest.mark.parametrize("at_once", [1, 3])
def test_no_more_shards_are_open_than_asked_for(at_once: int) -> None:
    found, shards, _ = streams(at_once)
    order = shards[found.order(5, 0)]
    first = {shard: int(np.flatnonzero(order == shard)[0]) for shard in range(7)}
    last = {shard: int(np.flatnonzero(order == shard)[-1]) for shard in range(7)}
    opened = [sum(first[s] <= i <= last[s] for s in range(7)) for i in range(len(order))]
    assert max(opened) <= at_once
    assert min(first.values()) == 0


def test_shards_are_mixed_anew_in_each_epoch_and_for_each_seed() -> None:
    found, _, _ = streams(3)
    orders = [found.order(seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert found.order(1, 1).tolist() == orders[3]
