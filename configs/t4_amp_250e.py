"""SE-ResNeXt101-32x4d on ImageNet, 250 epochs, mixed precision (fp16): 8 x T4.

    python train.py --config configs/t4_amp_250e.py

NVIDIA's figures, not measured with this project: none for training on this GPU;
inference with one T4 and batches of 128: 525 img/s.
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
        workers=8,
        prefetch=2,
    )
