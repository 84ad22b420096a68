"""Batch sizes, step counts and learning rate of a run: `resolve` computes its `Plan`.

They are computed after the options of the command line have overridden those of the config file.
"""

from dataclasses import dataclass

from seresnext_jax.config import Config
from seresnext_jax.config_check import check
from seresnext_jax.errors import UserError

TOTAL_STRIDE = 32
"""Pixels of the image per pixel of the last stage, in height and width; for all architectures."""


@dataclass(frozen=True)
class Plan:
    """The quantities that follow from a `Config`, the dataset and the devices."""

    num_images: int
    """Training images."""
    num_devices: int
    batch_size: int
    """Images per device and forward pass."""
    accumulation: int
    """Forward passes per optimizer step."""
    global_batch: int
    """Images per optimizer step: batch_size x num_devices x accumulation."""
    bn_group_size: int
    """Images that BatchNorm normalises together."""
    lr: float
    """Peak learning rate."""
    steps_per_epoch: int
    """Optimizer steps per epoch, at most --prof; the remaining images are not used in this
    epoch."""
    epochs: int
    total_steps: int


def resolve(config: Config, *, num_images: int, num_devices: int) -> Plan:
    """Compute the `Plan` of a run.

    Raises:
      UserError: an option is invalid, the batch sizes do not divide, or the training images do not
        fill one step; the message has a fix.
    """
    check(config)
    accumulation, group = divide_batch(config, num_devices)
    wanted = config.batch_size * num_devices * accumulation
    steps = steps_per_epoch(num_images, wanted, config.prof)
    if not steps:
        raise UserError(
            f"{num_images} training images do not fill one optimizer step of {wanted}: "
            f"lower --batch-size or --optimizer-batch-size"
        )
    lr = config.optim.lr_per_256 * wanted / 256 if config.optim.lr is None else config.optim.lr
    return Plan(
        num_images=num_images,
        num_devices=num_devices,
        batch_size=config.batch_size,
        accumulation=accumulation,
        global_batch=wanted,
        bn_group_size=group,
        lr=lr,
        steps_per_epoch=steps,
        epochs=config.epochs,
        total_steps=steps * config.epochs,
    )


def steps_per_epoch(num_images: int, images_per_step: int, max_steps: int) -> int:
    """Optimizer steps that the images fill in an epoch, at most `max_steps` (-1: no limit)."""
    steps = num_images // images_per_step
    return steps if max_steps < 0 else min(steps, max_steps)


def divide_batch(config: Config, num_devices: int) -> tuple[int, int]:
    """Forward passes per optimizer step, and images that BatchNorm normalises together.

    Raises:
      UserError: the batch sizes do not divide, or BatchNorm would see a single value per channel;
        the message has a fix.
    """
    accumulation = passes_per_step(config, num_devices)
    group = config.model.bn_group_size or config.batch_size
    if config.batch_size % group:
        raise UserError(
            f"model.bn_group_size {group} does not divide batch_size {config.batch_size}: "
            "choose a divisor, or 0 for the whole per-device batch"
        )
    side = -(-config.data.image_size // TOTAL_STRIDE)
    if group * side**2 == 1 and not (config.evaluate or config.optim.freeze_backbone):
        raise UserError(_group_advice(config, accumulation))
    return accumulation, group


def passes_per_step(config: Config, num_devices: int) -> int:
    """Forward passes per optimizer step.

    Raises:
      UserError: the batch sizes do not divide; the message has a fix.
    """
    forward = config.batch_size * num_devices
    wanted = forward if config.optimizer_batch_size == -1 else config.optimizer_batch_size
    if wanted % forward:
        raise UserError(_batch_advice(config.batch_size, num_devices, wanted))
    return wanted // forward


def _group_advice(config: Config, accumulation: int) -> str:
    """One line of advice if BatchNorm would normalise a single value per channel."""
    size, batch_size = config.data.image_size, config.batch_size
    fixes = [f"--data.image-size {TOTAL_STRIDE + 1} or more"]
    if batch_size > 1:
        fixes.insert(0, "--model.bn-group-size 0")
    elif config.optimizer_batch_size == -1:
        fixes.insert(0, "--batch-size 2 or more")
    elif accumulation > 1:
        per_device = next(n for n in range(2, accumulation + 1) if accumulation % n == 0)
        fixes.insert(0, f"--batch-size {per_device}")
    given = f"--batch-size {batch_size}, --model.bn-group-size {config.model.bn_group_size}"
    return (
        f"with {given} and --data.image-size {size}, the last BatchNorm would have one value per "
        f"channel and can't train: give {' or '.join(fixes)}"
    )


def _batch_advice(batch_size: int, num_devices: int, wanted: int) -> str:
    """One line of advice if the optimizer batch is not a multiple of the devices' batches."""
    forward = batch_size * num_devices
    problem = (
        f"optimizer_batch_size {wanted} is not a multiple of batch_size {batch_size} x "
        f"{num_devices} device(s) = {forward}"
    )
    if wanted % num_devices:
        near = forward * max(1, round(wanted / forward))
        return (
            f"{problem}: use --optimizer-batch-size {near}, or a number of devices that divides "
            f"{wanted}"
        )
    per_device = wanted // num_devices
    fit = max(b for b in range(1, min(batch_size, per_device) + 1) if per_device % b == 0)
    return f"{problem}: use --batch-size {fit}"
