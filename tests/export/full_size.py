"""Exports the full-size network and compares what the files compute with our own logits.

    python -m tests.export.full_size [fp32|fp16|bf16] [FILE]

FILE is m.onnx or m.stablehlo; without it both formats are compared. No test runs this, because the
compilations take minutes. The weights are like trained ones, because random ones enlarge rounding
errors so much that an export is refused.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seresnext_jax.export import onnx_file, stablehlo
from seresnext_jax.export.export import export_weights
from seresnext_jax.export.exported_network import own_logits
from seresnext_jax.weights.info import Weights
from seresnext_jax.weights.state_dict import from_state_dict
from tests.reference import torch_model

ARCHITECTURE, SIZE = "se-resnext101-32x4d", 224
BATCHES = (1, 3, 8)
RUN = {"m.onnx": onnx_file.run_onnx, "m.stablehlo": stablehlo.run_stablehlo}


def trained_like() -> Weights:
    """Weights of 1,000 classes in which no two channels are alike."""
    with torch.no_grad():
        model = torch_model.ResNet(torch_model.ARCHITECTURES[ARCHITECTURE])
        torch_model.randomize_like_trained(model, seed=0, image_size=SIZE)
    return from_state_dict({k: x.numpy() for k, x in model.state_dict().items()}, source="model")


def main(precision: Any = "fp32", *names: str) -> None:
    """Print the largest difference of each file and batch size."""
    weights = trained_like()
    pixels = np.random.default_rng(1).integers(0, 256, (max(BATCHES), SIZE, SIZE, 3), np.uint8)
    own = own_logits(weights, pixels)
    print(f"{ARCHITECTURE}, {precision}; the largest logit is {np.abs(own).max():.3g}", flush=True)
    for name in names or RUN:
        with tempfile.TemporaryDirectory() as folder:
            file = export_weights(weights, Path(folder, name), precision)
            for images in BATCHES:
                found = RUN[name](file.path.read_bytes(), pixels[:images])
                difference = np.abs(found - own[:images]).max()
                same = (found.argmax(1) == own[:images].argmax(1)).sum()
                print(
                    f"{name} by {file.runtime}, {images} images: {difference:.2e}, "
                    f"{difference / np.abs(own).max():.1e} of the largest logit; "
                    f"{same} of {images} in the same class",
                    flush=True,
                )


if __name__ == "__main__":
    main(*sys.argv[1:])
