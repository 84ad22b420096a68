"""BatchNorm folded into the convolutions: the same network for inference."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seresnext_jax.config import ModelConfig
from seresnext_jax.model.fold import fold_batch_norm
from seresnext_jax.model.network import ResNet, abstract_variables, build

ARCHITECTURES = ["se-resnext-tiny", "resnet18"]
IMAGES = np.random.default_rng(1).normal(size=(4, 64, 64, 3)).astype(np.float32)


def network(arch: str, dtype: str = "float32") -> ResNet:
    return build(ModelConfig(arch=arch, num_classes=10), dtype=jnp.dtype(dtype))


def trained_like(model: ResNet) -> Any:
    """Variables in which every BatchNorm matters: scales of both signs, means, variances."""
    rng = np.random.default_rng(0)

    def draw(path: Any, x: Any) -> np.ndarray:
        name = path[-1].key
        if name == "kernel":
            return rng.normal(0, (2 / np.prod(x.shape[:-1])) ** 0.5, x.shape).astype(np.float32)
        low, high = {"scale": (-1, 1), "var": (0.5, 2)}.get(name, (-0.5, 0.5))
        return rng.uniform(low, high, x.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract_variables(model))


def logits(model: ResNet, variables: Any) -> np.ndarray:
    return np.asarray(jax.jit(partial(model.apply, train=False))(variables, IMAGES))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_folding_changes_logits_by_rounding_only(arch: str, dtype: str) -> None:
    exact, model = network(arch), network(arch, dtype)
    variables = trained_like(exact)
    wanted = logits(exact, variables)
    folded = logits(*fold_batch_norm(model, variables))
    spread = np.ptp(wanted)
    if dtype == "float32":
        assert np.abs(folded - wanted).max() <= 1e-5 * spread
        return
    # In half precision the folded network is about as far from float32 as the plain one.
    plain = np.sqrt(np.mean((logits(model, variables) - wanted) ** 2))
    assert np.sqrt(np.mean((folded - wanted) ** 2)) <= 1.5 * plain <= 0.05 * spread


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
