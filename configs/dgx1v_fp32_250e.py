"""SE-ResNeXt101-32x4d on ImageNet, 250 epochs, FP32: DGX-1, 8 x V100 16GB.

    python train.py --config configs/dgx1v_fp32_250e.py

NVIDIA's figures, not measured with this project:
top-1 80.97 +/- 0.09 %, 1004 img/s in training, about 89 hours at that rate (no published time).
"""

from configs.base import recipe

get_config = recipe("dgx1v_fp32", epochs=250)
