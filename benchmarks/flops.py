"""The multiply-adds of a network, counted from its architecture, and the peak FLOP/s of devices."""

from seresnext_jax.config import Precision
from seresnext_jax.model.network import Architecture

_HOPPER: dict[Precision, float] = {"fp16": 989, "bf16": 989, "tf32": 495, "fp32": 67}
_AMPERE: dict[Precision, float] = {"fp16": 312, "bf16": 312, "tf32": 156, "fp32": 19.5}
PEAK_TFLOPS: dict[str, dict[Precision, float]] = {
    "NVIDIA H200": _HOPPER,
    "NVIDIA H100 80GB HBM3": _HOPPER,
    "NVIDIA A100-SXM4-40GB": _AMPERE,
    "NVIDIA A100-SXM4-80GB": _AMPERE,
    "Tesla V100-SXM2-16GB": {"fp16": 125, "fp32": 15.7},
    "Tesla V100-SXM2-32GB": {"fp16": 125, "fp32": 15.7},
    "Tesla T4": {"fp16": 65, "fp32": 8.1},
}
"""Dense peak rate of a device in TFLOP/s, by JAX's name for it, from NVIDIA's data sheets. Other
boards with the same chip are slower."""


def forward_macs(arch: Architecture, *, num_classes: int, image_size: int) -> int:
    """Multiply-adds in the convolutions and linear layers of one image's forward pass.

    A training step needs about three times as many.
    """
    side = _half(image_size)
    macs = side**2 * 7 * 7 * 3 * arch.stem_width
    side = _half(side)
    channels = arch.stem_width
    for stage, (blocks, width) in enumerate(zip(arch.layers, arch.widths, strict=True)):
        out = width * arch.expansion
        for block in range(blocks):
            before = side
            if block == 0 and stage > 0:
                side = _half(side)
            if arch.block == "bottleneck":
                macs += before**2 * channels * width
                macs += side**2 * 9 * width * width // arch.cardinality
                macs += side**2 * width * out
            else:
                macs += side**2 * 9 * channels * width // arch.cardinality
                macs += side**2 * 9 * width * out // arch.cardinality
            if block == 0 and (stage > 0 or channels != out):
                macs += side**2 * channels * out
            if arch.squeeze is not None:
                macs += 2 * out * arch.squeeze
            channels = out
    return macs + channels * num_classes


def _half(side: int) -> int:
    return (side + 1) // 2
