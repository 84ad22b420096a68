"""The gradient scaler's trace, and what the policies compute in."""

import jax.numpy as jnp
import pytest

from seresnext_jax.precision import (
    POLICIES,
    LossScale,
    all_finite,
    init_loss_scale,
    update_loss_scale,
)

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


def test_an_overflow_halves_the_scale_and_starts_the_count_anew() -> None:
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
