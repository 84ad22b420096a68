"""`TrainState`: all arrays that a training step takes and returns, as one pytree."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from seresnext_jax.config import Config
from seresnext_jax.training.optimizer import make_optimizer
from seresnext_jax.training.precision import POLICIES, LossScale, init_loss_scale

Tree = Any
"""Nested dictionaries of arrays."""
Apply = Callable[..., Any]
"""`apply(variables, images, train=...)` of a network; `mutable` adds the new statistics."""


@struct.dataclass
class TrainState:
    """All arrays of a run. The network, optimizer and schedule are functions and not part of it."""

    step: jax.Array
    """int32 scalar; optimizer steps taken, skipped ones included."""
    seed: jax.Array
    """int32 scalar; with the step it decides the random numbers of the step."""
    params: Tree
    """float32."""
    batch_stats: Tree
    """float32; BatchNorm running mean and unbiased variance."""
    opt_state: Tree
    loss_scale: LossScale
    skipped_steps: jax.Array
    """int32 scalar; steps skipped because their loss or gradients were not finite."""
    bad_steps: jax.Array
    """int32 scalar; such steps in a row, counted back from the latest step."""
    ema: Tree | None
    """Moving average of params and batch_stats; None without ``--use-ema``."""

    @property
    def variables(self) -> Tree:
        """The variables that `network.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_train_state(config: Config, variables: Tree) -> TrainState:
    """The state before the first step. The moving average starts as a copy of the weights.

    Args:
      variables: params and batch_stats.
    """
    params, batch_stats = variables["params"], variables["batch_stats"]
    ema = None if config.use_ema is None else {"params": params, "batch_stats": batch_stats}
    return TrainState(
        step=jnp.int32(0),
        seed=jnp.int32(config.seed),
        params=params,
        batch_stats=batch_stats,
        # In one program: otherwise each shape would be compiled separately.
        opt_state=jax.jit(make_optimizer(config.optim).init)(params),
        loss_scale=init_loss_scale(POLICIES[config.precision], config.loss_scale.init),
        skipped_steps=jnp.int32(0),
        bad_steps=jnp.int32(0),
        ema=jax.tree.map(lambda x: x.copy(), ema),
    )
