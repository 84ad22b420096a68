"""The schema: every derived number of a run, and the one line on each value that cannot be."""

import math
import re
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seresnext_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    DistributedConfig,
    LossScaleConfig,
    ModelConfig,
    OptimConfig,
    flatten,
    option_name,
    ranges,
)
from seresnext_jax.config_check import check
from seresnext_jax.errors import UserError
from seresnext_jax.plan import resolve

IMAGENET = 1_281_167


def recipe(batch_size: int, optimizer_batch_size: int, epochs: int = 90) -> Config:
    """A config with the given batches and the default rates."""
    return Config(batch_size=batch_size, optimizer_batch_size=optimizer_batch_size, epochs=epochs)


# ---- derived numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "wanted", "devices", "accumulation", "steps", "lr"),
    [
        (128, 1024, 8, 1, 1251, 1.024),
        (128, 1024, 4, 2, 1251, 1.024),
        (128, 1024, 2, 4, 1251, 1.024),
        (128, 1024, 1, 8, 1251, 1.024),
        (112, 896, 8, 1, 1429, 0.896),
        (112, 896, 1, 8, 1429, 0.896),
        (64, 1024, 8, 2, 1251, 1.024),
        (64, 1024, 1, 16, 1251, 1.024),
    ],
)
def test_the_optimizer_batch_is_the_constant(
    batch: int, wanted: int, devices: int, accumulation: int, steps: int, lr: float
) -> None:
    plan = resolve(recipe(batch, wanted), num_images=IMAGENET, num_devices=devices)
    assert plan.accumulation == accumulation
    assert plan.global_batch == wanted
    assert plan.steps_per_epoch == steps
    assert plan.total_steps == 90 * steps
    assert plan.lr == pytest.approx(lr, rel=1e-15)
    assert plan.bn_group_size == batch


@pytest.mark.parametrize(
    ("batch", "wanted", "epochs", "total"),
    [
        (128, 1024, 90, 112_590),
        (128, 1024, 250, 312_750),
        (112, 896, 90, 128_610),
        (112, 896, 250, 357_250),
    ],
)
def test_the_updates_of_a_whole_run(batch: int, wanted: int, epochs: int, total: int) -> None:
    plan = resolve(recipe(batch, wanted, epochs), num_images=IMAGENET, num_devices=8)
    assert plan.total_steps == total


def test_without_an_optimizer_batch_every_forward_pass_is_a_step() -> None:
    plan = resolve(recipe(32, -1), num_images=1000, num_devices=3)
    assert (plan.accumulation, plan.global_batch, plan.steps_per_epoch) == (1, 96, 10)
    assert plan.lr == pytest.approx(0.256 * 96 / 256)


def test_an_absolute_learning_rate_wins() -> None:
    config = replace(recipe(32, 64), optim=OptimConfig(lr=0.5, lr_per_256=7.0))
    assert resolve(config, num_images=1000, num_devices=1).lr == 0.5


def test_a_zero_learning_rate_is_not_an_absent_one() -> None:
    config = replace(recipe(32, 64), optim=OptimConfig(lr=0.0))
    assert resolve(config, num_images=1000, num_devices=1).lr == 0.0


# ---- batches that do not divide ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "wanted", "devices", "advice"),
    [
        (128, 1024, 3, "use --optimizer-batch-size 1152, or a number of devices that divides 1024"),
        (128, 1024, 16, "use --batch-size 64"),
        (112, 896, 16, "use --batch-size 56"),
        (100, 1024, 8, "use --batch-size 64"),
        (2048, 1024, 1, "use --batch-size 1024"),
    ],
)
def test_what_does_not_divide_names_the_fix(
    batch: int, wanted: int, devices: int, advice: str
) -> None:
    with pytest.raises(UserError, match=f"{advice}$") as error:
        resolve(recipe(batch, wanted), num_images=IMAGENET, num_devices=devices)
    assert "\n" not in str(error.value)


@settings(max_examples=50)
@given(st.integers(1, 300), st.integers(1, 2000), st.integers(1, 16))
def test_the_fix_works(batch: int, wanted: int, devices: int) -> None:
    try:
        plan = resolve(recipe(batch, wanted), num_images=IMAGENET, num_devices=devices)
    except UserError as error:
        kind, number = re.findall(r"use --(optimizer-)?batch-size (\d+)", str(error))[0]
        assert int(number) <= batch or kind
        batch, wanted = (batch, int(number)) if kind else (int(number), wanted)
        plan = resolve(recipe(batch, wanted), num_images=IMAGENET, num_devices=devices)
    assert plan.batch_size * devices * plan.accumulation == wanted


def test_a_batchnorm_group_divides_the_batch() -> None:
    config = replace(recipe(128, 1024), model=ModelConfig(bn_group_size=32))
    assert resolve(config, num_images=IMAGENET, num_devices=8).bn_group_size == 32
    config = replace(recipe(128, 1024), model=ModelConfig(bn_group_size=48))
    with pytest.raises(UserError, match="bn_group_size 48 does not divide batch_size 128"):
        resolve(config, num_images=IMAGENET, num_devices=8)


def test_too_few_images_for_one_step() -> None:
    with pytest.raises(UserError, match="63 training images .* step of 64: lower --batch-size"):
        resolve(recipe(64, 64), num_images=63, num_devices=1)


# ---- ranges ------------------------------------------------------------------------------------

BAD_VALUES = {
    "--epochs": Config(epochs=0),
    "--batch-size": Config(batch_size=0),
    "--run-epochs": Config(run_epochs=0),
    "--prof": Config(prof=0),
    "--optimizer-batch-size": Config(optimizer_batch_size=0),
    "--label-smoothing": Config(label_smoothing=1.5),
    "--mixup": Config(mixup=-0.1),
    "--use-ema": Config(use_ema=1.01),
    "--seed": Config(seed=-1),
    "--print-freq": Config(print_freq=0),
    "--evaluate": Config(evaluate=True, training_only=True),
    "--early-stopping-patience": Config(early_stopping_patience=3, training_only=True),
    "--optim.warmup": Config(epochs=8),
    "--optim.lr": Config(optim=OptimConfig(lr=math.nan)),
    "--optim.lr-per-256": Config(optim=OptimConfig(lr_per_256=math.inf)),
    "--optim.momentum": Config(optim=OptimConfig(momentum=-0.5)),
    "--optim.no-nesterov": Config(optim=OptimConfig(optimizer="adamw", lr=1e-3, nesterov=True)),
    "--optim.betas": Config(optim=OptimConfig(optimizer="lamb", lr=1e-3, betas=(0.9, 1.0))),
    "--optim.eps": Config(optim=OptimConfig(optimizer="adamw", lr=1e-3, eps=0.0)),
    "--optim.lr-per-256 0.016": Config(optim=OptimConfig(optimizer="rmsprop")),
    "--optim.weight-decay": Config(optim=OptimConfig(weight_decay=2.0)),
    "--data.image-size": Config(data=DataConfig(image_size=0)),
    "--data.workers": Config(data=DataConfig(workers=0)),
    "--data.crop-area": Config(data=DataConfig(crop_area=(0.5, 1.5))),
    "--data.crop-ratio": Config(data=DataConfig(crop_ratio=(2.0, 0.5))),
    "--loss-scale.init": Config(loss_scale=LossScaleConfig(init=0.0)),
    "--checkpoint.keep": Config(checkpoint=CheckpointConfig(keep=-2)),
    "--distributed.process-id": Config(distributed=DistributedConfig(process_id=-2)),
}


def changed(config: Config, path: str, value: Any) -> Config:
    """A config with another value at ``section.field``."""
    section, _, name = path.rpartition(".")
    if not section:
        return replace(config, **{name: value})
    return replace(config, **{section: replace(getattr(config, section), **{name: value})})


def test_every_number_has_a_range() -> None:
    kinds = {
        f"{section}{name}": kind
        for section, schema in {
            "": Config,
            **{f"{f.name}.": type(getattr(Config(), f.name)) for f in fields(Config)},
        }.items()
        if is_dataclass(schema)
        for name, kind in get_type_hints(schema).items()
    }
    assert kinds.keys() >= flatten(Config()).keys()
    numbers = {
        path
        for path in flatten(Config())
        if {int, float} & ({kinds[path]} | set(get_args(kinds[path])))
        and get_origin(kinds[path]) is not tuple
    }
    assert numbers == ranges(Config).keys() - {"optim.lr_steps"}


@pytest.mark.parametrize("path", sorted(ranges(Config).keys() - {"optim.lr_steps"}))
def test_a_number_just_outside_its_range_is_named(path: str) -> None:
    limit = ranges(Config)[path]
    for value in (limit.low - 1, limit.high + 1, math.nan, math.inf, -math.inf):
        with pytest.raises(UserError, match=f"^{option_name(path)} is ") as error:
            check(changed(Config(), path, value))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("option", BAD_VALUES)
def test_a_value_out_of_range_is_named(option: str) -> None:
    with pytest.raises(UserError, match=re.escape(option) + r"\b") as error:
        check(BAD_VALUES[option])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("optimizer", ["rmsprop", "adamw", "lamb"])
def test_the_learning_rate_of_sgd_is_for_no_other_optimizer(optimizer: Any) -> None:
    optim = OptimConfig(optimizer=optimizer)
    with pytest.raises(UserError, match=r"0.256 for 256 images\) is for sgd") as error:
        check(Config(optim=optim))
    rate = float(str(error.value).partition("--optim.lr-per-256 ")[2].split()[0])
    check(Config(optim=replace(optim, lr_per_256=rate)))
    check(Config(optim=replace(optim, lr=0.256)))


def test_not_a_number_in_a_crop() -> None:
    with pytest.raises(UserError, match="--data.crop-area is nan 1"):
        check(Config(data=DataConfig(crop_area=(math.nan, 1.0))))


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(optim=OptimConfig(lr_schedule="step", warmup=0), epochs=1),
        Config(use_ema=0.999, mixup=0.2, label_smoothing=0.0),
        Config(evaluate=True),
        Config(checkpoint=CheckpointConfig(keep=-1)),
    ],
)
def test_what_is_in_range_passes(config: Config) -> None:
    check(config)


# ---- views -------------------------------------------------------------------------------------


def test_a_field_s_spelling_on_the_command_line() -> None:
    assert option_name("optim.lr_per_256") == "--optim.lr-per-256"


def test_flatten_names_every_field() -> None:
    nested = asdict(Config())
    for path, value in flatten(Config()).items():
        inner = nested
        for part in path.split("."):
            inner = inner[part]
        assert inner == value
    assert flatten(Config())["optim.momentum"] == 0.875
