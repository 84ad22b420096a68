"""The programs that are timed: a training step or a forward pass, in JAX or in PyTorch.

JAX's training step is set up as in `train.py`, and its forward pass as in `classify.py`. Images are
synthetic and on the device, so that only arithmetic is measured; but JAX's training step reads the
configuration's dataset if there is one. The PyTorch network is the tests' independent reference.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.input import open_loader, with_classes
from benchmarks.process import Facts, Task
from benchmarks.profile import profile_steps
from seresnext_jax.config import Config
from seresnext_jax.data.normalize import IMAGENET_MEAN, IMAGENET_STD
from seresnext_jax.errors import UserError
from seresnext_jax.mesh import make_mesh, replicate
from seresnext_jax.model.initial import init_variables
from seresnext_jax.model.network import ARCHITECTURES, make_network
from seresnext_jax.plan import passes_per_step
from seresnext_jax.run.runtime import keep_freed_memory, use_compilation_cache
from seresnext_jax.training.inference import folded_forward, place_folded
from seresnext_jax.training.precision import POLICIES
from seresnext_jax.training.state import create_train_state
from seresnext_jax.training.step import lower_train_step


@dataclass(frozen=True)
class Program:
    """Steps that can be run and timed."""

    facts: Facts
    dispatch: Callable[[], None]
    """Start one step; it may return before the step has ended."""
    wait: Callable[[], None]
    """Wait until every step that was started has ended."""
    waited: list[float] = field(default_factory=list)
    """Seconds that each training step waited for its images."""

    def time_each(self, steps: int) -> list[float]:
        """Run steps and wait for each: their latencies in seconds."""
        return [self.time_together(1)[0] for _ in range(steps)]

    def time_together(self, steps: int) -> list[float]:
        """Run steps and wait once, at the end, as training does: average seconds per step."""
        started = time.perf_counter()
        for _ in range(steps):
            self.dispatch()
        self.wait()
        return [(time.perf_counter() - started) / steps]

    def data_waits(self, steps: int) -> list[float]:
        """Seconds that each of the last steps waited for its images."""
        return self.waited[-steps:]

    def profile(self, steps: int) -> dict[str, float]:
        """Milliseconds per step on the device, by operation (`profile.profile_steps`)."""
        return profile_steps(self.dispatch, self.wait, steps)


def make_program(task: Task) -> Program:
    """Prepare a program. Only its own framework touches the GPU.

    Raises:
      UserError: a device, the dataset or an option is missing or wrong.
    """
    keep_freed_memory()
    if task.framework == "torch":
        return torch_program(task)
    use_compilation_cache(task.config.compilation_cache)
    if task.devices > jax.device_count():
        raise UserError(
            f"--devices {task.devices} but there are {jax.device_count()}: on a CPU set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={task.devices}"
        )
    return jax_training(task) if task.work == "train" else jax_inference(task.config)


def jax_training(task: Task) -> Program:
    """The training step of `train.py`, on the dataset or, if none is named, synthetic images."""
    config, devices = task.config, task.devices
    if not config.data.root:
        config = replace(config, data=replace(config.data, backend="synthetic"))
    else:
        config = with_classes(config, config.data)
    mesh = make_mesh(jax.devices()[:devices])
    passes = passes_per_step(config, devices)
    network = make_network(config.model, POLICIES[config.precision].compute_dtype)
    state = replicate(mesh, create_train_state(config, init_variables(network, config.seed)))
    batches = open_loader(config, mesh).batches(0)
    step, facts = _compile(lower_train_step(network.apply, config, mesh, state, passes=passes))
    waited: list[float] = []

    def dispatch() -> None:
        nonlocal state
        started = time.perf_counter()
        batch = next(batches)
        waited.append(time.perf_counter() - started)
        state, _ = step(state, batch, np.float32(0.01))

    return Program(facts, dispatch, lambda: jax.block_until_ready(state), waited)


def jax_inference(config: Config) -> Program:
    """The forward pass of `classify.py`, on one device."""
    network = make_network(config.model, POLICIES[config.precision].compute_dtype)
    variables = init_variables(network, config.seed)
    forward, variables = folded_forward(network, variables, config.precision)
    variables = place_folded(variables)
    images = jax.device_put(_random_images(config)[0], jax.devices()[0])
    compiled, facts = _compile(forward.lower(variables, images))
    logits: Any = None

    def dispatch() -> None:
        nonlocal logits
        logits = compiled(variables, images)

    return Program(facts, dispatch, lambda: jax.block_until_ready(logits))


def _compile(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, Facts]:
    started = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - started
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return compiled, Facts(
        device=jax.devices()[0].device_kind,
        compile_seconds=seconds,
        memory_bytes=None if memory is None else int(memory.temp_size_in_bytes),
        bytes_accessed=(cost or {}).get("bytes accessed"),
    )


def torch_program(task: Task) -> Program:
    """A PyTorch training step with the original's loss and optimizer, or a plain forward pass.

    Uses channels_last, autocast for fp16 and bf16, and on a GPU torch.compile. BatchNorm is not
    folded.
    """
    import torch

    from tests.reference.torch_model import Architecture, ResNet
    from tests.reference.torch_training import label_smoothing_loss, sgd

    config = task.config
    torch.backends.cuda.matmul.allow_tf32 = config.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
    torch.backends.cudnn.benchmark = True
    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(config.precision)
    autocast = partial(torch.autocast, device, half, enabled=half is not None)
    model = ResNet(Architecture(**vars(ARCHITECTURES[config.model.arch])), config.model.num_classes)
    model = model.to(device, memory_format=torch.channels_last).train(task.work == "train")
    forward = torch.compile(model) if on_gpu else model
    optimizer = sgd(model, lr=0.01)
    scaler = torch.amp.GradScaler(device, init_scale=128.0, enabled=config.precision == "fp16")
    images, labels = (torch.from_numpy(array).to(device) for array in _random_images(config))
    mean, std = (255 * torch.tensor(x, device=device) for x in (IMAGENET_MEAN, IMAGENET_STD))

    def logits() -> Any:
        """uint8 NHWC → normalised float32 NCHW, channels last in memory → logits."""
        return forward(((images.float() - mean) / std).permute(0, 3, 1, 2))

    def train() -> None:
        with autocast():
            loss = label_smoothing_loss(logits(), labels.long(), config.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    def infer() -> None:
        with torch.inference_mode(), autocast():
            logits()

    dispatch = train if task.work == "train" else infer
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    started = time.perf_counter()
    dispatch()  # the first step compiles
    wait()
    seconds = time.perf_counter() - started
    name = torch.cuda.get_device_name() if on_gpu else "cpu"
    return Program(Facts(name, seconds), dispatch, wait)


def _random_images(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """(N, H, W, 3) uint8 images and (N,) int32 labels."""
    generator = np.random.default_rng(config.seed)
    size, n = config.data.image_size, config.batch_size
    images = generator.integers(0, 256, (n, size, size, 3), np.uint8)
    return images, generator.integers(0, config.model.num_classes, n, np.int32)
