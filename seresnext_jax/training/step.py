"""The training step: a pure function of one device, mapped over all devices by `jax.shard_map`.

In this order: forward, loss, scale, gradient, mean, unscale, update (kept if finite), moving
average. Read it from top to bottom: the step, then the functions that it calls.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from seresnext_jax.config import Config, DataConfig
from seresnext_jax.data.batch import Batch
from seresnext_jax.data.normalize import normalize
from seresnext_jax.data.place import abstract_batch
from seresnext_jax.mesh import BATCH_SPEC, DATA_AXIS, local_value_and_grad, vary
from seresnext_jax.training.augment import augment, erase
from seresnext_jax.training.losses import smoothed_cross_entropy
from seresnext_jax.training.mixup import mix_batch
from seresnext_jax.training.optimizer import make_optimizer, stop_backbone
from seresnext_jax.training.precision import (
    POLICIES,
    all_finite,
    update_loss_scale,
    with_precision,
)
from seresnext_jax.training.state import Apply, TrainState, Tree

Metrics = dict[str, jax.Array]
_AUGMENTATION = 2**32 - 1
"""Folded into the keys of `augment`; the keys of mixup fold in the shard, counted from 0."""


class LocalMeans(NamedTuple):
    """The results of one device: means over its images and forward passes."""

    grads: Tree
    """Gradients of the scaled loss; images that were left out contribute 0."""
    batch_stats: Tree
    """The new running statistics."""
    loss: jax.Array
    """float32 scalar; images that were left out contribute 0."""
    counted: jax.Array
    """float32 scalar; the share of images that are neither left out nor mixed with one that is."""
    readable: jax.Array
    """float32 scalar; the share of images that are not left out."""


def lower_train_step(
    apply: Apply, config: Config, mesh: Mesh, state: TrainState, *, passes: int
) -> jax.stages.Lowered:
    """`make_train_step`, ready to compile.

    Args:
      state: placed on the mesh, or its shapes.
      passes: forward passes of a step.
    """
    size = config.data.image_size
    batch = abstract_batch(mesh, passes=passes, batch_size=config.batch_size, image_size=size)
    return make_train_step(apply, config, mesh).lower(state, batch, np.float32(0))


def make_train_step(apply: Apply, config: Config, mesh: Mesh) -> jax.stages.Wrapped:
    """Build a jitted ``step(state, batch, lr) -> (state, metrics)`` that donates the state.

    Metrics are scalars: ``loss`` (mean over the images that count; NaN if none does), ``lr``,
    ``loss_scale`` (the one this step used), ``skipped_steps`` and ``bad_steps`` as in `TrainState`,
    and ``readable`` (the share of the images that were not left out).
    """
    policy, optimizer = POLICIES[config.precision], make_optimizer(config.optim)

    def device_step(state: TrainState, batch: Batch, lr: jax.Array) -> tuple[TrainState, Metrics]:
        means = jax.lax.pmean(_accumulate(state, batch, apply, config), DATA_AXIS)
        # Masked images contribute 0, so divide by the unmasked fraction: gradient and loss are
        # means over the images of the step, on all devices.
        counted = jnp.maximum(means.counted, 1e-9)
        scale = state.loss_scale.scale
        # The mean over no image is NaN; the step then changes only the counters.
        seen = means.counted > 0
        loss = jnp.where(seen, means.loss / counted, jnp.nan)
        grads = jax.tree.map(lambda g: g / (scale * counted), means.grads)
        grads_finite = all_finite(grads)
        finite = grads_finite & jnp.isfinite(loss)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, optax.tree.scale(-lr, updates))
        # After an overflow the update is skipped. The running statistics are still updated, as in
        # the original, but only with finite values.
        params = _select(finite, params, state.params)
        opt_state = _select(finite, opt_state, state.opt_state)
        # Even the mean of equal values may be rounded, so frozen statistics are not replaced by it.
        keep_stats = seen & all_finite(means.batch_stats) & (not config.optim.freeze_backbone)
        batch_stats = _select(keep_stats, means.batch_stats, state.batch_stats)
        loss_scale = update_loss_scale(
            state.loss_scale,
            finite=grads_finite,
            growth_interval=config.loss_scale.growth_interval,
            policy=policy,
        )
        ema = _average(state, params, batch_stats, config.use_ema)

        new_state = replace(
            state,
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            loss_scale=_select(seen, loss_scale, state.loss_scale),
            skipped_steps=state.skipped_steps + jnp.where(finite, 0, 1),
            bad_steps=jnp.where(finite, 0, state.bad_steps + 1),
            ema=_select(seen, ema, state.ema),
        )
        metrics = {
            "loss": loss,
            "lr": lr,
            "loss_scale": scale,
            "skipped_steps": new_state.skipped_steps,
            "bad_steps": new_state.bad_steps,
            "readable": means.readable,
        }
        return new_state, metrics

    replicated = PartitionSpec()
    sharded = jax.shard_map(
        device_step,
        mesh=mesh,
        in_specs=(replicated, BATCH_SPEC, replicated),
        out_specs=replicated,
    )
    return jax.jit(with_precision(sharded, policy), donate_argnums=0)


def _accumulate(state: TrainState, batch: Batch, apply: Apply, config: Config) -> LocalMeans:
    """The means over the forward passes.

    Each pass starts from the same running statistics, and the mean of the updated ones is kept. So
    a step on one device with accumulation 4 equals a step on four devices.
    """
    one_pass = partial(_forward_backward, state, apply, config)
    passes = batch.labels.shape[0]
    if passes == 1:
        return one_pass(jnp.int32(0), jax.tree.map(lambda x: x[0], batch))

    def body(total: Tree, inputs: tuple[jax.Array, Batch]) -> tuple[Tree, None]:
        number, images = inputs
        return jax.tree.map(jnp.add, total, one_pass(number, images)), None

    like = LocalMeans(state.params, state.batch_stats, *3 * (jnp.float32(0),))
    zero = vary(jax.tree.map(jnp.zeros_like, like))
    total, _ = jax.lax.scan(body, zero, (jnp.arange(passes), batch))
    return jax.tree.map(lambda x: x / passes, total)


def _forward_backward(
    state: TrainState, apply: Apply, config: Config, number: jax.Array, batch: Batch
) -> LocalMeans:
    """Forward and backward pass `number` on this device."""
    # Pass a of device d draws what device a · D + d of a larger machine would draw.
    shard = number * jax.lax.axis_size(DATA_AXIS) + jax.lax.axis_index(DATA_AXIS)
    key = jax.random.fold_in(jax.random.key(state.seed), state.step)
    images, mask = _augment(key, shard, batch.images, config.data), batch.mask
    targets = jax.nn.one_hot(batch.labels, config.model.num_classes, dtype=jnp.float32)
    if config.mixup or config.cutmix:
        shard_key = jax.random.fold_in(key, shard)
        images, targets, mask = mix_batch(
            shard_key, images, targets, mask, mixup=config.mixup, cutmix=config.cutmix
        )

    def scaled_loss(params: Tree) -> tuple[jax.Array, tuple[Tree, jax.Array]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        if config.optim.freeze_backbone:
            variables["params"] = stop_backbone(params)
            logits = apply(variables, images, train=False)
            batch_stats = vary(state.batch_stats)
        else:
            logits, updated = apply(variables, images, train=True, mutable=["batch_stats"])
            batch_stats = updated["batch_stats"]
        losses = smoothed_cross_entropy(logits, targets, config.label_smoothing)
        loss = jnp.mean(jnp.where(mask, losses, 0.0))
        return loss * state.loss_scale.scale, (batch_stats, loss)

    (_, (batch_stats, loss)), grads = local_value_and_grad(scaled_loss)(state.params)
    return LocalMeans(grads, batch_stats, loss, jnp.mean(mask), jnp.mean(batch.mask))


def _augment(key: jax.Array, shard: jax.Array, images: jax.Array, config: DataConfig) -> jax.Array:
    """Augment and normalise (n, S, S, 3) uint8 images; returns float32."""
    if config.augmentation == "none" and not config.random_erasing:
        return normalize(images)
    # An image's draws depend on its position in the step, not on the number of devices.
    position = shard * images.shape[0] + jnp.arange(images.shape[0])
    key = jax.random.fold_in(key, _AUGMENTATION)
    keys = jax.vmap(partial(jax.random.fold_in, key))(position)
    policy_keys, erasing_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    images = normalize(augment(policy_keys, images, config))
    return erase(erasing_keys, images, config.random_erasing) if config.random_erasing else images


def _select(condition: jax.Array, new: Tree, old: Tree) -> Tree:
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def _average(
    state: TrainState, params: Tree, batch_stats: Tree, decay: float | None
) -> Tree | None:
    """The moving average after this step, or None. NVIDIA: image_classification/utils.py, EMA."""
    if decay is None:
        return None
    step = state.step.astype(jnp.float32)
    mu = jnp.minimum(decay, (1 + step) / (10 + step))
    new = {"params": params, "batch_stats": batch_stats}
    return jax.tree.map(lambda average, x: mu * average + (1 - mu) * x, state.ema, new)
