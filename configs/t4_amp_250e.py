"""SE-ResNeXt101-32x4d on ImageNet, 250 epochs, mixed precision (fp16): 8 x T4.

    python train.py --config configs/t4_amp_250e.py

NVIDIA's figures, not measured with this project: none for training on this GPU;
inference with one T4 and batches of 128: 525 img/s.
"""

from configs.base import recipe

get_config = recipe("t4_amp", epochs=250)
