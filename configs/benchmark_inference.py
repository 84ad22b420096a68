"""Inference speed: one evaluation with the DGX A100 settings, nothing saved, every step printed.

    python train.py --config configs/benchmark_inference.py --prof 100

NVIDIA's figures, not measured with this project: one V100 16GB, batches of 128, 1533 img/s in
mixed precision and 501 img/s in FP32; one T4 525 and 165 img/s. None for the A100.
"""

from dataclasses import replace

from configs import dgxa100_amp_250e
from seresnext_jax.config import Config


def get_config() -> Config:
    """Evaluate once; --prof 100 stops after 100 steps."""
    return replace(dgxa100_amp_250e.get_config(), evaluate=True, no_checkpoints=True, print_freq=1)
