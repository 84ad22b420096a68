"""The original's recipes on ImageNet as one table, and their names.

The source is NVIDIA's configs.yml; the dataset is in /imagenet as in its scripts. Two entries
differ here:

- The learning rate follows the optimizer batch: 0.256 for each 256 images is the original's 1.024
  at 1024, and likewise for every other batch.
- The original's configs.yml reads with Pillow (its ``pytorch`` backend), and its README recommends
  ``dali-cpu`` for both DGX platforms. Every backend here resizes as Pillow does, so the recipes use
  ``dali-cpu``.
"""

from collections.abc import Callable

from seresnext_jax.config import Config, DataConfig, ModelConfig, OptimConfig, Precision

RECIPES: dict[str, dict[str, tuple[Precision, int, int]]] = {
    # machine         precision  batch  optimizer batch
    "se-resnext101-32x4d": {
        "dgxa100_amp": ("fp16", 128, 1024),
        "dgxa100_tf32": ("tf32", 128, 1024),
        "dgx1v_amp": ("fp16", 112, 896),
        "dgx1v_fp32": ("fp32", 64, 1024),
        "t4_amp": ("fp16", 128, 1024),
        "t4_fp32": ("fp32", 64, 1024),
    },
    "resnext101-32x4d": {
        "dgxa100_amp": ("fp16", 128, 1024),
        "dgxa100_tf32": ("tf32", 128, 1024),
        "dgx1v_amp": ("fp16", 128, 1024),
        "dgx1v_fp32": ("fp32", 64, 1024),
        "t4_amp": ("fp16", 128, 1024),
        "t4_fp32": ("fp32", 64, 1024),
    },
    "resnet50": {
        "dgxa100_amp": ("fp16", 256, 2048),
        "dgxa100_tf32": ("tf32", 256, 2048),
        "dgx1v_amp": ("fp16", 256, 2048),
        "dgx1v_fp32": ("fp32", 112, 896),
        "dgx2v_amp": ("fp16", 256, 4096),
        "dgx2v_fp32": ("fp32", 256, 4096),
        "t4_amp": ("fp16", 256, 2048),
        "t4_fp32": ("fp32", 128, 2048),
    },
}
"""For eight devices; a DGX-2 (dgx2v) has sixteen. An optimizer batch above devices x batch takes
several forward passes per step."""
READING = {"dgxa100": (10, 4), "dgx1v": (8, 4), "dgx2v": (8, 4), "t4": (8, 2)}
"""Workers and prefetch of each machine."""
WEIGHT_DECAY = {896: 2.0**-14, 1024: 2.0**-14, 2048: 2.0**-15, 4096: 2.0**-15}
"""By the optimizer batch."""
MIXUP = {90: 0.0, 250: 0.2}
"""The strength of mixup, by the number of epochs."""


def recipe(name: str, *, epochs: int, arch: str = "se-resnext101-32x4d") -> Callable[[], Config]:
    """The ``get_config`` of a row of the table, for one of the two lengths."""
    precision, batch_size, optimizer_batch_size = RECIPES[arch][name]
    workers, prefetch = READING[name.partition("_")[0]]

    def get_config() -> Config:
        return Config(
            model=ModelConfig(arch=arch, num_classes=1000, conv_init="fan_in"),
            data=DataConfig(
                root="/imagenet",
                backend="dali-cpu",
                image_size=224,
                workers=workers,
                prefetch=prefetch,
            ),
            optim=OptimConfig(
                lr_per_256=0.256,
                momentum=0.875,
                weight_decay=WEIGHT_DECAY[optimizer_batch_size],
                lr_schedule="cosine",
                warmup=8,
            ),
            epochs=epochs,
            batch_size=batch_size,
            optimizer_batch_size=optimizer_batch_size,
            precision=precision,
            label_smoothing=0.1,
            mixup=MIXUP[epochs],
            print_freq=20,
        )

    return get_config


NAMED: dict[str, Callable[[], Config]] = {
    f"{arch}/{name}_{epochs}e": recipe(name, epochs=epochs, arch=arch)
    for arch, rows in RECIPES.items()
    for name in rows
    for epochs in MIXUP
}
"""Every row and length by the name that ``--config`` takes: ``resnet50/dgxa100_amp_90e``."""
