"""The handwritten digits with a network of one block, which compiles in seconds.

For what no network changes: signals, checkpoints, processes. A config file is Python, so it may add
a row to the table of architectures.
"""

from dataclasses import replace

from configs import digits
from seresnext_jax.config import Config
from seresnext_jax.model.network import ARCHITECTURES, Architecture

NAME = "one-block"
ARCHITECTURE = Architecture("bottleneck", (1, 0, 0, 0), (64, 64, 64, 64), 2, 4, squeeze=4)


def get_config() -> Config:
    """`configs/digits.py` with another network."""
    ARCHITECTURES[NAME] = ARCHITECTURE  # not on import: other tests read the table
    config = digits.get_config()
    return replace(config, model=replace(config.model, arch=NAME))
