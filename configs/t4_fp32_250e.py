"""SE-ResNeXt101-32x4d on ImageNet, 250 epochs, FP32: 8 x T4.

    python train.py --config configs/t4_fp32_250e.py

NVIDIA's figures, not measured with this project: none for training on this GPU;
inference with one T4 and batches of 64: 171 img/s.
"""

from configs.base import recipe

get_config = recipe("t4_fp32", epochs=250)
