"""`TrainState`: everything a training step changes, as one pytree."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from seresnext_jax.training.precision import LossScale

Tree = Any
"""Nested dictionaries of arrays."""


@struct.dataclass
class TrainState:
    """All arrays of a run. The network, optimizer and schedule are functions, kept elsewhere."""

    step: jax.Array
    """int32 scalar; optimizer steps taken, skipped ones included."""
    seed: jax.Array
    """int32 scalar; with the step it decides the mixup draws."""
    params: Tree
    """float32."""
    batch_stats: Tree
    """float32; BatchNorm running mean and unbiased variance."""
    opt_state: Tree
    loss_scale: LossScale
    skipped_steps: jax.Array
    """int32 scalar; steps whose gradients were not finite."""
    bad_steps: jax.Array
    """int32 scalar; how many of them in a row, up to now."""
    ema: Tree | None
    """Moving average of params and batch_stats, or None."""

    @property
    def variables(self) -> Tree:
        """What the network is applied to."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create(
    variables: Tree,
    *,
    optimizer: optax.GradientTransformation,
    loss_scale: LossScale,
    seed: int,
    with_ema: bool,
) -> TrainState:
    """The state before the first step. The average starts as a copy of the weights."""
    params, batch_stats = variables["params"], variables["batch_stats"]
    ema = {"params": params, "batch_stats": batch_stats} if with_ema else None
    return TrainState(
        step=jnp.int32(0),
        seed=jnp.int32(seed),
        params=params,
        batch_stats=batch_stats,
        # In one program: each shape alone would be compiled on its own.
        opt_state=jax.jit(optimizer.init)(params),
        loss_scale=loss_scale,
        skipped_steps=jnp.int32(0),
        bad_steps=jnp.int32(0),
        ema=jax.tree.map(lambda x: x.copy(), ema),
    )
