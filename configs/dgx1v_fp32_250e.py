"""SE-ResNeXt101-32x4d on ImageNet, 250 epochs, FP32: DGX-1, 8 x V100 16GB.

    python train.py --config configs/dgx1v_fp32_250e.py

NVIDIA's figures, not measured with this project:
top-1 80.97 +/- 0.09 %, 1004 img/s in training, about 89 hours at that rate (no published time).
"""

from configs.base import imagenet
from seresnext_jax.config import Config


def get_config() -> Config:
    """8 x 64 images, 2 forward passes a step; mixup 0.2."""
    return imagenet(
        epochs=250,
        mixup=0.2,
        precision="fp32",
        batch_size=64,
        optimizer_batch_size=1024,
        workers=8,
        prefetch=4,
    )
