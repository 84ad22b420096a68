"""SE-ResNeXt101-32x4d on ImageNet, 90 epochs, mixed precision (fp16): 8 x T4.

    python train.py --config configs/t4_amp_90e.py

NVIDIA's figures, not measured with this project: none for training on this GPU;
inference with one T4 and batches of 128: 525 img/s.
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
        workers=8,
        prefetch=2,
    )
