"""SE-ResNeXt101-32x4d on ImageNet, 90 epochs, mixed precision (fp16): DGX A100, 8 x A100 80GB.

    python train.py --config configs/dgxa100_amp_90e.py

NVIDIA's figures, not measured with this project:
top-1 80.03 +/- 0.11 %, 5779 img/s in training, ~6 hours.
"""

from configs.base import imagenet
from seresnext_jax.config import Config


def get_config() -> Config:
    """8 x 128 images; no mixup."""
    return imagenet(
        epochs=90,
        mixup=0.0,
        precision="fp16",
        batch_size=128,
        optimizer_batch_size=1024,
        workers=10,
        prefetch=4,
    )
