"""SGD with momentum, its weight decay, and the learning rate of each step."""

from typing import Any

import jax
import numpy as np
import optax

from seresnext_jax.config import DecayMask, OptimConfig
from seresnext_jax.plan import Plan
from seresnext_jax.torch_keys import torch_key

Tree = Any
CLASSIFIER = "fc"


def learning_rate(config: OptimConfig, plan: Plan, step: int) -> float:
    """The learning rate of optimizer step `step` (from 0).

    By default it changes once per epoch, and warm-up epoch e trains at lr · (e + 1) / warmup;
    ``lr_update="step"`` evaluates the same curve at every step. NVIDIA: optimizers.py, lr_*_policy.
    """
    if config.lr_update == "epoch":
        epoch = float(step // plan.steps_per_epoch)
        warmed = epoch + 1.0
    else:
        epoch = step / plan.steps_per_epoch
        warmed = (step + 1) / plan.steps_per_epoch
    if epoch < config.warmup:
        return plan.lr * warmed / config.warmup
    if config.lr_schedule == "step":
        return plan.lr * 0.1 ** sum(milestone <= epoch for milestone in config.lr_steps)
    done = (epoch - config.warmup) / (plan.epochs - config.warmup)
    share = 1 - done if config.lr_schedule == "linear" else 0.5 * (1 + np.cos(np.pi * done))
    return float(config.end_lr + share * (plan.lr - config.end_lr))


def decay_mask(params: Tree, rule: DecayMask) -> Tree:
    """A tree of booleans: which parameters decay (see `OptimConfig.decay_mask`)."""
    paths = [_path(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    batch_norms = {path[:-1] for path in paths if path[-1] == "scale"}

    def decayed(path: tuple[str, ...]) -> bool:
        if rule == "no-bn":
            return path[:-1] not in batch_norms
        if rule == "nvidia-names":
            return "bn" not in torch_key(("params", *path))
        return True

    return jax.tree_util.tree_map_with_path(lambda p, _: decayed(_path(p)), params)


def backbone_mask(params: Tree) -> Tree:
    """A tree of booleans: True everywhere except in the classifier."""
    return jax.tree_util.tree_map_with_path(lambda p, _: _path(p)[0] != CLASSIFIER, params)


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """Coupled weight decay, then momentum; the updates are not yet scaled by -learning_rate.

    The learning rate is not part of the optimizer's state. So a step that the loss scaler skips
    leaves the state unchanged, and the schedule continues. Equal to `torch.optim.SGD` (dampening
    0).
    """
    backbone_factor = 0.0 if config.freeze_backbone else config.backbone_lr_multiplier
    return optax.chain(
        optax.add_decayed_weights(
            config.weight_decay, mask=lambda params: decay_mask(params, config.decay_mask)
        ),
        optax.trace(decay=config.momentum, nesterov=config.nesterov),
        optax.masked(optax.scale(backbone_factor), backbone_mask)
        if backbone_factor != 1.0
        else optax.identity(),
    )


def get_momentum(opt_state: Tree) -> Tree:
    """The momentum of each parameter in a state of `make_optimizer` or one read as plain arrays."""
    return optax.tree.get(opt_state, "trace")


def with_momentum(opt_state: Tree, momentum: Tree) -> Tree:
    """A state of `make_optimizer` with the momentum of each parameter replaced."""
    return optax.tree.set(opt_state, trace=momentum)


def _path(key_path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(entry.key for entry in key_path)
