"""Converts complete training states: a checkpoint of the original ↔ one that train.py resumes."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from seresnext_jax.checkpoint.meta import Meta, Progress
from seresnext_jax.checkpoint.save import Checkpoints
from seresnext_jax.checkpoint.store import find_checkpoint, read_arrays, read_meta
from seresnext_jax.config import Config, OptimConfig
from seresnext_jax.errors import UserError
from seresnext_jax.plan import resolve
from seresnext_jax.training.optimizer import get_momentum, learning_rate, with_momentum
from seresnext_jax.training.precision import POLICIES
from seresnext_jax.training.state import TrainState, create_train_state
from seresnext_jax.weights.info import Array, Tree, WeightsInfo
from seresnext_jax.weights.read import TorchFileSource
from seresnext_jax.weights.state_dict import Layout, to_state_dict
from seresnext_jax.weights.torch_file import TorchFile
from seresnext_jax.weights.torch_sgd import momentum_from_torch, momentum_to_torch, sgd_groups

_DECAYED = {
    "no-bn": "no BatchNorm",
    "nvidia-names": "the BatchNorms of the shortcuts",
    "all": "every BatchNorm",
}
"""The BatchNorms that each `OptimConfig.decay_mask` decays."""


def from_torch(
    path: Path, config: Config, *, steps_per_epoch: int
) -> tuple[TrainState, Meta, WeightsInfo, list[str]]:
    """The training state in a checkpoint of the original, as train.py would have saved it.

    Args:
      path: a PyTorch file.
      config: the options of the run that will continue.
      steps_per_epoch: optimizer steps per epoch of the original.

    Returns:
      The state, its meta, the info of its weights, and a line for each thing that is not carried
      over unchanged.

    Raises:
      UserError: the file contains no training state, does not fit the config (network, classes,
        epochs), or the config has another optimizer than sgd or no optimizer_batch_size.
    """
    source = TorchFileSource(path)
    file = source.file
    if file.optimizer is None or file.epoch is None or file.choose_table().is_average:
        raise UserError(
            f"{path} contains no training state (weights, epoch, optimizer): leave --training out"
        )
    _check_sgd(config.optim, "the config", option="--training")
    if file.epoch > config.epochs:
        raise UserError(
            f"{path} was written after epoch {file.epoch} of a run, the config has "
            f"{config.epochs}: add that run's --epochs"
        )
    if config.optimizer_batch_size == -1:
        raise UserError(
            "the config does not set the number of images in an optimizer step: add that of the "
            "original's run, such as --optimizer-batch-size 1024"
        )
    weights = source.read()
    variables, info = weights.variables, weights.info
    wanted = (config.model.arch, config.model.num_classes)
    if (info.architecture, info.num_classes) != wanted:
        raise UserError(
            f"{path} is {info.architecture} with {info.num_classes} classes, the config is "
            f"{wanted[0]} with {wanted[1]}: give the config of that run"
        )
    notes = []
    ema: Tree | None = None
    ema_counter = None
    has_ema = file.choose_table(ema=True).is_average
    if config.use_ema is None:
        if has_ema:
            notes += ["the moving average is left out: add --use-ema with the run's decay"]
    elif not has_ema:
        notes += ["there is no moving average: it starts as a copy of the weights"]
    else:
        average = source.read(ema=True)
        ema, ema_counter = average.variables, average.info.batches_tracked
        if (average.info.architecture, average.info.num_classes) != wanted:
            raise UserError(
                f"{path} has the moving average of a {average.info.architecture} with "
                f"{average.info.num_classes} classes: leave --use-ema out"
            )

    momentum = momentum_from_torch(
        file.optimizer, variables["params"], source=str(path), before_training=file.epoch == 0
    )
    counters = {"weights": info.batches_tracked, "ema": ema_counter}
    meta = replace(_meta(file, config, steps_per_epoch), batches_tracked=counters)
    notes += differences(
        sgd_groups(file.optimizer, source=str(path)),
        config.optim,
        lr=learning_rate(config.optim, meta.plan, meta.step - 1) if meta.step else None,
    )
    # Start from the state of a network without arrays and insert them: nothing is allocated twice.
    nothing: Tree = {"params": {}, "batch_stats": {}}
    empty = create_train_state(replace(config, use_ema=None), nothing)
    state = replace(
        empty,
        step=jnp.int32(meta.step),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=with_momentum(empty.opt_state, momentum),
        ema=None if config.use_ema is None else ema or variables,
    )
    if POLICIES[config.precision].scale_loss:
        notes += [f"the loss scale starts at {config.loss_scale.init:g}: the file has none"]
    return state, meta, info, notes


def differences(
    groups: list[dict[str, Any]], config: OptimConfig, *, lr: float | None
) -> list[str]:
    """A line for each setting of the file's optimizer that the config would change.

    Args:
      groups: the result of `sgd_groups`.
      lr: the config's learning rate for the last step before the file was written; None if there
        was no step.
    """
    notes = []
    decays = [group["weight_decay"] for group in groups]
    mask = "nvidia-names" if len(groups) == 2 and decays[0] == 0 else "all"
    if mask != config.decay_mask and decays[-1]:
        notes += [
            f"the file decays {_DECAYED[mask]}, the config {_DECAYED[config.decay_mask]}: "
            f"add --optim.decay-mask {mask} to continue as before"
        ]
    if len(set(decays)) > 1 and mask == "all":
        notes += [f"the file decays its groups by {decays}, the config has only one weight decay"]
    for name, option in (("weight_decay", "weight-decay"), ("momentum", "momentum")):
        before, now = float(groups[-1][name]), getattr(config, name)
        if not np.isclose(before, now, rtol=1e-6, atol=0):
            notes += [
                f"the file has {name} {before:g}, the config {now:g}: "
                f"add --optim.{option} {before!r} to continue as before"
            ]
    if bool(groups[-1]["nesterov"]) != config.nesterov:
        notes += [f"the file has nesterov {groups[-1]['nesterov']}, the config {config.nesterov}"]
    if any(group["dampening"] for group in groups):
        notes += ["the file's dampening is left out: the momentum will grow faster"]
    if lr is not None and not np.isclose(groups[-1]["lr"], lr, rtol=1e-4, atol=1e-12):
        notes += [
            f"the file's last learning rate is {groups[-1]['lr']:g}, the config's for that epoch "
            f"{lr:g}: compare --epochs, --optim.lr, --optim.warmup and --optim.lr-schedule"
        ]
    return notes


def _check_sgd(config: OptimConfig, whose: str, *, option: str) -> None:
    if config.optimizer != "sgd":
        raise UserError(
            f"{whose} has the optimizer {config.optimizer}, and only training states of sgd can be "
            f"converted: leave {option} out to convert the weights"
        )


def _meta(file: TorchFile, config: Config, steps_per_epoch: int) -> Meta:
    """The meta that train.py writes with a state at the end of an epoch."""
    epoch = file.epoch
    assert epoch is not None
    plan = resolve(config, num_images=steps_per_epoch * config.optimizer_batch_size, num_devices=1)
    progress = Progress(finished_epochs=epoch)
    if file.best_prec1:  # the original writes 0 if it never evaluated
        # The epoch is not known. Assume the last one, so the patience of early stopping restarts.
        progress.best_top1, progress.best_epoch = file.best_prec1, epoch - 1
    return Meta(epoch * steps_per_epoch, epoch, progress, config, plan)


def write_first_checkpoint(folder: Path, state: TrainState, meta: Meta) -> None:
    """Write a state as the first checkpoint of the workspace `folder`.

    Raises:
      UserError: `folder` has checkpoints already, or can't be written.
    """
    if find_checkpoint(folder):
        raise UserError(f"{folder} has checkpoints already: give a new folder")
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(state, meta)


def to_torch(path: Path, *, layout: Layout, prefix: str) -> tuple[dict[str, Any], list[str]]:
    """The checkpoint at `path` as the original's dictionary, with arrays for tensors.

    Returns:
      ``epoch, state_dict, best_prec1, optimizer`` and, if there is a moving average,
      ``state_dict_ema``; and a line for each way in which the original will continue differently.

    Raises:
      UserError: there is no checkpoint, it is damaged, or its optimizer is not sgd.
    """
    folder = find_checkpoint(path)
    if folder is None:
        raise UserError(f"{path} is not a checkpoint: leave --checkpoint out")
    meta = read_meta(folder)
    _check_sgd(meta.config.optim, f"the run of {folder}", option="--checkpoint")
    weights, training = read_arrays(folder, "weights"), read_arrays(folder, "training")
    plan, optim = meta.plan, meta.config.optim
    step = int(training["step"])
    epoch, extra = divmod(step, plan.steps_per_epoch)
    notes = []
    if extra:
        notes += [f"{extra} steps into epoch {epoch}: the original will repeat that epoch"]
    if optim.decay_mask == "no-bn":
        notes += ["the original will decay the downsample BatchNorms, unlike this run"]

    def state_dict(variables: Tree, kind: Literal["weights", "ema"]) -> dict[str, Array]:
        passes = meta.forward_passes(kind)
        return to_state_dict(variables, layout=layout, prefix=prefix, batches_tracked=passes)

    momentum = get_momentum(training["opt_state"])
    content = {
        "epoch": epoch,
        "state_dict": state_dict(
            {name: weights[name] for name in ("params", "batch_stats")}, "weights"
        ),
        "best_prec1": max(0.0, meta.progress.best_top1),
        "optimizer": momentum_to_torch(
            momentum, optim, lr=learning_rate(optim, plan, max(0, step - 1))
        ),
    }
    if "ema" in weights:
        content["state_dict_ema"] = state_dict(weights["ema"], "ema")
    return content, notes
