"""Half precision and the GPU's formulations, against the independent PyTorch network.

How far fp16 and bf16 are from float64 is measured beside PyTorch's autocast of the same network on
the same weights and images: ours may be no further, but for the luck of rounding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from seresnext_jax.config import ModelConfig, Precision
from seresnext_jax.data.normalize import normalize
from seresnext_jax.model.network import make_network
from seresnext_jax.ops.gpu.activation import relu_from_output
from seresnext_jax.ops.gpu.convolution import conv2d_on_gpu
from seresnext_jax.ops.gpu.pooling import max_pool_on_gpu
from seresnext_jax.training.losses import smoothed_cross_entropy
from seresnext_jax.training.precision import POLICIES
from tests.reference import torch_training
from tests.training.test_parity import (
    CLASSES,
    IMAGES,
    LR,
    OPTIMIZED,
    SMOOTHING,
    Twins,
    pixels,
    tiny_torch,
    to_torch_batch,
    to_torch_images,
    train_alike,
)
from tests.weights.bridge import by_torch_name, to_variables

SCALE = 128.0
"""The loss scale of fp16 in both."""


@pytest.fixture
def on_gpu_forms(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run what is lowered for a GPU on the CPU."""
    taken = set()

    def take_default(*args: Any, default: Any, **_: Any) -> Any:
        taken.add(getattr(default, "func", default))
        return default(*args)

    jax.clear_caches()
    monkeypatch.setattr(jax.lax, "platform_dependent", take_default)
    yield
    jax.clear_caches()
    assert {conv2d_on_gpu, max_pool_on_gpu, relu_from_output} <= taken


def test_five_training_steps_in_the_gpus_formulations_are_pytorchs(on_gpu_forms: None) -> None:
    # The YNN library of XLA's CPU backend (jax 0.10.2) writes outside its arrays in the gradient of
    # a convolution whose kernel was computed on the way, as that of merged groups is.
    options = OPTIMIZED | {"xla_cpu_experimental_ynn_fusion_type": ""}
    train_alike(Twins("no-bn", nesterov=False, compiler_options=options))


@dataclass(frozen=True)
class Result:
    """What one precision makes of a batch."""

    loss: float
    gradient: np.ndarray
    """Of all parameters, one after the other."""


def joined(gradients: dict[str, Any]) -> np.ndarray:
    return np.concatenate([np.ravel(gradients[name]) for name in sorted(gradients)])


def in_float64(model: Any, images: np.ndarray, labels: np.ndarray) -> Result:
    """Leaves the gradients in the model, for its optimizer."""
    loss, gradients = torch_training.loss_and_gradients(
        model, [to_torch_batch(images, labels)], SMOOTHING
    )
    return Result(loss, joined({name: x.numpy() for name, x in gradients.items()}))


def in_autocast(model: Any, dtype: torch.dtype, images: np.ndarray, labels: np.ndarray) -> Result:
    """PyTorch's mixed precision: float32 weights, the loss outside of autocast."""
    scale = SCALE if dtype == torch.float16 else 1.0
    model.train().zero_grad()
    with torch.autocast("cpu", dtype):
        logits = model(to_torch_images(images))
    loss = torch_training.label_smoothing_loss(
        logits.float(), torch.from_numpy(labels).long(), SMOOTHING
    )
    (loss * scale).backward()
    gradients = {name: p.grad.numpy() / scale for name, p in model.named_parameters()}
    return Result(loss.item(), joined(gradients))


def in_jax(step: Any, variables: Any, images: np.ndarray, labels: np.ndarray) -> Result:
    loss, gradients = step(variables, jnp.asarray(images), jnp.asarray(labels))
    names = by_torch_name(jax.device_get(gradients), variables["batch_stats"])
    return Result(float(loss), joined({k: x for k, x in names.items() if "running" not in k}))


def loss_and_gradients(precision: Precision) -> Any:
    """A compiled function of variables, images and labels."""
    policy = POLICIES[precision]
    config = ModelConfig(arch="se-resnext-tiny", num_classes=CLASSES)
    network = make_network(config, policy.compute_dtype)
    scale = SCALE if policy.scale_loss else 1.0

    def scaled_loss(params: Any, variables: Any, images: jax.Array, labels: jax.Array) -> Any:
        logits, _ = network.apply(
            {**variables, "params": params}, normalize(images), train=True, mutable=["batch_stats"]
        )
        targets = jax.nn.one_hot(labels, CLASSES)
        return scale * jnp.mean(smoothed_cross_entropy(logits, targets, SMOOTHING))

    @jax.jit
    def step(variables: Any, images: jax.Array, labels: jax.Array) -> Any:
        gradient = jax.value_and_grad(partial(scaled_loss, variables=variables))
        loss, gradients = gradient(variables["params"], images=images, labels=labels)
        return loss / scale, jax.tree.map(lambda g: g / scale, gradients)

    return step


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("formulations", ["cpu", "gpu"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_as_near_as_autocast(
    precision: Precision, formulations: str, request: pytest.FixtureRequest
) -> None:
    """Over the first steps of a training in float64."""
    if formulations == "gpu":
        request.getfixturevalue("on_gpu_forms")
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    master = tiny_torch().double()
    optimizer = torch_training.sgd(master, LR)
    step = loss_and_gradients(precision)
    ours, theirs = [], []
    for seed in range(3):
        images = pixels(seed)
        labels = np.random.default_rng(seed + 100).integers(0, CLASSES, IMAGES, np.int32)
        copy = tiny_torch()
        copy.load_state_dict(master.state_dict())
        variables = to_variables(copy)
        found, half = (
            in_jax(step, variables, images, labels),
            in_autocast(copy, dtype, images, labels),
        )
        wanted = in_float64(master, images, labels)
        optimizer.step()
        for result, errors in ((found, ours), (half, theirs)):
            errors.append((result.loss - wanted.loss, error(result.gradient, wanted.gradient)))
    our_loss, our_gradient = np.sqrt(np.mean(np.square(ours), axis=0))
    their_loss, their_gradient = np.sqrt(np.mean(np.square(theirs), axis=0))
    print(f"{precision}: loss {our_loss:.2e} {their_loss:.2e}", end=" ")
    print(f"gradient {our_gradient:.2e} {their_gradient:.2e}")
    # The errors are rounding: of the same size, but not the same numbers. The gradient's is an
    # average over 300,000 of them, the loss's over a few.
    assert our_gradient <= 1.25 * their_gradient
    assert our_loss <= 1.5 * their_loss
