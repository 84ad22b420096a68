"""A small SE-ResNeXt on the handwritten digits, to see a whole run on a laptop's CPU.

python train.py --config configs/digits.py --data.root FOLDER --workspace runs/digits
"""

from seresnext_jax.config import Config, DataConfig, ModelConfig, OptimConfig


def get_config() -> Config:
    """Digits must not be mirrored, and only mild crops keep their shape."""
    return Config(
        model=ModelConfig(arch="se-resnext-tiny", num_classes=10),
        data=DataConfig(
            backend="dali-cpu",
            image_size=32,
            eval_margin=0,
            crop_area=(0.7, 1.0),
            crop_ratio=(0.9, 1.1),
            flip=False,
            workers=2,
        ),
        optim=OptimConfig(lr_per_256=0.32, warmup=2),
        epochs=20,
        batch_size=32,
        label_smoothing=0.1,
    )
