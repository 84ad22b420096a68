"""SE-ResNeXt101-32x4d on ImageNet, 90 epochs, FP32: DGX-1, 8 x V100 16GB.

    python train.py --config configs/dgx1v_fp32_90e.py

NVIDIA's figures, not measured with this project:
top-1 79.93 +/- 0.10 %, 1004 img/s in training, ~34 hours.
"""

from configs.base import imagenet
from seresnext_jax.config import Config


def get_config() -> Config:
    """8 x 64 images, 2 forward passes a step; no mixup."""
    return imagenet(
        epochs=90,
        mixup=0.0,
        precision="fp32",
        batch_size=64,
        optimizer_batch_size=1024,
        workers=8,
        prefetch=4,
    )
