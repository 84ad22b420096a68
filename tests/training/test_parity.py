"""The network and its training step against the independent PyTorch ones of tests/reference.

Training is compared with PyTorch in float64, on batches that leave no ReLU's input so near zero
that float32's rounding decides its sign: one such moves a layer's gradients by up to 2e-3, ten
thousand times what they are off otherwise.
"""

from copy import deepcopy
from functools import partial
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from seresnext_jax.config import Config, DecayMask, ModelConfig, OptimConfig
from seresnext_jax.data.batch import Batch
from seresnext_jax.data.normalize import IMAGENET_MEAN, IMAGENET_STD, normalize
from seresnext_jax.data.place import abstract_batch, put_batch
from seresnext_jax.mesh import make_mesh, replicate
from seresnext_jax.model.network import make_network
from seresnext_jax.training.losses import smoothed_cross_entropy
from seresnext_jax.training.mixup import mix
from seresnext_jax.training.precision import POLICIES
from seresnext_jax.training.state import TrainState, create_train_state
from seresnext_jax.training.step import make_train_step
from tests.reference import torch_model, torch_training
from tests.weights.bridge import assert_close, by_torch_name, to_variables

SIZE, IMAGES, CLASSES, STEPS, SMOOTHING, LR = 64, 8, 10, 5, 0.1, 0.02
FP32 = POLICIES["fp32"]
RELU_MARGIN = 1e-6
"""From zero, of BatchNorm's outputs: several times float32's rounding of them."""
TINY = torch_model.Architecture(
    "bottleneck", (1, 1, 1, 1), (32, 64, 128, 256), 2, 8, stem_width=32, squeeze=16
)
"""What se-resnext-tiny has to be."""


def pixels(seed: int, n: int = IMAGES, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)


def to_torch_images(images: np.ndarray) -> torch.Tensor:
    """uint8 NHWC → normalised float32 NCHW, by the original's formula."""
    mean, std = (torch.tensor(x) * 255 for x in (IMAGENET_MEAN, IMAGENET_STD))
    return ((torch.from_numpy(images).float() - mean) / std).permute(0, 3, 1, 2)


def to_torch_batch(
    images: np.ndarray, labels: np.ndarray, mixup: torch_training.Mixup | None = None
) -> torch_training.MicroBatch:
    """The float64 batch of uint8 NHWC images and integer labels."""
    return torch_training.MicroBatch(
        to_torch_images(images).double(), torch.from_numpy(labels.astype(np.int64)), mixup
    )


class ReluInputs(TorchFunctionMode):
    """Watches how near to zero the inputs of PyTorch's ReLUs come."""

    nearest = float("inf")

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is F.relu:
            self.nearest = min(self.nearest, float(args[0].detach().abs().min()))
        return function(*args, **(kwargs or {}))


def is_clear(model: torch_model.ResNet, batch: torch_training.MicroBatch) -> bool:
    """Whether float32 knows the sign of every ReLU's input in a training step on `batch`."""
    with ReluInputs() as inputs, torch.no_grad():
        torch_training.training_loss(deepcopy(model).train(), batch, SMOOTHING)
    return inputs.nearest > RELU_MARGIN


def tiny_torch(seed: int = 0) -> torch_model.ResNet:
    with torch.no_grad():
        torch.manual_seed(seed)
        model = torch_model.ResNet(TINY, CLASSES)
        torch_model.randomize_like_trained(model, seed, image_size=SIZE)
    return model


@pytest.mark.slow
def test_full_size_network_gives_pytorchs_logits_and_stage_outputs() -> None:
    with torch.no_grad():
        model = torch_model.ResNet(torch_model.ARCHITECTURES["se-resnext101-32x4d"])
        torch_model.randomize_like_trained(model, seed=0)
        images = pixels(1, n=2, size=224)
        wanted = model.forward_features(to_torch_images(images))
    network = make_network(ModelConfig(), FP32.compute_dtype)
    forward = jax.jit(partial(network.apply, method="extract_features"))
    found: Any = forward(to_variables(model), normalize(jnp.asarray(images)))
    logits = wanted.pop("classifier").numpy()
    assert np.abs(np.asarray(found.pop("classifier")) - logits).max() <= 1e-4 * max(
        1.0, np.ptp(logits) / 8
    )
    channels_last = {name: x.permute(0, 2, 3, 1).numpy() for name, x in wanted.items()}
    assert_close({k: np.asarray(v) for k, v in found.items()}, channels_last, relative=1e-4)


OPTIMIZED = {"xla_backend_optimization_level": 3}
"""As users' programs are: without optimisation, long sums are less exact."""


class Twins:
    """One PyTorch network and its Flax copy, trained on the same batches."""

    def __init__(self, rule: DecayMask, nesterov: bool, compiler_options: Any = OPTIMIZED) -> None:
        self.model = tiny_torch()
        variables = to_variables(self.model)
        self.model.double()
        # A decay this strong shows at once which tensors it is applied to.
        optim = OptimConfig(decay_mask=rule, nesterov=nesterov, weight_decay=0.05)
        model = ModelConfig(arch="se-resnext-tiny", num_classes=CLASSES)
        config = Config(model=model, optim=optim, label_smoothing=SMOOTHING)
        self.sgd = torch_training.sgd(
            self.model, LR, weight_decay=0.05, decay=rule, nesterov=nesterov
        )
        network = make_network(model, FP32.compute_dtype)
        state = create_train_state(config, variables)
        self.mesh = make_mesh(jax.devices()[:1])
        self.state: TrainState = replicate(self.mesh, jax.tree.map(jnp.asarray, state))
        step = make_train_step(network.apply, config, self.mesh)
        batch = abstract_batch(self.mesh, passes=1, batch_size=IMAGES, image_size=SIZE)
        lowered = step.lower(self.state, batch, np.float32(LR))
        self.step = lowered.compile(compiler_options=compiler_options)
        self.seeds = count()

    def train(self) -> tuple[float, float]:
        """One step of both on the next clear batch; returns both losses."""
        while True:
            seed = next(self.seeds)
            images = pixels(seed)
            labels = np.random.default_rng(seed + 100).integers(0, CLASSES, IMAGES, np.int32)
            micro = to_torch_batch(images, labels)
            if is_clear(self.model, micro):
                break
        batch: Batch = put_batch(self.mesh, images[None], labels[None], np.ones((1, IMAGES), bool))
        self.state, metrics = self.step(self.state, batch, np.float32(LR))
        wanted, _ = torch_training.train_step(self.model, self.sgd, [micro], SMOOTHING)
        return float(metrics["loss"]), wanted

    def momentum(self) -> Any:
        return self.state.opt_state[1].trace


def train_alike(twins: Twins) -> TrainState:
    """Five steps with equal losses, weights and running statistics; returns the last state."""
    for _ in range(STEPS):
        found, wanted = twins.train()
        assert found == pytest.approx(wanted, rel=1e-4)
    state = {
        name: x.numpy()
        for name, x in twins.model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    trained = jax.device_get(twins.state)
    assert_close(by_torch_name(trained.params, trained.batch_stats), state, relative=1e-4)
    return trained


@pytest.mark.parametrize(
    ("rule", "nesterov"),
    [("no-bn", False), ("nvidia-names", False), ("all", False), ("no-bn", True)],
)
def test_five_training_steps_are_pytorchs(rule: DecayMask, nesterov: bool) -> None:
    twins = Twins(rule, nesterov)
    trained = train_alike(twins)
    buffers = {
        name: twins.sgd.state[p]["momentum_buffer"].numpy()
        for name, p in twins.model.named_parameters()
    }
    found = by_torch_name(jax.device_get(twins.momentum()), trained.batch_stats)
    assert_close({name: found[name] for name in buffers}, buffers, relative=1e-4)


@pytest.mark.parametrize("mixed", [False, True])
def test_loss_and_every_gradient_are_pytorchs(mixed: bool) -> None:
    model = tiny_torch(seed=1)
    labels = np.random.default_rng(4).integers(0, CLASSES, IMAGES)
    order, c = np.random.default_rng(5).permutation(IMAGES), 0.3
    draw = torch_training.Mixup(c, torch.from_numpy(order)) if mixed else None
    network = make_network(
        ModelConfig(arch="se-resnext-tiny", num_classes=CLASSES), FP32.compute_dtype
    )
    variables = to_variables(model)
    model.double()
    images = next(
        x for x in map(pixels, count()) if is_clear(model, to_torch_batch(x, labels, draw))
    )

    @jax.jit
    def loss(params: Any) -> jax.Array:
        x, mask = normalize(jnp.asarray(images)), jnp.ones(IMAGES, bool)
        targets = jax.nn.one_hot(jnp.asarray(labels), CLASSES)
        if mixed:
            share = jnp.float32(c)
            x, targets, mask = mix(x, targets, mask, share, share, jnp.asarray(order))
        logits, _ = network.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        return jnp.mean(smoothed_cross_entropy(logits, targets, SMOOTHING))

    value, gradients = jax.value_and_grad(loss)(variables["params"])
    wanted_loss, wanted = torch_training.loss_and_gradients(
        model, [to_torch_batch(images, labels, draw)], SMOOTHING
    )
    assert float(value) == pytest.approx(wanted_loss, rel=1e-5)
    found = by_torch_name(jax.device_get(gradients), variables["batch_stats"])
    arrays = {name: x.numpy() for name, x in wanted.items()}
    assert_close({name: found[name] for name in arrays}, arrays, relative=1e-4)
