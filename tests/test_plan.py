"""Options that leave BatchNorm a single value per channel."""

import re
import shlex

import jax
import jax.numpy as jnp
import pytest

from seresnext_jax.cli import parse_config
from seresnext_jax.config import Config, ModelConfig
from seresnext_jax.errors import UserError
from seresnext_jax.model.network import ARCHITECTURES, make_network
from seresnext_jax.plan import TOTAL_STRIDE, divide_batch


def read(options: str) -> Config:
    """The config of a command line."""
    return parse_config(options.split(), program="train.py", description="")


@pytest.mark.parametrize(
    "options",
    [
        "--data.image-size 32 --batch-size 1",
        "--data.image-size 8 --batch-size 1 --optimizer-batch-size 6",
        "--data.image-size 32 --batch-size 1 --optimizer-batch-size 2",
        "--data.image-size 20 --batch-size 8 --model.bn-group-size 1",
    ],
)
def test_one_value_per_channel_is_refused_with_fixes_that_work(options: str) -> None:
    with pytest.raises(UserError, match="one value per channel") as refused:
        divide_batch(read(options), 2)
    fixes = re.findall(r"(--[a-z.-]+ \d+)(?: or|$)", str(refused.value).partition("give ")[2])
    assert fixes and f"--data.image-size {TOTAL_STRIDE + 1}" in fixes
    for fix in fixes:
        divide_batch(read(f"{options} {fix}"), 2)


@pytest.mark.parametrize(
    "options",
    ["--data.image-size 33", "--optim.freeze-backbone", "--evaluate", "--batch-size 2"],
)
def test_what_needs_no_statistics_of_one_value(options: str) -> None:
    divide_batch(read(f"--data.image-size 32 --batch-size 1 {options}"), 1)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_total_stride_is_that_of_every_architecture(arch: str) -> None:
    """An image of one more pixel has more than one value at the last stage."""
    network = make_network(ModelConfig(arch=arch), jnp.float32)
    key = jax.random.key(0)
    for side, fits in ((TOTAL_STRIDE, False), (TOTAL_STRIDE + 1, True)):
        image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)

        def initialise(x: jax.Array) -> object:
            variables = network.init(key, x, train=False)
            return network.apply(variables, x, train=True, mutable=["batch_stats"])

        if fits:
            jax.eval_shape(initialise, image)
        else:
            with pytest.raises(ValueError, match="more than one value"):
                jax.eval_shape(initialise, image)


def test_a_try_of_one_epoch_names_options_that_work() -> None:
    with pytest.raises(UserError) as refused:
        read("--config digits --epochs 1")
    advice = str(refused.value)
    assert "--optim.warmup 0" in advice and "--run-epochs 1 instead of --epochs 1" in advice
    assert read("--config digits --epochs 1 --optim.warmup 0").epochs == 1
    short = read("--config digits --run-epochs 1")
    assert (short.epochs, short.run_epochs) == (20, 1), shlex.join(["the schedule is unchanged"])
