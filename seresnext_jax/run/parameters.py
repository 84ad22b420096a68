"""The options that the report records, under this project's names and the original's names."""

from typing import Any

from seresnext_jax.config import Config, flatten
from seresnext_jax.plan import Plan
from seresnext_jax.training.optimizer import DEFAULT_EPS


def report_parameters(config: Config, plan: Plan) -> dict[str, Any]:
    """Every option by its path, ``optim.lr``; those of the original also by its name, ``lr``.

    The original's names have the values that the run uses, also where both names are the same:
    ``optimizer_batch_size`` is the number of images per step, even if the option is -1.
    """
    return flatten(config) | original_parameters(config, plan)


def original_parameters(config: Config, plan: Plan) -> dict[str, Any]:
    """The options of the original's main.py that have a counterpart here, in its spelling."""
    data, optim = config.data, config.optim
    return {
        "data": data.root,
        "data_backend": "pytorch" if data.backend == "folder" else data.backend,
        "interpolation": data.interpolation,
        "arch": config.model.arch,
        "workers": data.workers,
        "prefetch": data.prefetch,
        "epochs": plan.epochs,
        "run_epochs": config.run_epochs,
        "early_stopping_patience": config.early_stopping_patience,
        "image_size": data.image_size,
        "batch_size": plan.batch_size,
        "optimizer_batch_size": plan.global_batch,
        "lr": plan.lr,
        "lr_schedule": optim.lr_schedule,
        "end_lr": optim.end_lr,
        "warmup": optim.warmup,
        "augmentation": None if data.augmentation == "none" else data.augmentation,
        "label_smoothing": config.label_smoothing,
        "mixup": config.mixup,
        "optimizer": optim.optimizer,
        "momentum": optim.momentum,
        "weight_decay": optim.weight_decay,
        "bn_weight_decay": optim.decay_mask == "all",
        "nesterov": optim.nesterov,
        "rmsprop_alpha": optim.rmsprop_alpha,
        "rmsprop_eps": DEFAULT_EPS["rmsprop"] if optim.eps is None else optim.eps,
        "print_freq": config.print_freq,
        "resume": config.resume or None,
        "static_loss_scale": config.loss_scale.init if config.precision == "fp16" else 1.0,
        "prof": config.prof,
        "amp": config.precision in ("fp16", "bf16"),
        "seed": config.seed,
        "raport_file": config.raport_file,
        "evaluate": config.evaluate,
        "training_only": config.training_only,
        "save_checkpoints": not config.no_checkpoints,
        "workspace": config.workspace,
        "memory_format": "nhwc",
        "use_ema": config.use_ema,
        "topk": config.topk,
    }
