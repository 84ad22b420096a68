"""Name what is on pictures: ``python classify.py --weights WEIGHTS IMAGE_OR_FOLDER ...``.

Any image that Pillow opens, in the preprocessing of evaluation; folders are searched for images.
Two of ImageNet's 1,000 names are the same (crane): ``--json FILE`` has each class's index, too.
``--weights`` takes what eval.py takes.
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

from seresnext_jax.cli import check_output, parse, run, write_output
from seresnext_jax.config import Config, ModelConfig, Precision, Range, SizesOfWeights
from seresnext_jax.data.class_names import choose_names, names_for
from seresnext_jax.data.images import BadImage, open_rgb
from seresnext_jax.data.pictures import pictures_below
from seresnext_jax.data.transform import CentreCrop
from seresnext_jax.errors import UserError, shown
from seresnext_jax.model.network import make_network
from seresnext_jax.run import runtime
from seresnext_jax.training.inference import folded_forward, place_folded
from seresnext_jax.training.precision import POLICIES
from seresnext_jax.weights.info import size_note
from seresnext_jax.weights.read import read_weights


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
    """fp32, tf32, bf16 or fp16."""
    batch_size: Annotated[int, Range(1, 10**6)] = 16
    """Images per forward pass."""
    data: SizesOfWeights = field(default_factory=SizesOfWeights)
    ema: bool = False
    """Use the moving average that is stored beside the weights."""
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
    """Run the program; returns 1 if an image could not be read, else 0."""
    config = parse(ClassifyConfig(), argv, program="classify.py", description=__doc__ or "")
    if not config.weights:
        raise UserError("--weights is missing: name a checkpoint, weights folder or PyTorch file")
    check_output("--json", config.json)
    paths = find_images(config.images)
    runtime.use_compilation_cache(config.compilation_cache)
    weights = read_weights(config.weights, ema=config.ema)
    info = weights.info
    data = config.data.resolve(info.image_size, info.eval_margin)
    size = data.image_size
    crop = CentreCrop(size, data.eval_margin)
    named = choose_names(config.class_names, info.class_names, info.num_classes)
    names = names_for(info.num_classes, named)
    if note := size_note(config.data, info):
        print(f"note: {note}", file=sys.stderr)
    model = ModelConfig(arch=info.architecture, num_classes=info.num_classes)
    predict = make_predict(model, config.precision, weights.variables)

    lines: list[str] = []
    failures = 0
    batch_size = min(config.batch_size, len(paths))
    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        images = np.zeros((batch_size, size, size, 3), np.uint8)
        problems: dict[int, str] = {}
        for row, path in enumerate(batch):
            try:
                images[row] = crop(open_rgb(path))
            except BadImage as cause:
                problems[row] = str(cause)
        probabilities = predict(images)
        for row, path in enumerate(batch):
            if row in problems:
                failures += 1
                print(f"error: can't decode {path}: {problems[row]}", file=sys.stderr)
            else:
                best = np.argsort(-probabilities[row], kind="stable")[: config.topk].tolist()
                classes = [
                    {"index": i, "name": names[i], "probability": float(probabilities[row, i])}
                    for i in best
                ]
                lines.append(json.dumps({"image": str(path), "classes": classes}) + "\n")
                print(path)
                for found in classes:
                    print(f"  {100 * found['probability']:5.1f} %  {shown(found['name'])}")
    write_output("--json", config.json, "".join(lines))
    return 1 if failures else 0


def find_images(given: tuple[str, ...]) -> list[Path]:
    """The named files, and the images below the named folders in sorted order.

    Raises:
      UserError: nothing was named, or a name does not exist, or a folder has no images.
    """
    if not given:
        raise UserError("no image was named: give image files or folders")
    found: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            images = pictures_below(path)
            if not images:
                raise UserError(f"{path} has no images: name another folder")
            found += images
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{path} does not exist: check the path")
    return found


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
