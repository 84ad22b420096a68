"""The training step: the same on any number of devices, and what it does beside the update."""

import re
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seresnext_jax.config import (
    Config,
    DataConfig,
    LossScaleConfig,
    ModelConfig,
    OptimConfig,
    Precision,
)
from seresnext_jax.data.place import local_columns, put_batch
from seresnext_jax.mesh import local_value_and_grad, make_mesh, replicate
from seresnext_jax.model.layers import BatchNorm, Conv, Dense
from seresnext_jax.model.network import Architecture, Block, Options
from seresnext_jax.ops.pooling import global_mean
from seresnext_jax.training.eval_step import make_eval_step
from seresnext_jax.training.precision import POLICIES
from seresnext_jax.training.state import TrainState, create_train_state
from seresnext_jax.training.step import make_train_step

IMAGES, SIZE, CLASSES, GROUP = 16, 12, 5, 4
CONFIG = Config(
    model=ModelConfig(num_classes=CLASSES),
    optim=OptimConfig(weight_decay=1e-3),
    label_smoothing=0.1,
    use_ema=0.9,
    topk=2,
    seed=7,
)
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (8, IMAGES, SIZE, SIZE, 3), np.uint8)
LABELS = RNG.integers(0, CLASSES, (8, IMAGES)).astype(np.int32)


class Toy(nn.Module):
    """Every kind of layer once, a grouped convolution among them; compiles in no time."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = Conv(16, 3, 2, name="conv1")(x.astype(self.dtype))
        x = nn.relu(BatchNorm(GROUP, name="bn1")(x, train=train))
        x = Conv(16, 3, groups=4, name="conv2")(x)
        x = nn.relu(BatchNorm(GROUP, name="bn2")(x, train=train))
        return Dense(CLASSES, name="fc")(global_mean(x))


class Narrow(nn.Module):
    """The stem and a real block, with its downsample, grouped convolution and SE gate."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        arch = Architecture("bottleneck", (1,), (8,), 2, 4, squeeze=4)
        x = nn.relu(BatchNorm(GROUP, name="bn1")(Conv(8, 7, 2, name="conv1")(x), train=train))
        x = Block(Options(arch, "fan_in", bn_group_size=GROUP), 8, 2, name="0")(x, train=train)
        return Dense(CLASSES, name="fc")(global_mean(x))


class Run:
    """A small network on some devices."""

    def __init__(
        self,
        devices: int = 1,
        passes: int = 1,
        config: Config = CONFIG,
        network: nn.Module | None = None,
        images: int = IMAGES,
    ) -> None:
        self.images = images
        self.mesh = make_mesh(jax.devices()[:devices])
        self.passes = passes
        network = network or Toy(dtype=POLICIES[config.precision].compute_dtype)
        image = jnp.zeros((GROUP, SIZE, SIZE, 3))
        state = create_train_state(config, network.init(jax.random.key(0), image, train=False))
        self.state: TrainState = replicate(self.mesh, state)
        self.step: Any = make_train_step(network.apply, config, self.mesh)
        self.eval_step = make_eval_step(network.apply, replace(config, mixup=0.0), self.mesh)

    def batch(self, index: int, mask: np.ndarray | None = None) -> Any:
        shape = (self.passes, self.images // self.passes)
        mask = np.ones(self.images, bool) if mask is None else mask
        images = PIXELS[index, : self.images].reshape(*shape, SIZE, SIZE, 3)
        labels = LABELS[index, : self.images].reshape(shape)
        return put_batch(self.mesh, images, labels, mask.reshape(shape))

    def train(
        self, steps: int = 5, lr: float = 0.05, mask: np.ndarray | None = None
    ) -> list[dict[str, float]]:
        lines = []
        for index in range(steps):
            self.state, metrics = self.step(self.state, self.batch(index, mask), np.float32(lr))
            lines.append({name: float(x) for name, x in metrics.items()})
        return lines


def assert_same(a: Any, b: Any, *, relative: float = 1e-5) -> None:
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(jax.device_get(a)),
        jax.tree.leaves(jax.device_get(b)),
        strict=True,
    ):
        scale = max(float(np.abs(y).max()), 1e-3)
        assert np.abs(np.float64(x) - np.float64(y)).max() <= relative * scale, path


def assert_same_runs(runs: list[Run], mask: np.ndarray | None = None) -> None:
    """Five steps give the same state and metrics in each."""
    lines = [run.train(mask=mask) for run in runs]
    for run, line in zip(runs[1:], lines[1:], strict=True):
        assert_same(run.state, runs[0].state)
        for found, wanted in zip(line, lines[0], strict=True):
            assert found == pytest.approx(wanted, rel=1e-5)


OPTIMIZERS: tuple[Any, ...] = ("rmsprop", "adamw", "lamb")
CHANGES: list[Any] = [
    *({}, {"mixup": 0.2}, {"mixup": 0.2, "cutmix": 1.0}),
    *({"optim": OptimConfig(optimizer=name, clip_norm=0.05)} for name in OPTIMIZERS),
]


@pytest.mark.parametrize("changed", CHANGES)
def test_a_step_is_the_same_on_any_division_into_devices_and_passes(changed: Any) -> None:
    config = replace(CONFIG, **changed)
    # Mixing draws once per device and pass; without it one device may take all groups at once.
    divisions = [(4, 1), (1, 4), (2, 2)] if changed else [(1, 1), (2, 1), (4, 1), (1, 4), (2, 2)]
    runs = [Run(devices, passes, config) for devices, passes in divisions]
    assert_same_runs(runs)
    if not changed:
        # Left-out images, all of them on one device of four, half of the next one's.
        assert_same_runs(runs, mask=np.arange(IMAGES) >= 6)
        assert runs[0].train(steps=1, mask=np.arange(IMAGES) >= 6)[0]["readable"] == 10 / 16


def test_augmentation_is_the_same_on_any_division_into_devices_and_passes() -> None:
    data = DataConfig(augmentation="autoaugment", random_erasing=0.5)
    config = replace(CONFIG, data=data)
    runs = [Run(*division, config) for division in [(1, 1), (4, 1), (1, 4), (2, 2)]]
    assert_same_runs(runs)
    assert runs[0].train()[0]["loss"] != Run().train()[0]["loss"]


def test_a_step_of_the_real_block_is_the_same_on_any_division() -> None:
    """And it gathers nothing, and donates its state."""
    runs = [Run(*division, network=Narrow()) for division in [(1, 4), (2, 2), (4, 1)]]
    for run in runs:
        run.step = run.step.lower(run.state, run.batch(0), np.float32(0)).compile()
    before = jax.tree.leaves(runs[-1].state)
    assert_same_runs(runs)
    assert all(leaf.is_deleted() for leaf in before)
    text = runs[-1].step.as_text()
    assert "all-gather" not in text and "all-to-all" not in text
    assert len(re.findall(r" all-reduce\(", text)) == 1, "all gradients travel together"


def test_gradients_are_clipped_once_per_step_and_without_the_loss_scale() -> None:
    """After the mean over devices and passes; the length of plain SGD's first update shows it."""
    optim = OptimConfig(weight_decay=0.0, momentum=0.0, clip_norm=0.01)
    config = replace(CONFIG, optim=optim, use_ema=None)
    runs = [Run(*division, config) for division in [(1, 1), (4, 1), (1, 4), (2, 2)]]
    scaled = Run(config=replace(config, precision="fp16"))
    before = jax.device_get(scaled.state.params)
    assert_same_runs(runs)
    scaled.train(steps=1, lr=1.0)
    moved = jax.tree.map(lambda a, b: a - b, jax.device_get(scaled.state.params), before)
    assert float(optax.tree.norm(moved)) == pytest.approx(0.01, rel=1e-4)


def test_a_nan_loss_skips_the_update_even_with_finite_gradients() -> None:
    """Logits so far apart that their logarithms overflow, and statistics that are not finite."""
    apart = jnp.full((IMAGES, CLASSES), -3e38).at[:, 0].set(3e38)

    def apply(variables: Any, images: jax.Array, **_: Any) -> Any:
        logits = apart + variables["params"]["fc"]["bias"]
        return logits, {"batch_stats": {"mean": jnp.inf * jnp.mean(images)}}

    config = replace(CONFIG, precision="fp16", use_ema=None)
    variables = {
        "params": {"fc": {"bias": jnp.zeros(CLASSES)}},
        "batch_stats": {"mean": jnp.float32(0)},
    }
    state = create_train_state(config, variables)
    run = Run()
    step = make_train_step(apply, config, run.mesh)
    state, metrics = step(replicate(run.mesh, state), run.batch(0), np.float32(1))
    assert not np.isfinite(float(metrics["loss"]))
    assert int(metrics["bad_steps"]) == int(metrics["skipped_steps"]) == 1
    assert not np.any(state.params["fc"]["bias"]) and not np.any(state.batch_stats["mean"])
    assert float(state.loss_scale.scale) == 128, "torch's scaler looks at gradients only"


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_the_gradient_is_the_mean_over_devices(devices: int) -> None:
    mesh = make_mesh(jax.devices()[:devices])
    x = np.arange(8.0, dtype=np.float32)
    spec = jax.sharding.PartitionSpec("data")

    def device(w: jax.Array, x: jax.Array) -> Any:
        _, gradient = local_value_and_grad(lambda w: (jnp.mean(w * x**2), None))(w)
        return jax.lax.pmean(gradient, "data")

    mapped = jax.shard_map(
        device,
        mesh=mesh,
        in_specs=(jax.sharding.PartitionSpec(), spec),
        out_specs=jax.sharding.PartitionSpec(),
    )
    assert float(jax.jit(mapped)(jnp.float32(2), x)) == pytest.approx(np.mean(x**2))


def test_masked_images_do_not_train() -> None:
    """Their pixels go through BatchNorm like any; their labels must not matter."""
    mask = np.arange(IMAGES) % 4 != 1
    results = []
    for labels in (LABELS[0], np.where(mask, LABELS[0], 0)):
        run = Run()
        batch = run.batch(0, mask)._replace(labels=run.batch(0).labels)
        images, _, seen = batch
        batch = put_batch(run.mesh, np.asarray(images), labels[None], np.asarray(seen))
        run.state, metrics = run.step(run.state, batch, np.float32(0.05))
        results.append((run.state.params, float(metrics["loss"])))
    assert results[0][1] == results[1][1]
    assert_same(results[0][0], results[1][0], relative=0)


def test_the_moving_average_is_the_originals() -> None:
    run = Run()
    average = jax.device_get(run.state.ema)
    for index in range(3):
        run.train(steps=1)
        mu = min(0.9, (1 + index) / (10 + index))
        now = jax.device_get(run.state.variables)
        average = jax.tree.map(lambda a, x, mu=mu: mu * a + (1 - mu) * x, average, now)
    assert_same(run.state.ema, average, relative=1e-6)


def test_an_overflow_costs_the_update_and_nothing_else() -> None:
    run = Run(config=replace(CONFIG, precision="fp16", loss_scale=LossScaleConfig(init=2.0**24)))
    before = jax.device_get(run.state)
    (line,) = run.train(steps=1)
    after = jax.device_get(run.state)
    assert line["skipped_steps"] == line["bad_steps"] == 1 and np.isfinite(line["loss"])
    assert_same((after.params, after.opt_state), (before.params, before.opt_state), relative=0)
    assert float(after.loss_scale.scale) == 2.0**23 and int(after.step) == 1
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.batch_stats, before.batch_stats)
    assert max(jax.tree.leaves(moved)) > 0
    while run.train(steps=1)[0]["bad_steps"]:
        pass
    assert float(run.state.loss_scale.scale) < 2.0**23


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 0.01), ("bf16", 0.05)])
def test_half_precision_trains_alike(precision: Precision, tolerance: float) -> None:
    wanted = Run().train()
    found = Run(config=replace(CONFIG, precision=precision)).train()
    losses = [line["loss"] for line in found]
    assert losses == pytest.approx([line["loss"] for line in wanted], rel=tolerance)


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adamw", "lamb"])
def test_a_frozen_backbone_stays_statistics_included(optimizer: Any) -> None:
    """On three devices: the mean of three equal statistics would be rounded."""
    optim = OptimConfig(optimizer=optimizer, freeze_backbone=True)
    run = Run(3, config=replace(CONFIG, optim=optim), images=12)
    stats = jax.tree.map(lambda x: RNG.random(x.shape, np.float32), run.state.batch_stats)
    run.state = replace(run.state, batch_stats=replicate(run.mesh, stats))
    before = jax.device_get(run.state)
    run.train()
    after = jax.device_get(run.state)
    assert np.abs(after.params["fc"]["kernel"] - before.params["fc"]["kernel"]).max() > 0
    for params in (after.params, before.params):
        params.pop("fc")
    assert_same((after.params, after.batch_stats), (before.params, before.batch_stats), relative=0)


def test_a_frozen_backbone_is_not_part_of_the_norm() -> None:
    """Plain SGD moves the classifier by the whole norm that is allowed."""
    optim = OptimConfig(weight_decay=0.0, momentum=0.0, clip_norm=0.01, freeze_backbone=True)
    run = Run(config=replace(CONFIG, optim=optim))
    before = jax.device_get(run.state.params)
    run.train(steps=1, lr=1.0)
    moved = jax.tree.map(lambda a, b: a - b, jax.device_get(run.state.params), before)
    assert float(optax.tree.norm(moved)) == pytest.approx(0.01, rel=1e-4)


def test_evaluation_sums_do_not_depend_on_the_devices() -> None:
    mask = np.arange(IMAGES) < 13
    found = []
    for devices in (1, 4):
        run = Run(devices)
        sums = run.eval_step(run.state.variables, run.batch(0, mask))
        found.append({name: float(x) for name, x in sums.items()})
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0]["count"] == 13


def test_columns_of_the_processes_make_up_a_pass() -> None:
    mesh = make_mesh(jax.devices()[:4])
    assert local_columns(mesh, 8) == slice(0, 8)
    with pytest.raises(ValueError, match="6 images.*4 devices"):
        local_columns(mesh, 6)


@pytest.mark.parametrize("mixed", [0.0, 0.2])
def test_a_step_without_an_image_has_no_loss_and_changes_nothing(mixed: float) -> None:
    run = Run(2, 2, replace(CONFIG, mixup=mixed, use_ema=0.9, precision="fp16"))
    run.train(steps=2)
    before = jax.device_get(run.state)
    (line,) = run.train(steps=1, mask=np.zeros(IMAGES, bool))
    assert np.isnan(line["loss"]) and line["readable"] == 0 and line["bad_steps"] == 1
    counters = {"step": before.step, "skipped_steps": 0, "bad_steps": 0}
    assert_same(replace(run.state, **counters), replace(before, **counters), relative=0)
