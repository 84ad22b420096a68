"""Whether two sets of weights are the same network: tensors, stage outputs and logits.

The weights of a torch file are run by PyTorch, straight from the file; all others by the Flax
network. So a fault in the conversion shows as a difference.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from seresnext_jax.data.images import BadImage, open_rgb
from seresnext_jax.data.normalize import normalize
from seresnext_jax.data.pictures import pictures_below
from seresnext_jax.data.transform import CentreCrop
from seresnext_jax.errors import UserError
from seresnext_jax.model.network import FEATURES
from seresnext_jax.weights.folder import WeightsInfo, flatten
from seresnext_jax.weights.read import (
    from_torch_file,
    is_torch_file,
    network,
    open_torch_file,
    read_weights,
)

Array = np.ndarray[Any, Any]
Tree = dict[str, Any]
Engine = Literal["PyTorch", "Flax"]

TOLERANCE = 1e-4
"""Largest difference of an output, relative to its largest value, of two equal networks."""
_BATCH = 8


@dataclass(frozen=True)
class Side:
    """One of the two networks."""

    variables: Tree
    info: WeightsInfo
    engine: Engine
    run: Callable[[Array], dict[str, Array]]
    """The outputs, named by `FEATURES`, of pixels (N, H, W, 3) uint8; float32."""


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
    """Outputs within `TOLERANCE` and every tensor bit for bit; the first only; neither."""
    engines: tuple[Engine, Engine]
    """What ran each side."""
    images: int
    tensors: int
    differing_tensors: int
    outputs: tuple[Difference, ...]
    top1_agreement: float
    """Share of the images that both put in the same class."""


def open_side(path: Path) -> Side:
    """Read weights of any kind, and choose what runs them.

    Raises:
      UserError: nothing there, damaged, or of no known architecture.
    """
    if is_torch_file(path):
        file = open_torch_file(path)
        from seresnext_jax.weights.torch_forward import extract_features

        variables, info = from_torch_file(file, path, ema=False)
        return Side(variables, info, "PyTorch", partial(extract_features, file.state(ema=info.ema)))
    variables, info = read_weights(path)
    forward = jax.jit(
        partial(network(info.architecture, info.num_classes).apply, method="extract_features")
    )

    def run(pixels: Array) -> dict[str, Array]:
        with jax.default_matmul_precision("highest"):
            outputs: Any = forward(variables, normalize(jnp.asarray(pixels)))
        return {name: np.asarray(x) for name, x in outputs.items()}

    return Side(variables, info, "Flax", run)


def compare(a: Side, b: Side, pixels: Iterator[Array]) -> Comparison:
    """Run two networks of one architecture on the same images, in float32.

    Args:
      pixels: batches (N, H, W, 3), uint8.

    Raises:
      UserError: two architectures, or two numbers of classes.
    """
    kinds = [f"{s.info.architecture} with {s.info.num_classes} classes" for s in (a, b)]
    if kinds[0] != kinds[1]:
        raise UserError(f"not comparable: {kinds[0]} and {kinds[1]}")
    flat_a, flat_b = flatten(a.variables), flatten(b.variables)
    differing = sum(not _same_bits(x, flat_b[path]) for path, x in flat_a.items())

    largest = np.zeros((2, len(FEATURES)))  # |a - b|, |a|
    images = agreeing = 0
    for batch in pixels:
        found = [side.run(batch) for side in (a, b)]
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
    equal = all(output.relative <= TOLERANCE for output in outputs)
    return Comparison(
        verdict="different" if not equal else "equal" if differing else "identical",
        engines=(a.engine, b.engine),
        images=images,
        tensors=len(flat_a),
        differing_tensors=differing,
        outputs=outputs,
        top1_agreement=agreeing / images,
    )


def _same_bits(a: Array, b: Array) -> bool:
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


def random_pixels(size: int) -> Iterator[Array]:
    """One batch of noise (8, size, size, 3), the same every time."""
    yield np.random.default_rng(0).integers(0, 256, (_BATCH, size, size, 3), np.uint8)


def image_pixels(folder: Path, info: WeightsInfo) -> Iterator[Array]:
    """The images below a folder as evaluation of those weights sees them, by eights.

    Raises:
      UserError: there is none, or one can't be decoded.
    """
    files = pictures_below(folder)
    if not files:
        raise UserError(f"{folder} has no images: give another folder to --images")
    crop = CentreCrop(info.image_size, info.eval_margin)
    for start in range(0, len(files), _BATCH):
        batch = files[start : start + _BATCH]
        try:
            yield np.stack([crop(open_rgb(path)) for path in batch])
        except BadImage as error:
            raise UserError(f"{folder}: an image can't be decoded ({error}): remove it") from error
