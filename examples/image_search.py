"""Find the images of a folder that look like a given one.

    python examples/image_search.py WEIGHTS FOLDER IMAGE

Two images are similar if the cosine of their embeddings is near 1.
"""

import sys
from pathlib import Path

import numpy as np

from seresnext_jax import Model, load_weights

BATCH = 32
SHOWN = 5
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def embed_files(model: Model, paths: list[Path]) -> np.ndarray:
    """Embeddings of length 1, one row for each file."""
    rows = []
    for start in range(0, len(paths), BATCH):
        pixels = model.preprocess(*paths[start : start + BATCH])
        missing = min(BATCH, len(paths)) - len(pixels)  # one shape, so that JAX compiles once
        padded = np.pad(pixels, ((0, missing), (0, 0), (0, 0), (0, 0)))
        rows.append(np.asarray(model.embed(padded))[: len(pixels)])
    vectors = np.concatenate(rows)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main(weights: str, folder: str, image: str) -> None:
    """Print the files that are most similar to the image."""
    model = load_weights(weights)
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        sys.exit(f"{folder} has no images: {', '.join(sorted(SUFFIXES))}")
    similarity = embed_files(model, paths) @ embed_files(model, [Path(image)])[0]
    for i in np.argsort(-similarity, kind="stable")[:SHOWN].tolist():
        print(f"{similarity[i]:.3f}  {paths[i]}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
