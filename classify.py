"""Classify images: ``python classify.py --weights WEIGHTS IMAGE_OR_FOLDER ...``.

Images are preprocessed as in evaluation, but photos are turned upright by their EXIF orientation;
--data.no-exif-orientation leaves them as stored, as train.py and eval.py do. In folders, files with
the suffix of an image that Pillow can read are classified; a file named directly may have any
suffix. Two of ImageNet's 1,000 names are the same (crane); ``--json FILE`` also gives the index of
each class. ``--weights`` takes what eval.py takes.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from seresnext_jax.checkpoint.store import explain_choice
from seresnext_jax.cli import check_output, parse, run, write_output
from seresnext_jax.config import Config, ModelConfig, Precision, Range, SizesOfWeights
from seresnext_jax.data.class_names import names_for
from seresnext_jax.data.formats import count_kinds
from seresnext_jax.data.images import BadImage, decode_rgb, is_meant_as_image
from seresnext_jax.data.pictures import split_pictures
from seresnext_jax.data.transform import CentreCrop
from seresnext_jax.errors import UserError, printable, shown
from seresnext_jax.model.network import make_network
from seresnext_jax.run import runtime
from seresnext_jax.training.inference import folded_forward, place_folded
from seresnext_jax.training.precision import POLICIES
from seresnext_jax.weights.info import size_note
from seresnext_jax.weights.read import read_weights


@dataclass(frozen=True)
class Pictures(SizesOfWeights):
    """How the images are prepared."""

    exif_orientation: bool = True
    """Whether to turn photos upright by their EXIF orientation."""


@dataclass(frozen=True)
class ClassifyConfig:
    """The options of classify.py."""

    images: tyro.conf.Positional[tuple[str, ...]] = ()
    """Image files, and folders of them."""
    weights: str = ""
    """A checkpoint, a weights folder, or a PyTorch file."""
    topk: Annotated[int, Range(1, 10**7)] = 5
    """Number of classes to print for each image, the most probable first."""
    precision: Precision = "fp32"
    """Precision of the computation."""
    batch_size: Annotated[int, Range(1, 10**6)] = 16
    """Images per forward pass."""
    data: Pictures = field(default_factory=Pictures)
    ema: bool = False
    """Use the moving average that is stored with the weights."""
    class_names: str = ""
    """File with the names of the classes in the order of the weights' labels: one name per line,
    or JSON. Only needed for weights without class names, or to print other ones."""
    compilation_cache: str = Config.compilation_cache
    """Folder of JAX's persistent compilation cache; empty: none."""
    json: str = ""
    """Also write the results to this file: a JSON object for each image, one per line."""
    debug: bool = False
    """Show the traceback of an error."""


def main(argv: list[str]) -> int:
    """Run the program; returns 1 if an image could not be read or was skipped, else 0."""
    config = parse(ClassifyConfig(), argv, program="classify.py", description=__doc__ or "")
    if not config.weights:
        raise UserError("--weights is missing: name a checkpoint, weights folder or PyTorch file")
    check_output("--json", config.json)
    paths, skipped = find_images(config.images)
    if skipped:
        print(
            f"note: skipped {len(skipped)} files without the suffix of an image that Pillow can "
            f"read ({count_kinds(map(str, skipped))}): convert HEIC and other formats to JPEG; "
            "name a file without suffix itself",
            file=sys.stderr,
        )
    if choice := explain_choice(Path(config.weights)):
        print(f"note: {choice}", file=sys.stderr)
    runtime.use_compilation_cache(config.compilation_cache)
    weights = read_weights(config.weights, ema=config.ema)
    info = weights.info.with_class_names(config.class_names)
    data = config.data.resolve(info.image_size, info.eval_margin, info.interpolation)
    size = data.image_size
    crop = CentreCrop(size, data.eval_margin, data.interpolation or info.interpolation)
    names = names_for(info.num_classes, info.class_names)
    if note := size_note(config.data, info):
        print(f"note: {note}", file=sys.stderr)
    model = ModelConfig(arch=info.architecture, num_classes=info.num_classes)
    predict = make_predict(model, config.precision, weights.variables)

    lines: list[str] = []
    failures = sum(map(is_meant_as_image, map(str, skipped)))
    batch_size = min(config.batch_size, len(paths))
    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        images = np.zeros((batch_size, size, size, 3), np.uint8)
        problems: dict[int, str] = {}
        for row, path in enumerate(batch):
            try:
                images[row] = decode_rgb(path, crop, upright=data.exif_orientation)
            except BadImage as cause:
                problems[row] = str(cause)
        probabilities = predict(images)
        for row, path in enumerate(batch):
            if row in problems:
                failures += 1
                problem = f"can't decode {printable(path)}: {printable(problems[row])}"
                print(f"error: {problem}", file=sys.stderr)
            else:
                best = np.argsort(-probabilities[row], kind="stable")[: config.topk].tolist()
                classes = [
                    {"index": i, "name": names[i], "probability": float(probabilities[row, i])}
                    for i in best
                ]
                lines.append(json.dumps({"image": str(path), "classes": classes}) + "\n")
                print(printable(path))
                for found in classes:
                    print(f"  {100 * found['probability']:5.1f} %  {shown(found['name'])}")
    write_output("--json", config.json, "".join(lines))
    return 1 if failures else 0


def find_images(given: tuple[str, ...]) -> tuple[list[Path], list[Path]]:
    """The named files and the images below the named folders, and the files skipped in the folders.

    Raises:
      UserError: nothing was named, a name does not exist, or a folder has no images or can't be
        listed.
    """
    if not given:
        raise UserError("no image was named: give image files or folders")
    found: list[Path] = []
    skipped: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            images, others = split_pictures(path)
            if not images:
                has = (
                    f"only other files ({count_kinds(map(str, others))})" if others else "no files"
                )
                raise UserError(
                    f"{printable(path)} has no images, {has}: name another folder, or name the "
                    "files themselves"
                )
            found += images
            skipped += others
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{printable(path)} does not exist: check the path")
    return found, skipped


def make_predict(
    model: ModelConfig, precision: Precision, variables: Any
) -> Callable[[np.ndarray], np.ndarray]:
    """A compiled function from (N, H, W, 3) uint8 to probabilities (N, K) float32."""
    network = make_network(model, POLICIES[precision].compute_dtype)
    forward, weights = folded_forward(network, variables, precision)
    weights = place_folded(weights)
    return lambda images: np.asarray(jax.nn.softmax(forward(weights, images)))


if __name__ == "__main__":
    run(main)
