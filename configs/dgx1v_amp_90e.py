"""SE-ResNeXt101-32x4d on ImageNet, 90 epochs, mixed precision (fp16): DGX-1, 8 x V100 16GB.

    python train.py --config configs/dgx1v_amp_90e.py

NVIDIA's figures, not measured with this project:
top-1 80.04 +/- 0.07 %, 2971 img/s in training, ~12 hours.
"""

from configs.base import imagenet
from seresnext_jax.config import Config


def get_config() -> Config:
    """8 x 112 images; no mixup."""
    return imagenet(
        epochs=90,
        mixup=0.0,
        precision="fp16",
        batch_size=112,
        optimizer_batch_size=896,
        workers=8,
        prefetch=4,
    )
