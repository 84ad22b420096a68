"""The options in the report under the original's names."""

from configs import dgxa100_amp_90e
from seresnext_jax.plan import resolve
from seresnext_jax.run.parameters import report_parameters


def test_a_recipe_is_recorded_as_the_original_records_it() -> None:
    """On two devices, so that the numbers of a step are derived."""
    config = dgxa100_amp_90e.get_config()
    plan = resolve(config, num_images=1_281_167, num_devices=2)
    found = report_parameters(config, plan)
    original = {
        "arch": "se-resnext101-32x4d",
        "lr": 1.024,
        "amp": True,
        "static_loss_scale": 128.0,
        "batch_size": 128,
        "optimizer_batch_size": 1024,
        "epochs": 90,
        "warmup": 8,
        "lr_schedule": "cosine",
        "momentum": 0.875,
        "weight_decay": 6.103515625e-05,
        "bn_weight_decay": False,
        "label_smoothing": 0.1,
        "mixup": 0.0,
        "optimizer": "sgd",
        "rmsprop_alpha": 0.9,
        "rmsprop_eps": 1e-3,
        "print_freq": 20,
        "save_checkpoints": True,
        "memory_format": "nhwc",
        "image_size": 224,
        "topk": 5,
    }
    assert {name: found[name] for name in original} == original
    assert found["model.num_classes"] == 1000
    assert found["optim.lr_per_256"] == 0.256 and found["optim.lr"] is None
