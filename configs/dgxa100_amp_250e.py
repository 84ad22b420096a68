"""SE-ResNeXt101-32x4d on ImageNet, 250 epochs, mixed precision (fp16): DGX A100, 8 x A100 80GB.

    python train.py --config configs/dgxa100_amp_250e.py

NVIDIA's figures, not measured with this project:
top-1 80.90 +/- 0.08 %, 5779 img/s in training, about 15 hours at that rate (no published time).
"""

from configs.base import recipe

get_config = recipe("dgxa100_amp", epochs=250)
