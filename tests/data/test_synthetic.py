"""The synthetic backend: ImageNet's length, repeatable, exact at the end."""

from typing import Any

import numpy as np

from seresnext_jax.config import DataConfig
from seresnext_jax.data.open import Split
from tests.data.loaders import open_split


def loader(split: Split, seed: int = 0, devices: int = 1) -> Any:
    data = DataConfig(backend="synthetic", image_size=8)
    return open_split(data, split, devices=devices, a=2, n=64, seed=seed, num_classes=10)


def test_it_has_imagenets_length_and_shapes() -> None:
    train, val = loader("train", devices=4), loader("val")
    assert (train.num_images, train.num_steps) == (1_281_167, 1_281_167 // 128)
    assert (val.num_images, val.num_steps) == (50_000, 782)
    images, labels, mask = next(train.batches(5))
    assert images.shape == (2, 64, 8, 8, 3) and images.dtype == np.uint8
    assert labels.shape == mask.shape == (2, 64)
    assert 0 <= int(labels.min()) and int(labels.max()) < 10 and bool(mask.all())


def test_the_last_evaluation_step_is_padded() -> None:
    last = list(loader("val").batches(780))
    assert [int(batch.mask.sum()) for batch in last] == [64, 50_000 - 781 * 64]


def test_the_seed_decides_the_images() -> None:
    first, again, other = (next(loader("train", seed).batches(0)).images for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
