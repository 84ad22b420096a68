"""Training speed without the input pipeline: 100 steps on synthetic images.

    python train.py --config configs/benchmark_training_short.py

NVIDIA publishes no figures for this; the ones in benchmark_training.py include image reading.
"""

from dataclasses import replace

from configs import benchmark_training
from seresnext_jax.config import Config


def get_config() -> Config:
    """One epoch that stops after 100 steps."""
    config = benchmark_training.get_config()
    return replace(config, data=replace(config.data, backend="synthetic"), run_epochs=1, prof=100)
