"""A training step and a forward pass of one network, in JAX and in PyTorch, as timed work.

Images are synthetic and on the device, so that arithmetic is measured and nothing else, or come
from the configuration's dataset to JAX's training step, as in `train.py`. The PyTorch network is
the one that the tests take as their yardstick.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any

import jax
import numpy as np

from seresnext_jax.config import Config, resolve
from seresnext_jax.data.batch import Batch
from seresnext_jax.data.files import class_folders
from seresnext_jax.data.open import open_train, split_folder
from seresnext_jax.data.place import put_batch
from seresnext_jax.mesh import make_mesh, replicate
from seresnext_jax.model.initial import init_variables
from seresnext_jax.model.network import ARCHITECTURES, make_network
from seresnext_jax.training.inference import folded_forward, place_folded
from seresnext_jax.training.precision import POLICIES
from seresnext_jax.training.state import create_train_state
from seresnext_jax.training.step import lower_train_step


@dataclass(frozen=True)
class Program:
    """Work, and what it took to get it ready."""

    dispatch: Callable[[], None]
    """Start one step; it may return before the step has ended."""
    wait: Callable[[], None]
    """Return when every step that was started has ended."""
    compile_seconds: float
    memory_bytes: int | None = None
    """Peak of temporary buffers per device, where the compiler tells."""
    bytes_accessed: float | None = None
    """Memory traffic of one call per device by the compiler's count, where it tells."""
    data_waits: list[float] = field(default_factory=list)
    """Seconds that each training step waited for its images; synthetic ones are there."""


def _images(config: Config, devices: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(config.seed)
    size, n = config.data.image_size, config.batch_size * devices
    images = generator.integers(0, 256, (1, n, size, size, 3), np.uint8)
    return images, generator.integers(0, config.model.num_classes, (1, n), np.int32)


def _batches(config: Config, mesh: Any) -> Iterator[Batch]:
    """Batches of the dataset at ``data.root``, or one synthetic batch again and again."""
    if not config.data.root:
        images, labels = _images(config, mesh.size)
        return repeat(put_batch(mesh, images, labels, np.ones(labels.shape, bool)))
    classes = len(class_folders(split_folder(config.data, "train")))
    config = replace(config, model=replace(config.model, num_classes=classes))
    return open_train(config, mesh).batches(0)


def jax_train(config: Config, *, devices: int) -> Program:
    """The training step of `train.py` on the first `devices` devices."""
    mesh = make_mesh(jax.devices()[:devices])
    resolve(config, num_images=config.batch_size * devices, num_devices=devices)
    network = make_network(config.model, POLICIES[config.precision].compute_dtype)
    state = replicate(mesh, create_train_state(config, init_variables(network, config.seed)))
    batches = _batches(config, mesh)
    lr = np.float32(0.01)
    started = time.perf_counter()
    compiled = lower_train_step(network.apply, config, mesh, state, passes=1).compile()
    seconds = time.perf_counter() - started
    latest: list[Any] = [state]
    data_waits: list[float] = []

    def dispatch() -> None:
        started = time.perf_counter()
        batch = next(batches)
        data_waits.append(time.perf_counter() - started)
        latest[0], _ = compiled(latest[0], batch, lr)

    def wait() -> None:
        jax.block_until_ready(latest[0])

    return Program(dispatch, wait, seconds, *_memory(compiled), data_waits)


def jax_infer(config: Config) -> Program:
    """The forward pass on one device, with BatchNorm folded, as in classify.py."""
    network = make_network(config.model, POLICIES[config.precision].compute_dtype)
    variables = init_variables(network, config.seed)
    forward, variables = folded_forward(network, variables, config.precision)
    variables = place_folded(variables)
    images = jax.device_put(_images(config, 1)[0][0], jax.devices()[0])
    started = time.perf_counter()
    compiled = forward.lower(variables, images).compile()
    seconds = time.perf_counter() - started
    latest: list[Any] = [None]

    def dispatch() -> None:
        latest[0] = compiled(variables, images)

    return Program(dispatch, lambda: jax.block_until_ready(latest[0]), seconds, *_memory(compiled))


def _memory(compiled: Any) -> tuple[int | None, float | None]:
    """A program's `memory_bytes` and `bytes_accessed`."""
    analysis, cost = compiled.memory_analysis(), compiled.cost_analysis()
    temporary = None if analysis is None else int(analysis.temp_size_in_bytes)
    return temporary, (cost or {}).get("bytes accessed")


def torch_train(config: Config) -> Program:
    """The original's training step: channels_last; on a GPU autocast and torch.compile as well."""
    import torch

    from tests.reference.torch_training import label_smoothing_loss, sgd

    device, dtype = _torch_device(config)
    model = _torch_network(config).to(device, memory_format=torch.channels_last).train()
    optimizer = sgd(model, lr=0.01)
    forward = torch.compile(model) if device == "cuda" else model
    scaler = torch.amp.GradScaler(device, init_scale=128.0, enabled=config.precision == "fp16")
    images, labels = (torch.from_numpy(a[0]).to(device) for a in _images(config, 1))

    def dispatch() -> None:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            logits = forward(_torch_normalize(images))
            loss = label_smoothing_loss(logits, labels.long(), config.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return _ready(dispatch, device)


def torch_infer(config: Config) -> Program:
    """The forward pass as users of PyTorch run it: autocast and torch.compile, nothing folded."""
    import torch

    device, dtype = _torch_device(config)
    model = _torch_network(config).to(device, memory_format=torch.channels_last).eval()
    forward = torch.compile(model) if device == "cuda" else model
    images = torch.from_numpy(_images(config, 1)[0][0]).to(device)

    def dispatch() -> None:
        with torch.inference_mode(), torch.autocast(device, dtype, enabled=dtype != torch.float32):
            forward(_torch_normalize(images))

    return _ready(dispatch, device)


def _torch_network(config: Config) -> Any:
    from tests.reference.torch_model import Architecture, ResNet

    arch = Architecture(**vars(ARCHITECTURES[config.model.arch]))
    return ResNet(arch, config.model.num_classes)


def _torch_device(config: Config) -> tuple[str, Any]:
    import torch

    types = {"fp16": torch.float16, "bf16": torch.bfloat16}
    torch.backends.cuda.matmul.allow_tf32 = config.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
    torch.backends.cudnn.benchmark = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return device, types.get(config.precision, torch.float32)


def _torch_normalize(images: Any) -> Any:
    """uint8 NHWC → normalised float32 NCHW, channels last in memory."""
    import torch

    from seresnext_jax.data.normalize import IMAGENET_MEAN, IMAGENET_STD

    mean = 255 * torch.tensor(IMAGENET_MEAN, device=images.device)
    std = 255 * torch.tensor(IMAGENET_STD, device=images.device)
    return ((images.float() - mean) / std).permute(0, 3, 1, 2)


def _ready(dispatch: Callable[[], None], device: str) -> Program:
    """PyTorch's program after its first step, in which it compiles."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    started = time.perf_counter()
    dispatch()
    wait()
    return Program(dispatch, wait, time.perf_counter() - started)
