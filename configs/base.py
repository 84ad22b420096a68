"""What every ImageNet recipe of SE-ResNeXt101-32x4d shares.

NVIDIA: configs.yml, and the dataset at /imagenet as in its scripts. Two entries differ here:

- The learning rate follows the optimizer batch: 0.256 for each 256 images is the original's 1.024
  at 1024 and 0.896 at 896.
- The original's configs.yml reads with Pillow (its ``pytorch`` backend), and its README recommends
  ``dali-cpu`` for both DGX platforms. Every backend here resizes as Pillow does, so the recipes use
  ``dali-cpu``.
"""

from seresnext_jax.config import Config, DataConfig, ModelConfig, OptimConfig, Precision


def imagenet(
    *,
    epochs: int,
    mixup: float,
    precision: Precision,
    batch_size: int,
    optimizer_batch_size: int,
    workers: int,
    prefetch: int,
) -> Config:
    """The recipe with what differs between platforms, precisions and lengths filled in."""
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
        mixup=mixup,
        print_freq=20,
    )
