"""Mixed-precision policies, and the dynamic gradient scaler of fp16."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from seresnext_jax.config import Precision


@dataclass(frozen=True)
class PrecisionPolicy:
    """The dtypes that a network computes in. Parameters, statistics and loss are always float32."""

    compute_dtype: jnp.dtype
    """Dtype of the activations and of the kernels applied to them."""
    matmul_precision: str
    """`jax.default_matmul_precision`: the precision in which a GPU computes float32 products."""
    scale_loss: bool
    """Whether the loss is scaled, because gradients would underflow otherwise."""


POLICIES: dict[Precision, PrecisionPolicy] = {
    "fp32": PrecisionPolicy(jnp.dtype("float32"), "highest", False),
    "tf32": PrecisionPolicy(jnp.dtype("float32"), "tensorfloat32", False),
    "bf16": PrecisionPolicy(jnp.dtype("bfloat16"), "default", False),
    "fp16": PrecisionPolicy(jnp.dtype("float16"), "default", True),
}


def with_precision(function: Callable[..., Any], policy: PrecisionPolicy) -> Callable[..., Any]:
    """Trace `function`, including its gradient, with the policy's precision of float32 products."""

    def traced(*args: Any) -> Any:
        with jax.default_matmul_precision(policy.matmul_precision):
            return function(*args)

    return traced


@struct.dataclass
class LossScale:
    """State of `torch.amp.GradScaler`: ×2 after enough finite steps, ×0.5 after an overflow."""

    scale: jax.Array
    """float32 scalar; the loss is multiplied by it, the gradients are divided by it."""
    good_steps: jax.Array
    """int32 scalar; steps with finite gradients since the last change."""


def init_loss_scale(policy: PrecisionPolicy, initial: float) -> LossScale:
    """The scaler's initial state; without loss scaling, the scale is a constant 1."""
    scale = initial if policy.scale_loss else 1.0
    return LossScale(scale=jnp.float32(scale), good_steps=jnp.int32(0))


def update_loss_scale(
    state: LossScale, *, finite: jax.Array, growth_interval: int, policy: PrecisionPolicy
) -> LossScale:
    """Advance the scaler by one optimizer step.

    As in `torch.amp.GradScaler`, the scale doubles after exactly `growth_interval` finite steps
    (flax's DynamicScale needs one more) and never becomes infinite.

    Args:
      finite: bool scalar, whether every gradient of the step is finite.
    """
    if not policy.scale_loss:
        return state
    good_steps = jnp.where(finite, state.good_steps + 1, 0)
    grow = good_steps == growth_interval
    grown = jnp.where(jnp.isfinite(state.scale * 2), state.scale * 2, state.scale)
    scale = jnp.where(finite, jnp.where(grow, grown, state.scale), state.scale * 0.5)
    return LossScale(scale=scale, good_steps=jnp.where(grow, 0, good_steps))


def all_finite(tree: object) -> jax.Array:
    """Whether no leaf contains infinity or NaN; bool scalar."""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    # Without the barrier XLA copies the conjunction of all flags into every fusion that uses it: a
    # million instructions, and minutes of compilation.
    return jnp.all(jax.lax.optimization_barrier(jnp.stack(leaves)))
