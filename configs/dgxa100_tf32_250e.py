"""SE-ResNeXt101-32x4d on ImageNet, 250 epochs, TF32: DGX A100, 8 x A100 80GB.

    python train.py --config configs/dgxa100_tf32_250e.py

NVIDIA's figures, not measured with this project:
top-1 80.98 +/- 0.07 %, 2991 img/s in training, about 30 hours at that rate (no published time).
"""

from configs.base import recipe

get_config = recipe("dgxa100_tf32", epochs=250)
