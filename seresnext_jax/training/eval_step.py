"""The evaluation steps: pure functions of one device, mapped over all devices by `jax.shard_map`.

`evaluate` in evaluate.py runs one of them over a split.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from seresnext_jax.config import EvaluationConfig
from seresnext_jax.data.batch import Batch
from seresnext_jax.data.normalize import normalize
from seresnext_jax.data.place import abstract_batch
from seresnext_jax.mesh import BATCH_SPEC, DATA_AXIS, vary
from seresnext_jax.training.metrics import evaluation_sums, image_results
from seresnext_jax.training.precision import POLICIES, with_precision
from seresnext_jax.training.state import Apply, Tree

Arrays = dict[str, jax.Array]


def make_eval_step(apply: Apply, config: EvaluationConfig, mesh: Mesh) -> jax.stages.Wrapped:
    """Build a jitted ``step(variables, batch) -> sums``: `evaluation_sums` over all devices."""

    def device_step(variables: Tree, batch: Batch) -> Arrays:
        return _sums(config, _logits(apply, variables, batch), batch)

    return _mapped(device_step, config, mesh, out_specs=PartitionSpec())


def make_detailed_eval_step(
    apply: Apply, config: EvaluationConfig, mesh: Mesh
) -> jax.stages.Wrapped:
    """Build ``step(variables, batch) -> (sums, results)``: also the `image_results` of each image.

    The results are sharded like the batch and have its order.
    """

    def device_step(variables: Tree, batch: Batch) -> tuple[Arrays, Arrays]:
        logits = _logits(apply, variables, batch)
        results = image_results(logits, batch.labels[0], batch.mask[0], topk=config.topk)
        return _sums(config, logits, batch), results

    return _mapped(device_step, config, mesh, out_specs=(PartitionSpec(), PartitionSpec(DATA_AXIS)))


def lower_eval_step(
    apply: Apply, config: EvaluationConfig, mesh: Mesh, variables: Tree
) -> jax.stages.Lowered:
    """`make_eval_step`, ready to compile.

    Args:
      variables: placed on the mesh, or their shapes.
    """
    return make_eval_step(apply, config, mesh).lower(variables, _batch_shapes(config, mesh))


def lower_detailed_eval_step(
    apply: Apply, config: EvaluationConfig, mesh: Mesh, variables: Tree
) -> jax.stages.Lowered:
    """`make_detailed_eval_step`, ready to compile; arguments as for `lower_eval_step`."""
    step = make_detailed_eval_step(apply, config, mesh)
    return step.lower(variables, _batch_shapes(config, mesh))


def _batch_shapes(config: EvaluationConfig, mesh: Mesh) -> Batch:
    size = config.data.image_size
    return abstract_batch(mesh, passes=1, batch_size=config.batch_size, image_size=size)


def _logits(apply: Apply, variables: Tree, batch: Batch) -> Any:
    # `conv2d` takes arrays that are all replicated or all varying.
    return apply(vary(variables), normalize(batch.images[0]), train=False)


def _sums(config: EvaluationConfig, logits: jax.Array, batch: Batch) -> Arrays:
    sums = evaluation_sums(
        logits,
        batch.labels[0],
        batch.mask[0],
        topk=config.topk,
        smoothing=config.validation_smoothing,
    )
    return jax.lax.psum(sums, DATA_AXIS)


def _mapped(
    device_step: Callable[..., Any], config: EvaluationConfig, mesh: Mesh, *, out_specs: Any
) -> jax.stages.Wrapped:
    sharded = jax.shard_map(
        device_step, mesh=mesh, in_specs=(PartitionSpec(), BATCH_SPEC), out_specs=out_specs
    )
    return jax.jit(with_precision(sharded, POLICIES[config.precision]))
