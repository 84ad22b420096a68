"""Exports weights to one file, and compares what the file computes with our own logits."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from seresnext_jax.data.transform import RESAMPLING
from seresnext_jax.errors import UserError
from seresnext_jax.export.exported_network import INPUT, OUTPUT, Array, ExportPrecision, own_logits
from seresnext_jax.output import replacing
from seresnext_jax.weights.info import Weights, to_json

LIMITS: dict[ExportPrecision, float] = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
"""Largest accepted difference from our float32 logits, relative to the largest logit."""
_BATCHES = (1, 3)
"""Batch sizes of the check; the file must accept any."""


@dataclass(frozen=True)
class Format:
    """A file format, with the functions that make and run the content of a file."""

    name: str
    precisions: tuple[ExportPrecision, ...]
    runtime: str
    """The package that runs the file for the check."""
    serialize: Callable[[Weights, ExportPrecision], bytes]
    run: Callable[[bytes, Array], Array]
    """Maps pixels (N, S, S, 3) uint8 to logits (N, K) float32."""


@dataclass(frozen=True)
class Export:
    """An exported file that passed its check."""

    path: Path
    description: Path
    """The JSON file beside it."""
    format: str
    runtime: str
    """The package that ran the file, and its version."""
    difference: float
    """Largest |file's logit - own logit|; ours are float32."""
    largest: float
    """Largest |own logit|."""


def export_weights(
    weights: Weights, out: Path, precision: ExportPrecision, *, replace: bool = False
) -> Export:
    """Write ``out`` (.onnx or .stablehlo) and a JSON description beside it.

    Nothing is written unless the file computes our logits, within `LIMITS`.

    Args:
      replace: replace files that exist.

    Raises:
      UserError: `out` has another suffix, the format does not support the precision, a package is
        missing, a file exists or can't be written, or the check fails.
    """
    form = _find_format(out, precision)
    description = out.with_name(f"{out.name}.json")
    for path in (out, description):
        if path.exists() and not replace:
            raise UserError(f"{path} exists: give another name, or --force to replace it")
    try:
        with replacing(out) as file, replacing(description) as about:
            content = form.serialize(weights, precision)
            file.write(content)
            difference, largest = _compare(form, content, weights)
            if not difference <= LIMITS[precision] * largest:  # NaN fails, too
                raise UserError(
                    f"{out} was not written: its logits in {form.runtime} differ from ours by "
                    f"{difference:.3g}, and our largest is {largest:.3g}; an untrained network can "
                    "enlarge rounding errors that much: export trained weights"
                )
            runtime = f"{form.runtime} {version(form.runtime)}"
            export = Export(out, description, form.name, runtime, difference, largest)
            about.write(to_json(describe_export(export, weights, precision)).encode())
    except OSError as error:
        raise UserError(
            f"{out} can't be written ({error.strerror}): choose another place"
        ) from error
    return export


def _find_format(out: Path, precision: ExportPrecision) -> Format:
    """The format of a file, by its suffix; imports the packages that it needs."""
    if out.suffix not in (".onnx", ".stablehlo"):
        raise UserError(
            f"{out} names no format: end it with .onnx or .stablehlo, such as {out.stem}.onnx"
        )
    try:
        if out.suffix == ".onnx":
            importlib.import_module("onnxruntime")  # for the check; fail before long work

            from seresnext_jax.export import onnx_file

            functions = onnx_file.serialize_onnx, onnx_file.run_onnx
            form = Format("ONNX", ("fp32", "fp16"), onnx_file.RUNTIME, *functions)
        else:
            importlib.import_module("flatbuffers")  # `jax.export` needs it

            from seresnext_jax.export import stablehlo

            functions = stablehlo.serialize_stablehlo, stablehlo.run_stablehlo
            form = Format("StableHLO", ("fp32", "bf16", "fp16"), stablehlo.RUNTIME, *functions)
    except ModuleNotFoundError as error:
        raise UserError(
            f"exporting {out.suffix} needs {error.name}, which is missing: "
            "pip install onnx onnxruntime flatbuffers"
        ) from error
    if precision not in form.precisions:
        raise UserError(
            f"--precision {precision}: {form.name} files have {' or '.join(form.precisions)}"
        )
    return form


def _compare(form: Format, content: bytes, weights: Weights) -> tuple[float, float]:
    """Run a file's content on noise.

    Returns:
      The largest |difference| from our logits, and our largest |logit|.
    """
    size = weights.info.image_size
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (max(_BATCHES), size, size, 3), np.uint8)
    own = own_logits(weights, pixels)
    differences = [np.abs(form.run(content, pixels[:n]) - own[:n]).max() for n in _BATCHES]
    return float(np.max(differences)), float(np.abs(own).max())


def describe_export(export: Export, weights: Weights, precision: ExportPrecision) -> dict[str, Any]:
    """The content of the JSON description: what a program needs to know to run the file."""
    info = weights.info
    size = info.image_size
    return {
        "file": export.path.name,
        "format": export.format,
        "architecture": info.architecture,
        "precision": precision,
        "input": {
            "name": INPUT,
            "dtype": "uint8",
            "shape": ["batch", size, size, 3],
            "meaning": "RGB pixels, height x width x channel",
        },
        "output": {
            "name": OUTPUT,
            "dtype": "float32",
            "shape": ["batch", info.num_classes],
            "meaning": "logits; their softmax gives probabilities",
        },
        "preprocessing": {
            "shorter_side": size + info.eval_margin,
            "filter": f"antialiased, as Pillow's {RESAMPLING[info.interpolation].name}",
            "centre_crop": size,
            "normalisation": "in the network",
        },
        "class_names": info.class_names,
        "source": info.source,
        "sha256": info.sha256,
        "check": {
            "runtime": export.runtime,
            "largest_difference": export.difference,
            "largest_logit": export.largest,
        },
    }
