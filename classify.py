"""Name what is on pictures: ``python classify.py --weights WEIGHTS IMAGE_OR_FOLDER ...``.

Any image that Pillow opens, in the preprocessing of evaluation; folders are searched for images.
Two of ImageNet's 1,000 names are the same (crane): ``--json`` gives the class's index, too.
``--weights`` takes what eval.py takes.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from seresnext_jax.cli import parse, run
from seresnext_jax.config import Config, ModelConfig, Precision
from seresnext_jax.data.class_names import names_for
from seresnext_jax.data.folder import BadImage, Transform, open_rgb
from seresnext_jax.data.pictures import pictures_below
from seresnext_jax.errors import UserError, shown
from seresnext_jax.run import runtime
from seresnext_jax.training.setup import folded_forward, make_network, place_folded
from seresnext_jax.weights.read import read_weights


@dataclass(frozen=True)
class ClassifyConfig:
    """The options of classify.py."""

    images: tyro.conf.Positional[tuple[str, ...]] = ()
    """Image files, and folders of them."""
    weights: str = ""
    """A checkpoint, a weights folder, or a PyTorch file."""
    topk: int = 5
    """Classes named for each image."""
    precision: Precision = "fp32"
    """fp32, tf32, bf16 or fp16."""
    batch_size: int = 16
    """Images per forward pass."""
    image_size: int = 0
    """Side of the square the network sees, in pixels; 0: that of the weights."""
    eval_margin: int = -1
    """The shorter side is resized to image_size + this; -1: as the weights were evaluated."""
    ema: bool = False
    """Use the moving average that the weights' file holds."""
    compilation_cache: str = Config.compilation_cache
    """Folder of JAX's persistent compilation cache; empty: none."""
    json: bool = False
    """Print one JSON object per image instead of text."""
    debug: bool = False
    """Show the traceback of an error."""


def main(argv: list[str]) -> int:
    """Run the program; returns 1 if an image could not be read, else 0."""
    config = parse(ClassifyConfig(), argv, program="classify.py", description=__doc__ or "")
    if not config.weights:
        raise UserError("--weights is missing: name a checkpoint, weights folder or PyTorch file")
    if config.topk < 1 or config.batch_size < 1:
        raise UserError("--topk and --batch-size take numbers from 1 on")
    paths = find_images(config.images)
    runtime.use_compilation_cache(config.compilation_cache)
    weights = read_weights(config.weights, ema=config.ema)
    info = weights.info
    size = config.image_size or info.image_size
    transform = Transform(
        split="val",
        image_size=size,
        eval_margin=info.eval_margin if config.eval_margin < 0 else config.eval_margin,
        crop_area=(1.0, 1.0),
        crop_ratio=(1.0, 1.0),
        flip=False,
    )
    names = names_for(info.num_classes, info.class_names)
    model = ModelConfig(arch=info.architecture, num_classes=info.num_classes)
    predict = make_predict(Config(model=model, precision=config.precision), weights.variables)

    failures = 0
    batch_size = min(config.batch_size, len(paths))
    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        images = np.zeros((batch_size, size, size, 3), np.uint8)
        problems: dict[int, str] = {}
        for row, path in enumerate(batch):
            try:
                images[row] = transform(open_rgb(path), np.zeros(0))
            except BadImage as cause:
                problems[row] = str(cause)
        probabilities = predict(images)
        for row, path in enumerate(batch):
            if row in problems:
                failures += 1
                print(f"error: can't decode {path}: {problems[row]}", file=sys.stderr)
            else:
                print_result(path, probabilities[row], names, config)
    return 1 if failures else 0


def find_images(given: tuple[str, ...]) -> list[Path]:
    """The named files, and the images below the named folders in sorted order.

    Raises:
      UserError: nothing was named, or a name does not exist, or a folder holds no image.
    """
    if not given:
        raise UserError("no image was named: give image files or folders")
    found: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            images = pictures_below(path)
            if not images:
                raise UserError(f"{path} holds no image: name another folder")
            found += images
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{path} does not exist: check the path")
    return found


def make_predict(config: Config, variables: Any) -> Callable[[np.ndarray], np.ndarray]:
    """A compiled function from (N, H, W, 3) uint8 to probabilities (N, K) float32."""
    forward, weights = folded_forward(make_network(config), variables, config.precision)
    weights = place_folded(weights)
    return lambda images: np.asarray(jax.nn.softmax(forward(weights, images)))


def print_result(
    path: Path, probabilities: np.ndarray, names: tuple[str, ...], config: ClassifyConfig
) -> None:
    """Print the most probable classes of one image."""
    best = np.argsort(-probabilities, kind="stable")[: config.topk]
    if config.json:
        classes = [
            {"index": int(i), "name": names[i], "probability": float(probabilities[i])}
            for i in best
        ]
        print(json.dumps({"image": str(path), "classes": classes}))
        return
    print(path)
    for i in best:
        print(f"  {100 * probabilities[i]:5.1f} %  {shown(names[i])}")


if __name__ == "__main__":
    run(main)
