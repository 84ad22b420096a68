"""Fine-tune on your own classes in a loop of your own, and save weights that every program reads.

    python examples/training_loop.py WEIGHTS FOLDER OUT

FOLDER contains one folder of images for each class. train.py does more: augmentation, several
devices, accumulation, evaluation, checkpoints.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from seresnext_jax import load_weights, normalize

STEPS, BATCH, LEARNING_RATE = 60, 32, 0.05


def main(weights: str, folder: str, out: str) -> None:
    """Train for STEPS steps and save the weights."""
    classes = sorted(path.name for path in Path(folder).iterdir() if path.is_dir())
    files = [(path, i) for i, name in enumerate(classes) for path in Path(folder, name).iterdir()]
    model = load_weights(weights).with_classes(classes)
    optimizer = optax.sgd(LEARNING_RATE, momentum=0.9)

    def loss(params: Any, batch_stats: Any, pixels: Any, labels: Any) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": batch_stats}
        logits, changed = model.network.apply(
            variables, normalize(pixels), train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), changed["batch_stats"]

    @jax.jit
    def step(variables: Any, state: Any, pixels: Any, labels: Any) -> tuple[Any, Any, jax.Array]:
        params, batch_stats = variables["params"], variables["batch_stats"]
        value_and_gradients = jax.value_and_grad(loss, has_aux=True)
        (value, batch_stats), gradients = value_and_gradients(params, batch_stats, pixels, labels)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        return {"params": params, "batch_stats": batch_stats}, state, value

    variables = model.variables
    state = optimizer.init(variables["params"])
    generator = np.random.default_rng(0)
    for i in range(STEPS):
        chosen = [files[j] for j in generator.integers(len(files), size=BATCH)]
        pixels = model.preprocess(*(path for path, _ in chosen))
        labels = np.array([label for _, label in chosen])
        variables, state, value = step(variables, state, pixels, labels)
        if i % 10 == 0 or i == STEPS - 1:
            print(f"step {i:2}  loss {value:.3f}", flush=True)
    replace(model, variables=variables).save(out)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
