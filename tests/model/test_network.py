"""The table of architectures, parameter paths, initialisation and features."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from seresnext_jax.config import ModelConfig
from seresnext_jax.errors import UserError
from seresnext_jax.model.network import (
    ARCHITECTURES,
    CONV_INIT,
    Architecture,
    Block,
    Options,
    make_network,
)
from seresnext_jax.torch_keys import torch_key
from tests.reference import torch_model


@cache
def shapes(arch: str) -> Any:
    network = make_network(ModelConfig(arch=arch), jnp.dtype("float32"))
    image = jnp.zeros((1, 32, 32, 3))
    return jax.eval_shape(lambda key: network.init(key, image, train=False), jax.random.key(0))


@pytest.mark.parametrize("arch", sorted(set(ARCHITECTURES) - {"se-resnext-tiny"}))
def test_parameters_are_those_of_the_pytorch_network(arch: str) -> None:
    with torch.device("meta"):
        model = torch_model.ResNet(torch_model.ARCHITECTURES[arch])
    wanted = {name: p.numel() for name, p in model.named_parameters()}
    leaves = jax.tree_util.tree_leaves_with_path(shapes(arch)["params"])
    found = {torch_key(("params", *(k.key for k in path))): x.size for path, x in leaves}
    assert found == wanted


def test_the_size_everyone_quotes() -> None:
    params = shapes("se-resnext101-32x4d")["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == 45_251_128
    gates = [
        block["squeeze"]["squeeze"]["kernel"].shape[1]
        for stage in params["layers"].values()
        for block in stage.values()
    ]
    assert gates == [16] * 33


CONFIG = ModelConfig(arch="se-resnext-tiny", num_classes=10)


@cache
def tiny() -> tuple[Any, Any]:
    network = make_network(CONFIG, jnp.dtype("float32"))
    init = jax.jit(lambda key: network.init(key, jnp.zeros((1, 32, 32, 3)), train=False))
    return network, init(jax.random.key(0))


def test_the_old_names_of_the_initialisers() -> None:
    modes = {
        name: make_network(ModelConfig(conv_init=name), jnp.dtype("float32")).options.init_mode
        for name in CONV_INIT
    }
    fan_in = {name for name, mode in modes.items() if mode == "fan_in"}
    assert fan_in == {"fan_in", "fanin", "grp-fanin"}
    assert set(modes) - fan_in == {"fan_out", "classic", "grp-fanout"}


@pytest.mark.parametrize(("last_bn_0_init", "value"), [(False, 1.0), (True, 0.0)])
def test_last_batch_norm_starts_at_one_unless_told(last_bn_0_init: bool, value: float) -> None:
    options = Options(Architecture("bottleneck", (1,), (4,), 2), last_bn_0_init=last_bn_0_init)
    block = Block(options, width=4, stride=1)
    params = block.init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)), train=False)["params"]
    assert np.all(params["bn3"]["scale"] == value)
    assert np.all(params["bn2"]["scale"] == 1.0)


def test_features_have_the_strides_of_the_stages_and_the_logits_come_last() -> None:
    network, variables = tiny()
    images = jnp.ones((2, 64, 64, 3))
    features = jax.jit(partial(network.apply, method="extract_features"))(variables, images)
    assert {name: x.shape for name, x in features.items()} == {
        "layer1": (2, 16, 16, 64),
        "layer2": (2, 8, 8, 128),
        "layer3": (2, 4, 4, 256),
        "layer4": (2, 2, 2, 512),
        "classifier": (2, 10),
    }
    logits = jax.jit(partial(network.apply, train=False))(variables, images)
    np.testing.assert_allclose(features["classifier"], logits, rtol=1e-5)


def test_features_stop_where_they_were_asked_to() -> None:
    network, variables = tiny()
    params = dict(variables["params"])
    del params["fc"]
    params["layers"] = {name: params["layers"][name] for name in ("0", "1")}
    half = {**variables, "params": params}  # later layers would not find their parameters
    images = jnp.ones((1, 32, 32, 3))
    found = jax.jit(lambda v: network.apply(v, images, ("layer2",), method="extract_features"))(
        half
    )
    assert list(found) == ["layer2"]
    with pytest.raises(ValueError, match="layer9"):
        network.apply(variables, jnp.ones((1, 32, 32, 3)), ("layer9",), method="extract_features")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_near_and_its_logits_are_float32(dtype: str) -> None:
    network, variables = tiny()
    half = make_network(CONFIG, jnp.dtype(dtype))
    images = jax.random.normal(jax.random.key(1), (4, 64, 64, 3))
    wanted, found = (
        jax.jit(partial(n.apply, train=False))(variables, images) for n in (network, half)
    )
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, atol=0.05 * float(jnp.ptp(wanted)))


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(UserError, match="resnet51.*resnet50"):
        make_network(ModelConfig(arch="resnet51"), jnp.dtype("float32"))
