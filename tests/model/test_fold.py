"""BatchNorm folded into the convolutions: the same network for inference."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seresnext_jax.config import ModelConfig
from seresnext_jax.model.fold import fold_batch_norm
from seresnext_jax.model.network import ResNet, abstract_variables, make_network

ARCHITECTURES = ["se-resnext-tiny", "resnet18"]
IMAGES = np.random.default_rng(1).normal(size=(4, 64, 64, 3)).astype(np.float32)


def network(arch: str, dtype: str = "float32") -> ResNet:
    return make_network(ModelConfig(arch=arch, num_classes=10), jnp.dtype(dtype))


def trained_like(model: ResNet, *, variance: float = 1.0) -> Any:
    """Variables in which every BatchNorm matters: scales of both signs, means, variances.

    Args:
      variance: in the middle; the scales are such that activations keep their size.
    """
    rng = np.random.default_rng(0)
    bounds = {"scale": (-(variance**0.5), variance**0.5), "var": (variance / 2, variance * 2)}

    def draw(path: Any, x: Any) -> np.ndarray:
        name = path[-1].key
        if name == "kernel":
            return rng.normal(0, (2 / np.prod(x.shape[:-1])) ** 0.5, x.shape).astype(np.float32)
        return rng.uniform(*bounds.get(name, (-0.5, 0.5)), x.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract_variables(model))


def logits(model: ResNet, variables: Any) -> np.ndarray:
    return np.asarray(jax.jit(partial(model.apply, train=False))(variables, IMAGES))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("variance", [1.0, 1e-5])  # the second is epsilon
def test_folding_changes_logits_by_rounding_only(arch: str, variance: float) -> None:
    model = network(arch)
    variables = trained_like(model, variance=variance)
    wanted = logits(model, variables)
    found = logits(*fold_batch_norm(model, variables))
    assert np.abs(found - wanted).max() <= 1e-5 * np.ptp(wanted)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_in_half_precision_folding_is_as_near_to_float32(arch: str, dtype: str) -> None:
    exact, model = network(arch), network(arch, dtype)
    variables = trained_like(exact)
    wanted = logits(exact, variables)
    plain, folded = (
        np.sqrt(np.mean((found - wanted) ** 2))
        for found in (logits(model, variables), logits(*fold_batch_norm(model, variables)))
    )
    assert folded <= 1.5 * plain <= 0.05 * np.ptp(wanted)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nothing_of_batch_norm_but_a_bias_is_left(arch: str) -> None:
    model = network(arch, "float16")
    folded, variables = fold_batch_norm(model, trained_like(model))
    names = {path[-1].key: x.dtype for path, x in jax.tree_util.tree_leaves_with_path(variables)}
    assert set(names) == {"kernel", "bias"} and set(variables) == {"params"}
    assert jax.tree.structure(variables) == jax.tree.structure(abstract_variables(folded))
    assert variables["params"]["conv1"]["kernel"].dtype == np.float16


def test_a_folded_network_is_not_trained() -> None:
    model = network("se-resnext-tiny")
    folded, variables = fold_batch_norm(model, trained_like(model))
    with pytest.raises(ValueError, match="can't be trained"):
        folded.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
