"""The name mapping: a bijection for every architecture, idempotent, in the original's order."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seresnext_jax import torch_keys
from seresnext_jax.model.network import ARCHITECTURES
from seresnext_jax.weights.identify import expected_shapes

BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def original_keys(arch: str) -> list[str]:
    """The state dict's keys in order, without counters, spelled out from the table's numbers."""
    row = ARCHITECTURES[arch]
    convs = 2 if row.block == "basic" else 3
    keys = ["conv1.weight", *(f"bn1.{x}" for x in BATCH_NORM)]
    channels = row.stem_width
    for stage, (blocks, width) in enumerate(zip(row.layers, row.widths, strict=True)):
        for block in range(blocks):
            at = f"layers.{stage}.{block}."
            for i in range(1, convs + 1):
                keys += [f"{at}conv{i}.weight", *(f"{at}bn{i}.{x}" for x in BATCH_NORM)]
            if block == 0 and (stage > 0 or channels != width * row.expansion):
                keys += [f"{at}downsample.0.weight"]
                keys += [f"{at}downsample.1.{x}" for x in BATCH_NORM]
            if row.squeeze:
                keys += [
                    f"{at}squeeze.{m}.{x}" for m in ("squeeze", "expand") for x in BATCH_NORM[:2]
                ]
        channels = width * row.expansion
    return [*keys, "fc.weight", "fc.bias"]


some_arch = st.sampled_from(sorted(ARCHITECTURES))
some_key = some_arch.flatmap(lambda arch: st.sampled_from(original_keys(arch)))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_variable_has_the_originals_key(arch: str) -> None:
    assert set(expected_shapes(arch, 10)) == set(original_keys(arch))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_mapping_is_a_bijection(arch: str) -> None:
    keys = original_keys(arch)
    paths = [torch_keys.flax_path(key) for key in keys]
    assert len(set(paths)) == len(keys)
    assert [torch_keys.torch_key(path) for path in paths] == keys


@given(arch=some_arch, random=st.randoms(use_true_random=False))
def test_sorting_restores_the_originals_order(arch: str, random: Random) -> None:
    keys = original_keys(arch)
    shuffled = list(keys)
    random.shuffle(shuffled)
    assert sorted(shuffled, key=torch_keys.order) == keys


def test_blocks_are_ordered_by_number() -> None:
    keys = [f"layers.2.{block}.conv1.weight" for block in range(23)]
    assert sorted(sorted(keys), key=torch_keys.order) == keys


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (("params", "layers", "0", "2", "conv1", "kernel"), "layers.0.2.conv1.weight"),
        (("params", "bn1", "scale"), "bn1.weight"),
        (
            ("params", "layers", "1", "0", "downsample", "1", "scale"),
            "layers.1.0.downsample.1.weight",
        ),
        (
            ("params", "layers", "1", "0", "downsample", "0", "kernel"),
            "layers.1.0.downsample.0.weight",
        ),
        (
            ("params", "layers", "3", "1", "squeeze", "expand", "bias"),
            "layers.3.1.squeeze.expand.bias",
        ),
        (("batch_stats", "layers", "0", "0", "bn3", "var"), "layers.0.0.bn3.running_var"),
        (("batch_stats", "bn1", "mean"), "bn1.running_mean"),
    ],
)
def test_variables_are_named_as_in_pytorch(path: tuple[str, ...], key: str) -> None:
    assert torch_keys.torch_key(path) == key
    assert torch_keys.flax_path(key) == path


@given(key=some_key)
def test_layouts_are_inverse_and_idempotent(key: str) -> None:
    old = torch_keys.to_ngc_layout(key)
    assert old == torch_keys.to_ngc_layout(old)
    assert torch_keys.to_current_layout(old) == key == torch_keys.to_current_layout(key)
    assert torch_keys.is_old_layout(old) == key.startswith("layers.")


def test_the_old_layout_counts_from_one() -> None:
    assert torch_keys.to_ngc_layout("layers.0.2.bn1.bias") == "layer1.2.bn1.bias"
    assert (
        torch_keys.to_current_layout("layer4.0.downsample.0.weight")
        == "layers.3.0.downsample.0.weight"
    )


@given(key=some_key, prefixes=st.lists(st.sampled_from(torch_keys.PREFIXES), max_size=3))
def test_prefixes_of_any_number_are_split_off(key: str, prefixes: list[str]) -> None:
    prefix = "".join(prefixes)
    assert torch_keys.split_prefix(prefix + key) == (prefix, key)


@pytest.mark.parametrize("path", [("params", "bn1", "mean"), ("ema", "fc", "bias")])
def test_a_foreign_path_is_refused(path: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="not a variable"):
        torch_keys.torch_key(path)


@given(shape=st.sampled_from([(5,), (3, 4), (7, 7, 3, 8), (1, 1, 6, 2)]))
def test_axes_are_turned_to_pytorchs_order_and_back(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    turned = torch_keys.to_torch_array(array)
    assert turned.shape == torch_keys.torch_shape(shape)
    np.testing.assert_array_equal(torch_keys.to_flax_array(turned), array)
    if len(shape) == 4:
        assert turned[1, 2, 0, 0] == array[0, 0, 2, 1]
    if len(shape) == 2:
        assert turned[1, 2] == array[2, 1]


def test_a_gate_kept_as_convolution_is_the_linear_one() -> None:
    linear = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(torch_keys.as_linear(linear[:, :, None, None]), linear)
    np.testing.assert_array_equal(torch_keys.as_linear(linear), linear)
    assert torch_keys.is_gate_weight("layers.0.0.squeeze.squeeze.weight")
    assert not torch_keys.is_gate_weight("layers.0.0.squeeze.squeeze.bias")
    assert not torch_keys.is_gate_weight("layers.0.0.downsample.0.weight")
