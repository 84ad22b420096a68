"""A feature pyramid for detection: stage outputs of an image in its own size, merged top-down.

    python examples/detection_features.py WEIGHTS IMAGE

The pyramid's own weights are random here; a detector trains them, with or without the network.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from seresnext_jax import Model, load_weights

CHANNELS = 256
STRIDES = {"layer2": 8, "layer3": 16, "layer4": 32}

Weights = dict[str, jax.Array]


def init_pyramid(stages: dict[str, jax.Array]) -> Weights:
    """Kernels of random 1×1 convolutions from each stage's channels to CHANNELS."""
    keys = jax.random.split(jax.random.key(0), len(stages))
    draws = zip(keys, stages.items(), strict=True)
    return {
        name: jax.random.normal(key, (x.shape[-1], CHANNELS)) / x.shape[-1] ** 0.5
        for key, (name, x) in draws
    }


def pyramid(weights: Weights, stages: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Each stage projected to CHANNELS, plus the enlarged level of the next deeper stage."""
    levels: dict[str, jax.Array] = {}
    deeper: jax.Array | None = None
    for name in reversed(STRIDES):
        level = stages[name] @ weights[name]
        if deeper is not None:
            level += jax.image.resize(deeper, level.shape, "nearest")
        levels[name] = deeper = level
    return levels


def main(weights: str, image: str) -> None:
    """Print the shapes of the stages and of the pyramid's levels."""
    model: Model = load_weights(weights)
    picture = Image.open(image).convert("RGB")
    width, height = (max(1, round(s / 32)) * 32 for s in picture.size)  # so that the levels fit
    pixels = np.asarray(picture.resize((width, height)))[None]

    stages = model.features(pixels, tuple(STRIDES))
    levels = jax.jit(pyramid)(init_pyramid(stages), stages)
    for name, stride in STRIDES.items():
        assert levels[name].shape[1:3] == (height // stride, width // stride)
        mean = float(jnp.abs(levels[name]).mean())
        print(f"{name}  stride {stride:2}  stage {stages[name].shape}  ", end="")
        print(f"level {levels[name].shape}  mean |x| {mean:.3f}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
