"""Training speed: 3 epochs of the DGX A100 recipe, nothing evaluated or saved.

    python train.py --config configs/benchmark_training.py --prof 100

NVIDIA's figures, not measured with this project: one A100 80GB 855 img/s, eight 5779 img/s in
mixed precision; 395 and 2991 img/s in TF32 (``--precision tf32``).
"""

from dataclasses import replace

from configs import dgxa100_amp_250e
from seresnext_jax.config import Config


def get_config() -> Config:
    """Three of the 250 epochs; --prof 100 stops each after 100 steps."""
    return replace(
        dgxa100_amp_250e.get_config(),
        run_epochs=3,
        training_only=True,
        no_checkpoints=True,
        print_freq=1,
    )
