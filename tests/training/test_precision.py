"""The gradient scaler's trace, and what the policies compute in."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seresnext_jax.config import Config, ModelConfig, Precision
from seresnext_jax.data.place import abstract_batch
from seresnext_jax.mesh import make_mesh
from seresnext_jax.model.network import make_network
from seresnext_jax.ops.cpu import convolution
from seresnext_jax.training.eval_step import make_eval_step
from seresnext_jax.training.precision import (
    POLICIES,
    LossScale,
    all_finite,
    init_loss_scale,
    update_loss_scale,
)
from seresnext_jax.training.state import create_train_state
from seresnext_jax.training.step import make_train_step
from tests.ops.cpu_kernel import forget_the_cpu_kernel

FP16 = POLICIES["fp16"]


def advance(state: LossScale, finite: bool, times: int = 1, interval: int = 100) -> LossScale:
    for _ in range(times):
        state = update_loss_scale(
            state, finite=jnp.bool_(finite), growth_interval=interval, policy=FP16
        )
    return state


def test_exactly_a_hundred_good_steps_double_the_scale() -> None:
    state = advance(init_loss_scale(FP16, 128.0), True, 99)
    assert (float(state.scale), int(state.good_steps)) == (128.0, 99)
    state = advance(state, True)
    assert (float(state.scale), int(state.good_steps)) == (256.0, 0)


def test_an_overflow_halves_the_scale_and_restarts_the_count() -> None:
    state = advance(advance(init_loss_scale(FP16, 128.0), True, 60), False)
    assert (float(state.scale), int(state.good_steps)) == (64.0, 0)
    assert float(advance(state, True, 99).scale) == 64.0
    assert float(advance(state, True, 100).scale) == 128.0
    assert float(advance(state, False, 10).scale) == 64.0 / 2**10


def test_growth_stops_short_of_infinity() -> None:
    state = LossScale(scale=jnp.float32(2.0**127), good_steps=jnp.int32(0))
    assert float(advance(state, True, interval=1).scale) == 2.0**127


@pytest.mark.parametrize("name", ["fp32", "tf32", "bf16"])
def test_other_policies_have_no_scale(name: str) -> None:
    policy = POLICIES[name]  # type: ignore[index]
    state = init_loss_scale(policy, 128.0)
    for finite in (True, False):
        updated = update_loss_scale(
            state, finite=jnp.bool_(finite), growth_interval=1, policy=policy
        )
        assert float(updated.scale) == 1.0


def test_all_finite_sees_every_leaf() -> None:
    tree = {"a": jnp.ones(3), "b": {"c": jnp.zeros((2, 2))}}
    assert bool(all_finite(tree))
    for bad in (jnp.inf, -jnp.inf, jnp.nan):
        assert not bool(all_finite({**tree, "b": {"c": tree["b"]["c"].at[1, 1].set(bad)}}))  # type: ignore[call-overload, index]


# ---- what the compiler is told -----------------------------------------------------------------


def trace(precision: Precision, *, training: bool) -> jax.stages.Traced:
    """The training or evaluation step of a small network."""
    policy, mesh = POLICIES[precision], make_mesh(jax.devices()[:1])
    model = ModelConfig(arch="se-resnext-tiny", num_classes=10)
    network = make_network(model, policy.compute_dtype)
    config = Config(model=model, precision=precision, mixup=0.2 if training else 0.0)
    image = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), image, train=False))
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    batch = abstract_batch(mesh, passes=1, batch_size=4, image_size=32)
    if not training:
        return make_eval_step(network.apply, config, mesh).trace(variables, batch)
    state = create_train_state(config, variables)
    return make_train_step(network.apply, config, mesh).trace(state, batch, np.float32(0))


@pytest.mark.parametrize(
    ("precision", "training", "word"),
    [("fp32", True, "HIGHEST"), ("tf32", False, "HIGH")],  # HIGH: as TF32 on a GPU that has it
)
def test_every_product_has_the_policy_s_precision(
    precision: Precision, training: bool, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The grouped convolutions are products of XLA's, too, where their kernel is not.
    forget_the_cpu_kernel()
    with monkeypatch.context() as patch:
        patch.setattr(convolution, "is_available", lambda: False)
        text = trace(precision, training=training).lower().as_text()
    forget_the_cpu_kernel()
    products = re.findall(r"stablehlo\.(?:dot_general|convolution).*", text)
    assert len(products) > 40
    for line in products:
        assert re.findall(r"\b(?:DEFAULT|HIGH|HIGHEST)\b", line) == [word, word], line


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr and of those inside it."""

    def inside(value: Any) -> Iterator[Any]:
        if hasattr(value, "eqns"):
            yield from equations(value)
        elif hasattr(value, "jaxpr"):
            yield from equations(value.jaxpr)
        elif isinstance(value, tuple | list):
            for item in value:
                yield from inside(item)

    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            yield from inside(value)


REDUCTIONS = re.compile("reduce_(?!window_max|or|and)|cum|logsumexp|softmax|psum")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_nothing_is_summed_in_half_precision(precision: Precision) -> None:
    """Not BatchNorm's statistics, a softmax, the loss, or a gradient of any of them."""
    found: Counter[tuple[str, str]] = Counter()
    for equation in equations(trace(precision, training=True).jaxpr):
        name = equation.primitive.name
        found.update((name, str(operand.aval.dtype)) for operand in equation.invars)
    half = str(POLICIES[precision].compute_dtype)
    assert found["dot_general", half] > 40, "the products are in half precision"
    assert found["reduce_sum", "float32"] > 40, "the sums are found"
    assert not [key for key in found if REDUCTIONS.match(key[0]) and key[1] == half]
    assert not any(key[1] == half for key in found if key[0] in ("exp", "log", "rsqrt"))
