"""Verifies that two sets of weights are the same network: tensors, stage outputs and logits.

PyTorch runs the weights of a PyTorch file directly from the file; the Flax network runs all others.
So an error in the conversion shows up as a difference.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from seresnext_jax.data.images import BadImage, open_rgb
from seresnext_jax.data.normalize import normalize
from seresnext_jax.data.pictures import split_pictures
from seresnext_jax.data.transform import CentreCrop
from seresnext_jax.errors import UserError
from seresnext_jax.model.network import FEATURES
from seresnext_jax.weights.identify import network
from seresnext_jax.weights.info import Array, Weights, WeightsInfo
from seresnext_jax.weights.read import TorchFileSource, has_table, open_source

Engine = Literal["PyTorch", "Flax"]

TOLERANCE = 1e-4
"""Largest accepted difference between two equal outputs, relative to their largest value."""
_BATCH = 8


@dataclass(frozen=True)
class RunnableWeights:
    """Weights, and the engine that runs them."""

    weights: Weights
    engine: Engine
    run: Callable[[Array], dict[str, Array]]
    """Maps pixels (N, H, W, 3) uint8 to float32 outputs, named by `FEATURES`."""


@dataclass(frozen=True)
class OutputDifference:
    """The largest difference of one output, over all images."""

    output: str
    """One of `FEATURES`."""
    absolute: float
    """Largest |a - b|."""
    relative: float
    """The same divided by the largest |a|."""


@dataclass(frozen=True)
class Comparison:
    """The result of `compare_weights`."""

    verdict: Literal["identical", "equal", "different"]
    """identical: outputs within `TOLERANCE`, and all tensors the same; equal: outputs within
    `TOLERANCE`, but a tensor differs; different: an output differs by more."""
    engines: tuple[Engine, Engine]
    """The engine that ran each of the two."""
    images: int
    tensors: int
    differing_tensors: int
    outputs: tuple[OutputDifference, ...]
    top1_agreement: float
    """Share of the images that both assign to the same class."""


def compare_weights(
    path_a: Path, path_b: Path, images: Path | None = None, *, table: str = ""
) -> Comparison:
    """Run two networks of one architecture on the same images, in float32.

    Args:
      images: a folder of images; None: noise.
      table: name of the state dict to take from each PyTorch file that has one of this name.

    Raises:
      UserError: weights or images can't be read, or the architectures or numbers of classes differ.
    """
    tables = [table if has_table(path, table) else "" for path in (path_a, path_b)]
    if table and not any(tables):
        tables[0] = table  # refused with a list of the existing names
    a, b = (
        read_runnable_weights(path, table=name)
        for path, name in zip((path_a, path_b), tables, strict=True)
    )
    infos = [x.weights.info for x in (a, b)]
    kinds = [f"{info.architecture} with {info.num_classes} classes" for info in infos]
    if kinds[0] != kinds[1]:
        raise UserError(f"not comparable: {kinds[0]} and {kinds[1]}")
    flat_a, flat_b = _exact_tensors(a.weights), _exact_tensors(b.weights)
    differing = sum(not _same(x, flat_b[path]) for path, x in flat_a.items())

    info = infos[1] if a.engine == "PyTorch" else infos[0]  # a PyTorch file has no image size
    batches = image_pixels(images, info) if images else random_pixels(info.image_size)
    largest = np.zeros((2, len(FEATURES)))  # |a - b|, |a|
    count = agreeing = 0
    for batch in batches:
        outputs_a, outputs_b = a.run(batch), b.run(batch)
        for i, name in enumerate(FEATURES):
            found = (
                np.abs(outputs_a[name] - outputs_b[name]).max(),
                np.abs(outputs_a[name]).max(),
            )
            # np.maximum passes a NaN on, so that it can't look equal.
            largest[:, i] = np.maximum(largest[:, i], found)
        classes_a, classes_b = (x["classifier"].argmax(-1) for x in (outputs_a, outputs_b))
        agreeing += int((classes_a == classes_b).sum())
        count += len(batch)

    outputs = tuple(
        OutputDifference(name, float(apart), float(apart / size) if size else float(apart))
        for name, apart, size in zip(FEATURES, *largest, strict=True)
    )
    equal = all(output.relative <= TOLERANCE for output in outputs)
    return Comparison(
        verdict="different" if not equal else "equal" if differing else "identical",
        engines=(a.engine, b.engine),
        images=count,
        tensors=len(flat_a),
        differing_tensors=differing,
        outputs=outputs,
        top1_agreement=agreeing / count,
    )


def _exact_tensors(weights: Weights) -> dict[tuple[str, ...], Array]:
    """The tensors by path; one that float32 can't represent has the dtype of its source."""
    return {**flatten_dict(weights.variables), **weights.exact}


def _same(a: Array, b: Array) -> bool:
    """Whether two arrays have the same values, or the same bits if they have the same type."""
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    return a.tobytes() == b.tobytes() if a.dtype == b.dtype else np.array_equal(a, b)


def read_runnable_weights(path: Path, *, table: str = "") -> RunnableWeights:
    """Read weights from any source; PyTorch runs a PyTorch file, the Flax network all others.

    Raises:
      UserError: they are missing, damaged, of unknown architecture, or contain NaN or infinity; or
        PyTorch is missing.
    """
    source = open_source(path, table=table)
    weights = source.read()
    info = weights.info
    if isinstance(source, TorchFileSource):
        try:
            from seresnext_jax.weights.torch_forward import extract_features
        except ModuleNotFoundError as error:
            raise UserError(
                "verifying a PyTorch file needs PyTorch, which is missing: pip install "
                "'torch>=2.10'"
            ) from error

        state = source.file.read_table(source.file.choose_table())
        return RunnableWeights(weights, "PyTorch", partial(extract_features, state))
    forward = jax.jit(
        partial(network(info.architecture, info.num_classes).apply, method="extract_features")
    )

    def run(pixels: Array) -> dict[str, Array]:
        with jax.default_matmul_precision("highest"):
            outputs: Any = forward(weights.variables, normalize(jnp.asarray(pixels)))
        return {name: np.asarray(x) for name, x in outputs.items()}

    return RunnableWeights(weights, "Flax", run)


def random_pixels(size: int) -> Iterator[Array]:
    """One batch of noise (8, size, size, 3), the same every time."""
    yield np.random.default_rng(0).integers(0, 256, (_BATCH, size, size, 3), np.uint8)


def image_pixels(folder: Path, info: WeightsInfo) -> Iterator[Array]:
    """The images below a folder as evaluation crops them: (N, S, S, 3) uint8, N at most 8.

    Raises:
      UserError: there are no images, or one can't be decoded.
    """
    files, _ = split_pictures(folder)
    if not files:
        raise UserError(f"{folder} contains no images: give --images a folder with some")
    crop = CentreCrop(info.image_size, info.eval_margin, info.interpolation)
    for start in range(0, len(files), _BATCH):
        batch = files[start : start + _BATCH]
        try:
            yield np.stack([crop(open_rgb(path)) for path in batch])
        except BadImage as error:
            raise UserError(
                f"{folder}: an image can't be decoded ({error}): fix or remove it"
            ) from error
