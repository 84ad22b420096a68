"""Whether two sets of weights are the same network: tensors, stage outputs and logits."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from convert.weights import network
from seresnext_jax.config import DataConfig
from seresnext_jax.data.files import EXTENSIONS
from seresnext_jax.data.folder import BadImage, Transform, open_rgb
from seresnext_jax.errors import UserError
from seresnext_jax.images import normalize
from seresnext_jax.model import FEATURES
from seresnext_jax.weights import WeightsInfo, flatten

Array = np.ndarray[Any, Any]
Tree = dict[str, Any]
Weights = tuple[Tree, WeightsInfo]

TOLERANCE = 1e-4
"""Largest difference of logits, relative to the largest logit, of two equal networks."""
_BATCH = 8


@dataclass(frozen=True)
class Difference:
    """How far one output is apart, over all images."""

    output: str
    """One of `FEATURES`."""
    absolute: float
    """Largest |a - b|."""
    relative: float
    """The same over the largest |a|."""


@dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    verdict: Literal["identical", "equal", "different"]
    """Every tensor bit for bit; logits within `TOLERANCE` and every top-1; neither."""
    images: int
    tensors: int
    differing_tensors: int
    outputs: tuple[Difference, ...]
    top1_agreement: float
    """Share of the images that both put in the same class."""


def compare(a: Weights, b: Weights, pixels: Iterator[Array]) -> Comparison:
    """Run two sets of weights of one architecture on the same images, in float32.

    Args:
      pixels: batches (N, H, W, 3), uint8.

    Raises:
      UserError: two architectures, or two numbers of classes.
    """
    kinds = [f"{info.architecture} with {info.num_classes} classes" for _, info in (a, b)]
    if kinds[0] != kinds[1]:
        raise UserError(f"not comparable: {kinds[0]} and {kinds[1]}")
    flat_a, flat_b = flatten(a[0]), flatten(b[0])
    differing = sum(not np.array_equal(x, flat_b[path]) for path, x in flat_a.items())

    model = network(a[1].architecture, a[1].num_classes)
    run = jax.jit(partial(model.apply, method="extract_features"))
    largest = np.zeros((2, len(FEATURES)))  # |a - b|, |a|
    images = agreeing = 0
    for batch in pixels:
        inputs = normalize(jnp.asarray(batch))
        with jax.default_matmul_precision("highest"):
            found = [{k: np.asarray(x) for k, x in run(v, inputs).items()} for v, _ in (a, b)]
        for i, name in enumerate(FEATURES):
            apart = np.abs(found[0][name] - found[1][name]).max()
            # np.maximum passes a NaN on, so that it can't look equal.
            largest[:, i] = np.maximum(largest[:, i], (apart, np.abs(found[0][name]).max()))
        classes = [x["classifier"].argmax(-1) for x in found]
        agreeing += int((classes[0] == classes[1]).sum())
        images += len(batch)

    outputs = tuple(
        Difference(name, float(apart), float(apart / size) if size else float(apart))
        for name, apart, size in zip(FEATURES, *largest, strict=True)
    )
    equal = outputs[-1].relative <= TOLERANCE and agreeing == images
    return Comparison(
        verdict="identical" if not differing else "equal" if equal else "different",
        images=images,
        tensors=len(flat_a),
        differing_tensors=differing,
        outputs=outputs,
        top1_agreement=agreeing / images,
    )


def random_pixels(size: int) -> Iterator[Array]:
    """One batch of noise (8, size, size, 3), the same every time."""
    yield np.random.default_rng(0).integers(0, 256, (_BATCH, size, size, 3), np.uint8)


def image_pixels(folder: Path, info: WeightsInfo) -> Iterator[Array]:
    """The images below a folder as evaluation of those weights sees them, by eights.

    Raises:
      UserError: there is none, or one can't be decoded.
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS)
    if not files:
        raise UserError(f"{folder} holds no images: give another folder to --images")
    data = DataConfig()
    transform = Transform(
        "val", info.image_size, info.eval_margin, data.crop_area, data.crop_ratio, data.flip
    )
    for start in range(0, len(files), _BATCH):
        batch = files[start : start + _BATCH]
        try:
            yield np.stack([transform(open_rgb(path), np.empty(0)) for path in batch])
        except BadImage as error:
            raise UserError(f"{folder}: an image can't be decoded ({error}): mend it") from error
