"""SE-ResNeXt101-32x4d on ImageNet, 250 epochs, mixed precision (fp16): DGX A100, 8 x A100 80GB.

    python train.py --config configs/dgxa100_amp_250e.py

NVIDIA's figures, not measured with this project:
top-1 80.90 +/- 0.08 %, 5779 img/s in training, about 15 hours at that rate (no published time).
"""

from configs.base import imagenet
from seresnext_jax.config import Config


def get_config() -> Config:
    """8 x 128 images; mixup 0.2."""
    return imagenet(
        epochs=250,
        mixup=0.2,
        precision="fp16",
        batch_size=128,
        optimizer_batch_size=1024,
        workers=10,
        prefetch=4,
    )
