"""Whole training states: a checkpoint of the original ↔ one that train.py continues."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from convert.weights import Layout, from_state_dict, from_torch_file, to_state_dict
from seresnext_jax import checkpoint, names
from seresnext_jax.config import Config, OptimConfig, Plan, resolve, to_dict
from seresnext_jax.errors import UserError
from seresnext_jax.optim import learning_rate, make_optimizer
from seresnext_jax.precision import POLICIES, init_loss_scale
from seresnext_jax.progress import Progress
from seresnext_jax.state import TrainState, create
from seresnext_jax.weights import flatten, unflatten

if TYPE_CHECKING:
    from convert.torch_file import TorchFile

Array = np.ndarray[Any, Any]
Tree = dict[str, Any]
Meta = dict[str, Any]


# ---- momentum ----------------------------------------------------------------------------------


def parameter_groups(params: Tree, *, single: bool) -> list[list[str]]:
    """The torch names of each parameter group of the original's optimizer, in its order.

    Group 0 is what it spares the weight decay, the names that contain "bn"; group 1 is the rest.
    NVIDIA: image_classification/optimizers.py, get_sgd_optimizer.

    Args:
      single: all parameters in one group, as under ``--bn-weight-decay``.
    """
    keys = sorted(
        (names.torch_key(("params", *path.split("/"))) for path in flatten(params)), key=names.order
    )
    if single:
        return [keys]
    return [[k for k in keys if "bn" in k], [k for k in keys if "bn" not in k]]


def momentum_from_torch(optimizer: dict[str, Any], params: Tree, *, source: str) -> Tree:
    """The momentum of each parameter, float32; zero where the file has none (before step 1).

    Args:
      optimizer: the state dict of a `torch.optim.SGD`, arrays for tensors.
      params: of the same network.

    Raises:
      UserError: its groups or shapes are not those of the original's optimizer.
    """
    sizes = [len(group["params"]) for group in optimizer["param_groups"]]
    groups = parameter_groups(params, single=len(sizes) == 1)
    if sizes != [len(group) for group in groups]:
        raise UserError(
            f"{source} has optimizer groups of {sizes} tensors, not the original's "
            f"{[len(group) for group in groups]}: convert the weights only"
        )
    momentum = {path: np.zeros(x.shape, np.float32) for path, x in flatten(params).items()}
    for group, keys in zip(optimizer["param_groups"], groups, strict=True):
        for identity, key in zip(group["params"], keys, strict=True):
            buffer = optimizer["state"].get(identity, {}).get("momentum_buffer")
            if buffer is None:
                continue
            path = "/".join(names.flax_path(key)[1:])
            # A momentum has its parameter's axes, the gate's weights included.
            array = names.as_linear(buffer) if names.is_gate_weight(key) else buffer
            array = names.to_flax_array(array.astype(np.float32))
            if array.shape != momentum[path].shape:
                raise UserError(
                    f"{source} has a momentum of shape {buffer.shape} for {key}: "
                    "convert the weights only"
                )
            momentum[path] = array
    return unflatten(momentum)


def momentum_to_torch(momentum: Tree, config: OptimConfig, *, lr: float) -> dict[str, Any]:
    """The state dict of the original's `torch.optim.SGD`, arrays for tensors."""
    arrays = {
        names.torch_key(("params", *path.split("/"))): names.to_torch_array(np.asarray(x))
        for path, x in flatten(momentum).items()
    }
    groups = parameter_groups(momentum, single=config.decay_mask == "all")
    decays = [config.weight_decay] if len(groups) == 1 else [0.0, config.weight_decay]
    keys = [key for group in groups for key in group]
    identity = {key: i for i, key in enumerate(keys)}
    return {
        "state": {identity[key]: {"momentum_buffer": arrays[key]} for key in keys},
        "param_groups": [
            {
                "lr": lr,
                "momentum": config.momentum,
                "dampening": 0,
                "weight_decay": decay,
                "nesterov": config.nesterov,
                "params": [identity[key] for key in group],
            }
            for group, decay in zip(groups, decays, strict=True)
        ],
    }


# ---- whole states ------------------------------------------------------------------------------


def from_torch(
    file: "TorchFile", path: Path, config: Config, *, steps_per_epoch: int
) -> tuple[TrainState, Meta, list[str]]:
    """The training state in a checkpoint of the original, as train.py would have saved it.

    Args:
      file: what `torch_file.read` gave for `path`.
      config: the run that is to be continued.
      steps_per_epoch: optimizer steps of the original's epochs.

    Returns:
      The state, its meta, and a line for each thing that is not carried over as it was.

    Raises:
      UserError: the file has no optimizer, or is not of the config's network.
    """
    if file.optimizer is None or file.epoch is None:
        raise UserError(f"{path} holds weights only, no training state: leave --training out")
    variables, info, _ = from_torch_file(file, path, ema=False)
    wanted = (config.model.arch, config.model.num_classes)
    if (info.architecture, info.num_classes) != wanted:
        raise UserError(
            f"{path} is {info.architecture} with {info.num_classes} classes, the config is "
            f"{wanted[0]} with {wanted[1]}: give the config of that run"
        )
    notes = []
    ema = None
    if config.use_ema is None:
        notes += ["the moving average is left out: the config has no use_ema"] if file.ema else []
    elif file.ema is None:
        notes += ["there is no moving average: it starts as a copy of the weights"]
    else:
        ema, _ = from_state_dict(file.ema, source=str(path))

    optimizer = make_optimizer(config.optim)
    state = create(
        jax.tree.map(jnp.asarray, variables),
        optimizer=optimizer,
        loss_scale=init_loss_scale(POLICIES[config.precision], config.loss_scale.init),
        seed=config.seed,
        with_ema=config.use_ema is not None,
    )
    momentum = momentum_from_torch(file.optimizer, variables["params"], source=str(path))
    state = replace(
        state,
        step=jnp.int32(file.epoch * steps_per_epoch),
        opt_state=optax.tree.set(state.opt_state, trace=jax.tree.map(jnp.asarray, momentum)),
        ema=state.ema if ema is None else jax.tree.map(jnp.asarray, ema),
    )
    if POLICIES[config.precision].scale_loss:
        notes += [f"the loss scale starts at {config.loss_scale.init:g}: the file has none"]
    return state, _meta(file, config, steps_per_epoch), notes


def _meta(file: "TorchFile", config: Config, steps_per_epoch: int) -> Meta:
    """What train.py writes beside a state at the end of an epoch."""
    assert file.epoch is not None
    batch = config.batch_size if config.optimizer_batch_size == -1 else config.optimizer_batch_size
    plan = resolve(config, num_images=steps_per_epoch * batch, num_devices=1)
    progress = Progress(finished_epochs=file.epoch)
    if file.best_prec1:  # the original writes 0 where it never evaluated
        # When is not known. As if in the last epoch, the patience of early stopping starts anew.
        progress.best_top1, progress.best_epoch = file.best_prec1, file.epoch - 1
    return {
        "step": file.epoch * steps_per_epoch,
        "epoch": file.epoch,
        "progress": progress.to_json(),
        "config": to_dict(config),
        "plan": to_dict(plan),
        "fingerprint": None,
        "class_names": None,
    }


def save(folder: Path, state: TrainState, meta: Meta) -> None:
    """Write a state as the first checkpoint of the workspace `folder`.

    Raises:
      UserError: `folder` has checkpoints already, or can't be written.
    """
    if checkpoint.find_checkpoint(folder):
        raise UserError(f"{folder} has checkpoints already: give a new folder")
    with checkpoint.Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(state, meta)
        checkpoints.wait()


def to_torch(folder: Path, *, layout: Layout, prefix: str) -> tuple[dict[str, Any], list[str]]:
    """The original's checkpoint dictionary of one checkpoint folder, arrays for tensors.

    Returns:
      ``epoch, state_dict, best_prec1, optimizer`` and, where kept, ``state_dict_ema``; and a line
      for each thing that the original will read differently.
    """
    weights, training = (checkpoint.read_weights(folder), checkpoint.read_training(folder))
    meta = checkpoint.read_meta(folder)
    plan = Plan(**meta["plan"])
    optim = OptimConfig(**meta["config"]["optim"])
    step = int(training["step"])
    epoch, extra = divmod(step, plan.steps_per_epoch)
    notes = []
    if extra:
        notes += [f"{extra} steps into epoch {epoch}: the original will repeat that epoch"]
    if optim.decay_mask == "no-bn":
        notes += ["the original will decay the downsample BatchNorms, which this run spared"]

    def state_dict(variables: Tree) -> dict[str, Array]:
        passes = step * plan.accumulation
        return to_state_dict(variables, layout=layout, prefix=prefix, batches_tracked=passes)

    momentum = training["opt_state"][1]["trace"]
    content = {
        "epoch": epoch,
        "state_dict": state_dict({name: weights[name] for name in ("params", "batch_stats")}),
        "best_prec1": max(0.0, meta["progress"]["best_top1"]),
        "optimizer": momentum_to_torch(
            momentum, optim, lr=learning_rate(optim, plan, max(0, step - 1))
        ),
    }
    if "ema" in weights:
        content["state_dict_ema"] = state_dict(weights["ema"])
    return content, notes
