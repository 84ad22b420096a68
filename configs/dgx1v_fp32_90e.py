"""SE-ResNeXt101-32x4d on ImageNet, 90 epochs, FP32: DGX-1, 8 x V100 16GB.

    python train.py --config configs/dgx1v_fp32_90e.py

NVIDIA's figures, not measured with this project:
top-1 79.93 +/- 0.10 %, 1004 img/s in training, ~34 hours.
"""

from configs.base import recipe

get_config = recipe("dgx1v_fp32", epochs=90)
