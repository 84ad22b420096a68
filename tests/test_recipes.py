"""The recipes: each file and name against the table of NVIDIA's configs.yml, written out here."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from configs import base
from seresnext_jax.config import Config, flatten
from seresnext_jax.config_check import check
from seresnext_jax.config_files import load_config
from seresnext_jax.errors import UserError
from seresnext_jax.plan import resolve

FOLDER = Path(__file__).parent.parent / "configs"
IMAGENET = 1_281_167

TABLE = """
recipe              precision  batch  optimizer batch  passes  lr     steps  epochs  mixup  workers  prefetch  backend
dgxa100_amp_90e     fp16       128    1024             1       1.024  1251   90      0.0    10       4         dali-cpu
dgxa100_amp_250e    fp16       128    1024             1       1.024  1251   250     0.2    10       4         dali-cpu
dgxa100_tf32_90e    tf32       128    1024             1       1.024  1251   90      0.0    10       4         dali-cpu
dgxa100_tf32_250e   tf32       128    1024             1       1.024  1251   250     0.2    10       4         dali-cpu
dgx1v_amp_90e       fp16       112    896              1       0.896  1429   90      0.0    8        4         dali-cpu
dgx1v_amp_250e      fp16       112    896              1       0.896  1429   250     0.2    8        4         dali-cpu
dgx1v_fp32_90e      fp32       64     1024             2       1.024  1251   90      0.0    8        4         dali-cpu
dgx1v_fp32_250e     fp32       64     1024             2       1.024  1251   250     0.2    8        4         dali-cpu
t4_amp_90e          fp16       128    1024             1       1.024  1251   90      0.0    8        2         dali-cpu
t4_amp_250e         fp16       128    1024             1       1.024  1251   250     0.2    8        2         dali-cpu
t4_fp32_90e         fp32       64     1024             2       1.024  1251   90      0.0    8        2         dali-cpu
t4_fp32_250e        fp32       64     1024             2       1.024  1251   250     0.2    8        2         dali-cpu
"""  # noqa: E501
"""What the original's table and ImageNet say on eight devices; `passes` and `steps` follow from the
batches. The backend is the one that the original's README recommends (configs/base.py)."""
HEAD, *ROWS = TABLE.strip().splitlines()
RECIPES = [row.split()[0] for row in ROWS]

OTHER_ARCHITECTURES = """
recipe                         precision  batch  optimizer batch  lr     decay  workers  prefetch
resnext101-32x4d/dgxa100_amp   fp16       128    1024             1.024  2^-14  10       4
resnext101-32x4d/dgxa100_tf32  tf32       128    1024             1.024  2^-14  10       4
resnext101-32x4d/dgx1v_amp     fp16       128    1024             1.024  2^-14  8        4
resnext101-32x4d/dgx1v_fp32    fp32       64     1024             1.024  2^-14  8        4
resnext101-32x4d/t4_amp        fp16       128    1024             1.024  2^-14  8        2
resnext101-32x4d/t4_fp32       fp32       64     1024             1.024  2^-14  8        2
resnet50/dgxa100_amp           fp16       256    2048             2.048  2^-15  10       4
resnet50/dgxa100_tf32          tf32       256    2048             2.048  2^-15  10       4
resnet50/dgx1v_amp             fp16       256    2048             2.048  2^-15  8        4
resnet50/dgx1v_fp32            fp32       112    896              0.896  2^-14  8        4
resnet50/dgx2v_amp             fp16       256    4096             4.096  2^-15  8        4
resnet50/dgx2v_fp32            fp32       256    4096             4.096  2^-15  8        4
resnet50/t4_amp                fp16       256    2048             2.048  2^-15  8        2
resnet50/t4_fp32               fp32       128    2048             2.048  2^-15  8        2
"""
OTHER_ROWS = [line.split() for line in OTHER_ARCHITECTURES.strip().splitlines()[1:]]

SHARED: dict[str, Any] = {
    "model.arch": "se-resnext101-32x4d",
    "model.num_classes": 1000,
    "model.conv_init": "fan_in",
    "model.last_bn_0_init": False,
    "data.root": "/imagenet",
    "data.image_size": 224,
    "data.eval_margin": 32,
    "data.crop_area": (0.08, 1.0),
    "data.crop_ratio": (3 / 4, 4 / 3),
    "data.flip": True,
    "label_smoothing": 0.1,
    "optim.lr": None,
    "optim.lr_per_256": 0.256,
    "optim.lr_schedule": "cosine",
    "optim.lr_update": "epoch",
    "optim.momentum": 0.875,
    "optim.nesterov": False,
    "optim.weight_decay": 1 / 16384,
    "optim.warmup": 8,
    "optim.end_lr": 0.0,
    "loss_scale.init": 128.0,
    "loss_scale.growth_interval": 100,
    "print_freq": 20,
    "use_ema": None,
    "topk": 5,
    "evaluate": False,
    "training_only": False,
    "no_checkpoints": False,
    "prof": -1,
    "run_epochs": -1,
}
MODES = ["benchmark_training", "benchmark_training_short", "benchmark_inference"]


def load(name: str) -> Config:
    """The config of one file of the folder."""
    return load_config(str(FOLDER / f"{name}.py"))


def row(name: str) -> str:
    """A recipe on eight devices as a row of `TABLE`."""
    config = load(name)
    plan = resolve(config, num_images=IMAGENET, num_devices=8)
    assert plan.total_steps == plan.steps_per_epoch * config.epochs
    cells = {
        "recipe": name,
        "precision": config.precision,
        "batch": plan.batch_size,
        "optimizer batch": plan.global_batch,
        "passes": plan.accumulation,
        "lr": f"{plan.lr:.12g}",
        "steps": plan.steps_per_epoch,
        "epochs": plan.epochs,
        "mixup": config.mixup,
        "workers": config.data.workers,
        "prefetch": config.data.prefetch,
        "backend": config.data.backend,
    }
    line = ""
    for title, value in cells.items():
        line = f"{line:<{HEAD.index(title)}}{value}"
    return line


def test_the_table() -> None:
    rows = [row(name) for name in RECIPES]
    print("\n".join([HEAD, *rows]))
    assert rows == ROWS


@pytest.mark.parametrize("row", OTHER_ROWS, ids=lambda row: row[0])
@pytest.mark.parametrize("epochs", [90, 250])
def test_the_recipes_of_other_architectures(row: list[str], epochs: int) -> None:
    name, precision, batch, optimizer_batch, lr, decay, workers, prefetch = row
    config = load_config(f"{name}_{epochs}e")
    check(config)
    plan = resolve(config, num_images=IMAGENET, num_devices=16 if "dgx2v" in name else 8)
    assert (config.precision, plan.batch_size) == (precision, int(batch))
    assert (plan.global_batch, f"{plan.lr:.12g}") == (int(optimizer_batch), lr)
    assert config.optim.weight_decay == 2.0 ** int(decay.removeprefix("2^"))
    assert (config.data.workers, config.data.prefetch) == (int(workers), int(prefetch))
    found = flatten(config)
    own = {"model.arch": name.partition("/")[0], "optim.weight_decay": config.optim.weight_decay}
    assert {path: found[path] for path in SHARED} == SHARED | own
    assert (config.epochs, config.mixup) == (epochs, 0.0 if epochs == 90 else 0.2)


@pytest.mark.parametrize("name", RECIPES)
def test_a_name_with_the_architecture_is_the_same_recipe(name: str) -> None:
    assert load_config(f"se-resnext101-32x4d/{name}") == load(name)


def test_every_name_is_one_of_these() -> None:
    others = {f"{row[0]}_{epochs}e" for row in OTHER_ROWS for epochs in (90, 250)}
    assert set(base.NAMED) == others | {f"se-resnext101-32x4d/{name}" for name in RECIPES}


@pytest.mark.parametrize("name", RECIPES)
def test_what_every_recipe_has(name: str) -> None:
    found = flatten(load(name))
    assert {path: found[path] for path in SHARED} == SHARED


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("name", RECIPES)
def test_fewer_devices_take_the_same_steps(name: str, devices: int) -> None:
    config = load(name)
    eight = resolve(config, num_images=IMAGENET, num_devices=8)
    fewer = resolve(config, num_images=IMAGENET, num_devices=devices)
    assert fewer.accumulation == eight.accumulation * 8 // devices
    assert (fewer.lr, fewer.total_steps, fewer.global_batch, fewer.bn_group_size) == (
        eight.lr,
        eight.total_steps,
        eight.global_batch,
        eight.bn_group_size,
    )


def test_sixteen_devices_need_a_smaller_batch() -> None:
    with pytest.raises(UserError, match="use --batch-size 64$"):
        resolve(load("dgxa100_amp_90e"), num_images=IMAGENET, num_devices=16)


# The original's benchmark modes say `epochs`; here the schedule stays and `run_epochs` cuts it.
TRAINING = {
    "print_freq": 1,
    "run_epochs": 3,
    "training_only": True,
    "no_checkpoints": True,
    "evaluate": False,
    "prof": -1,
    "data.backend": "dali-cpu",
}
MODE_TABLE: dict[str, dict[str, Any]] = {
    "benchmark_training": TRAINING,
    "benchmark_training_short": TRAINING
    | {"run_epochs": 1, "data.backend": "synthetic", "prof": 100},
    "benchmark_inference": {
        "print_freq": 1,
        "evaluate": True,
        "training_only": False,
        "no_checkpoints": True,
        "prof": -1,
        "data.backend": "dali-cpu",
    },
}


@pytest.mark.parametrize("name", MODES)
def test_a_benchmark_differs_from_the_recipe_by_its_mode_only(name: str) -> None:
    base, found = flatten(load("dgxa100_amp_250e")), flatten(load(name))
    mode = MODE_TABLE[name]
    assert {path: found[path] for path in mode} == mode
    assert {path for path in base if base[path] != found[path]} <= set(mode)


def test_digits_is_a_small_run_that_mirrors_nothing() -> None:
    config = load("digits")
    assert (config.model.arch, config.model.num_classes) == ("se-resnext-tiny", 10)
    assert (config.data.image_size, config.data.eval_margin) == (32, 0)
    assert not config.data.flip
    for devices in (1, 2):
        plan = resolve(config, num_images=1500, num_devices=devices)
        assert 32 <= plan.global_batch <= 64
        assert 0.03 <= plan.lr <= 0.2
        assert plan.total_steps < 1000


def test_every_file_is_one_of_these() -> None:
    files = {path.stem for path in FOLDER.glob("*.py")}
    assert files == {*RECIPES, *MODES, "digits", "base", "__init__"}


@pytest.mark.parametrize("name", [*RECIPES, *MODES, "digits"])
def test_each_file_is_independent(name: str) -> None:
    config = load(name)
    check(config)
    json.dumps(asdict(config), allow_nan=False)
    text = (FOLDER / f"{name}.py").read_text()
    assert f"--config configs/{name}.py" in text, "the docstring shows how to run it"
    assert "img/s" not in text or "NVIDIA's figures, not measured" in text or "no figures" in text
