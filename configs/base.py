"""The original's recipes for SE-ResNeXt101-32x4d on ImageNet, as one table.

The source is NVIDIA's configs.yml; the dataset is in /imagenet as in its scripts. Two entries
differ here:

- The learning rate follows the optimizer batch: 0.256 for each 256 images is the original's 1.024
  at 1024 and 0.896 at 896.
- The original's configs.yml reads with Pillow (its ``pytorch`` backend), and its README recommends
  ``dali-cpu`` for both DGX platforms. Every backend here resizes as Pillow does, so the recipes use
  ``dali-cpu``.
"""

from collections.abc import Callable

from seresnext_jax.config import Config, DataConfig, ModelConfig, OptimConfig, Precision

RECIPES: dict[str, tuple[Precision, int, int, int, int]] = {
    # machine     precision  batch  optimizer batch  workers  prefetch
    "dgxa100_amp": ("fp16", 128, 1024, 10, 4),
    "dgxa100_tf32": ("tf32", 128, 1024, 10, 4),
    "dgx1v_amp": ("fp16", 112, 896, 8, 4),
    "dgx1v_fp32": ("fp32", 64, 1024, 8, 4),
    "t4_amp": ("fp16", 128, 1024, 8, 2),
    "t4_fp32": ("fp32", 64, 1024, 8, 2),
}
"""For eight devices. An optimizer batch above 8 x batch takes two forward passes per step."""
MIXUP = {90: 0.0, 250: 0.2}
"""The strength of mixup, by the number of epochs."""


def recipe(name: str, *, epochs: int) -> Callable[[], Config]:
    """The ``get_config`` of a row of the table, for one of the two lengths."""
    precision, batch_size, optimizer_batch_size, workers, prefetch = RECIPES[name]

    def get_config() -> Config:
        return Config(
            model=ModelConfig(arch="se-resnext101-32x4d", num_classes=1000, conv_init="fan_in"),
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
                weight_decay=6.103515625e-05,
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
