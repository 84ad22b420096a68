"""SE-ResNeXt101-32x4d on ImageNet, 90 epochs, TF32: DGX A100, 8 x A100 80GB.

    python train.py --config configs/dgxa100_tf32_90e.py

NVIDIA's figures, not measured with this project:
top-1 79.92 +/- 0.07 %, 2991 img/s in training, ~12 hours.
"""

from configs.base import recipe

get_config = recipe("dgxa100_tf32", epochs=90)
