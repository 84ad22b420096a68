"""SE-ResNeXt101-32x4d on ImageNet, 250 epochs, mixed precision (fp16): DGX-1, 8 x V100 16GB.

    python train.py --config configs/dgx1v_amp_250e.py

NVIDIA's figures, not measured with this project:
top-1 80.92 +/- 0.09 %, 2971 img/s in training, about 30 hours at that rate (no published time).
"""

from configs.base import recipe

get_config = recipe("dgx1v_amp", epochs=250)
