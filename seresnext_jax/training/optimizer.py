"""The optimizers, gradient clipping, weight decay, and the learning rate of each step."""

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


def stop_backbone(params: Tree) -> Tree:
    """The same parameters, with `stop_gradient` on all except the classifier's."""
    return {k: x if k == CLASSIFIER else jax.lax.stop_gradient(x) for k, x in params.items()}


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """The optimizer, with gradient clipping; its updates are not yet scaled by -learning_rate.

    The learning rate is not part of the optimizer's state. So a skipped step can leave the state
    unchanged while the schedule continues. sgd and rmsprop are equal to
    `torch.optim.SGD` (dampening 0) and `torch.optim.RMSprop`, adamw to `torch.optim.AdamW`.

    The transformations are nested so that the paths of SGD's arrays in a checkpoint do not change.
    """
    decay = optax.add_decayed_weights(
        config.weight_decay, mask=lambda params: decay_mask(params, config.decay_mask)
    )
    eps = DEFAULT_EPS.get(config.optimizer, 0.0) if config.eps is None else config.eps
    match config.optimizer:
        case "sgd":
            first, second = decay, optax.trace(config.momentum, config.nesterov)
        case "rmsprop":
            first = decay
            second = optax.chain(
                optax.scale_by_rms(config.rmsprop_alpha, eps, eps_in_sqrt=False),
                optax.trace(config.momentum),
            )
        case "adamw":
            first, second = optax.scale_by_adam(*config.betas, eps=eps), decay
        case "lamb":
            first = optax.scale_by_adam(*config.betas, eps=eps)
            second = optax.chain(decay, optax.scale_by_trust_ratio())
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(optax.chain(clip, first), second, _scale_backbone(config))


DEFAULT_EPS = {"rmsprop": 1e-3, "adamw": 1e-8, "lamb": 1e-6}


def _scale_backbone(config: OptimConfig) -> optax.GradientTransformation:
    """Multiply the backbone's updates by `backbone_lr_multiplier`, or by 0 if it is frozen."""
    factor = 0.0 if config.freeze_backbone else config.backbone_lr_multiplier
    if factor == 1.0:
        return optax.identity()
    return optax.masked(optax.scale(factor), backbone_mask)


def get_momentum(opt_state: Tree) -> Tree:
    """The momentum of each parameter in sgd's state; the state may be a tree read from a file."""
    return optax.tree.get(opt_state, "trace")


def with_momentum(opt_state: Tree, momentum: Tree) -> Tree:
    """A state of `make_optimizer` with the momentum of each parameter replaced."""
    return optax.tree.set(opt_state, trace=momentum)


def _path(key_path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(entry.key for entry in key_path)
