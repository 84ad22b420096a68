"""Network, state and steps of a configuration: every program sets them up here."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from seresnext_jax.config import Config, Precision
from seresnext_jax.data.batch import Batch
from seresnext_jax.data.normalize import normalize
from seresnext_jax.data.place import abstract_batch
from seresnext_jax.model.fold import fold_batch_norm
from seresnext_jax.model.network import ResNet, build
from seresnext_jax.ops.layout import inference_format
from seresnext_jax.training.evaluate import validation_smoothing
from seresnext_jax.training.optimizer import make_optimizer
from seresnext_jax.training.precision import POLICIES, init_loss_scale
from seresnext_jax.training.state import TrainState, create
from seresnext_jax.training.step import StepOptions, make_eval_step, make_train_step

Tree = Any


def make_network(config: Config, *, bn_group_size: int = 0) -> ResNet:
    """The network, computing in the type of the configuration's precision.

    Args:
      bn_group_size: images normalised together in training; 0: all of a device.
    """
    dtype = POLICIES[config.precision].compute_dtype
    return build(config.model, dtype=dtype, bn_group_size=bn_group_size)


def make_state(config: Config, variables: Tree) -> TrainState:
    """The state before the first step, from params and batch_stats."""
    return create(
        variables,
        optimizer=make_optimizer(config.optim),
        loss_scale=init_loss_scale(POLICIES[config.precision], config.loss_scale.init),
        seed=config.seed,
        with_ema=config.use_ema is not None,
    )


def lower_train_step(
    config: Config, network: ResNet, mesh: Mesh, state: TrainState, *, passes: int
) -> jax.stages.Lowered:
    """``step(state, batch, lr)`` of `make_train_step`, ready to be compiled.

    Args:
      state: placed on the mesh, or its shapes.
      passes: forward passes of a step.
    """
    options = StepOptions(
        num_classes=config.model.num_classes,
        policy=POLICIES[config.precision],
        label_smoothing=config.label_smoothing,
        mixup=config.mixup,
        ema_decay=config.use_ema,
        growth_interval=config.loss_scale.growth_interval,
        freeze_backbone=config.optim.freeze_backbone,
    )
    step = make_train_step(network.apply, make_optimizer(config.optim), options, mesh)
    return step.lower(state, _batch(config, mesh, passes), np.float32(0))


def lower_eval_step(
    config: Config, network: ResNet, mesh: Mesh, variables: Tree
) -> jax.stages.Lowered:
    """``step(variables, batch)`` of `make_eval_step`, ready to be compiled.

    Args:
      variables: placed on the mesh, or their shapes.
    """
    step = make_eval_step(
        network.apply,
        policy=POLICIES[config.precision],
        topk=config.topk,
        smoothing=validation_smoothing(config),
        mesh=mesh,
    )
    return step.lower(variables, _batch(config, mesh, passes=1))


def _batch(config: Config, mesh: Mesh, passes: int) -> Batch:
    size = config.data.image_size
    return abstract_batch(mesh, passes=passes, batch_size=config.batch_size, image_size=size)


def folded_forward(
    network: ResNet, variables: Tree, precision: Precision
) -> tuple[jax.stages.Wrapped, Tree]:
    """A forward pass with BatchNorm folded, and the variables that it takes.

    Returns:
      ``forward(variables, images)``, compiled: (N, H, W, 3) uint8 → logits (N, K) float32; and the
      folded variables, on the host (`ops.layout.inference_format` says how to place them).
    """
    folded, variables = fold_batch_norm(network, variables)

    @jax.jit
    def forward(variables: Tree, images: jax.Array) -> Any:
        with jax.default_matmul_precision(POLICIES[precision].matmul_precision):
            return folded.apply(variables, normalize(images), train=False)

    return forward, variables


def place_folded(variables: Tree) -> Tree:
    """Place the variables of `folded_forward` on the first device."""
    device = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.device_put(x, inference_format(x, device)), variables)
