"""Writes the 1,797 handwritten digits of scikit-learn as JPEG folders: real data, no download."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32
"""Width and height in pixels; the scans are 8 × 8."""
_VAL_SHARE = 0.2
_SEED = 0


def write_digits(folder: Path) -> None:
    """Write train/<digit>/*.jpg and val/<digit>/*.jpg unless an earlier call wrote all of them.

    A fifth of each digit's images, chosen with a fixed seed, goes to val.
    """
    done = folder / ".complete"
    if done.exists():
        return
    from sklearn.datasets import load_digits

    digits = load_digits()
    generator = np.random.default_rng(_SEED)
    for label in range(10):
        members = generator.permutation(np.flatnonzero(digits.target == label))
        num_val = round(len(members) * _VAL_SHARE)
        for rank, index in enumerate(members.tolist()):
            split = "val" if rank < num_val else "train"
            target = folder / split / str(label) / f"{index:04}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            grey = Image.fromarray((digits.images[index] * (255 / 16)).round().astype(np.uint8))
            grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(target, quality=95)
    done.touch()


def main() -> None:
    """Write the digits into the folder that the command line names."""
    parser = argparse.ArgumentParser("python -m seresnext_jax.data.digits", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder that gets train/ and val/")
    folder = parser.parse_args().folder
    try:
        write_digits(folder)
    except ModuleNotFoundError as error:
        parser.error(f"{error}: pip install scikit-learn")
    except OSError as error:
        parser.error(f"can't write to {folder} ({error.strerror}): name another folder")
    print(f"{folder}: 1,797 images in train/ and val/")


if __name__ == "__main__":
    main()
