"""SE-ResNeXt101-32x4d on ImageNet, 90 epochs, mixed precision (fp16): DGX-1, 8 x V100 16GB.

    python train.py --config configs/dgx1v_amp_90e.py

NVIDIA's figures, not measured with this project:
top-1 80.04 +/- 0.07 %, 2971 img/s in training, ~12 hours.
"""

from configs.base import recipe

get_config = recipe("dgx1v_amp", epochs=90)
