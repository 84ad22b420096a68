"""Checks of options: each number's range, and options that exclude or need each other."""

from functools import reduce
from typing import Any

from seresnext_jax.config import Config, OptimConfig, Optimizer, option_name, ranges
from seresnext_jax.errors import UserError


def check_ranges(options: Any) -> None:
    """Check each number in a dataclass of options against its range.

    Raises:
      UserError: a number is out of range; the message names the option, its value and the range.
    """
    for path, limit in ranges(type(options)).items():
        value = reduce(getattr, path.split("."), options)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not limit.low <= number <= limit.high:
                raise UserError(
                    f"{option_name(path)} is {number}: it must be between {limit.low:.10g} and "
                    f"{limit.high:.10g}"
                )


def check(config: Config) -> None:
    """Check the options of a training run.

    Raises:
      UserError: a value is out of range, or options exclude each other; the message has a fix.
    """
    check_ranges(config)
    if config.optimizer_batch_size == 0 or config.prof == 0 or config.run_epochs == 0:
        raise UserError(
            "--optimizer-batch-size, --prof and --run-epochs take -1 or a positive number, not 0"
        )
    for name in ("crop_area", "crop_ratio"):
        low, high = getattr(config.data, name)
        upper = 1 if name == "crop_area" else 100
        if not 0 < low <= high <= upper:
            raise UserError(
                f"{option_name('data.' + name)} is {low:g} {high:g}: "
                f"give two numbers with 0 < first <= second <= {upper}"
            )
    _check_optimizer(config.optim)
    if config.optim.lr_schedule != "step" and config.optim.warmup >= config.epochs:
        raise UserError(
            f"--optim.warmup {config.optim.warmup} leaves no epoch of --epochs {config.epochs} "
            "for the schedule: give --optim.warmup 0, or for a short try of the same schedule "
            f"--run-epochs {config.epochs} instead of --epochs {config.epochs}"
        )
    if config.evaluate and config.training_only:
        raise UserError("--evaluate and --training-only exclude each other: give one of them")
    if config.training_only and config.early_stopping_patience >= 0:
        raise UserError(
            "--early-stopping-patience needs the evaluation that --training-only turns off: give "
            "only one of them"
        )


def _check_optimizer(optim: OptimConfig) -> None:
    if optim.optimizer == "sgd":
        return
    if optim.nesterov:
        raise UserError("--optim.nesterov is an option of sgd: use --optim.no-nesterov")
    if not all(0 <= beta < 1 for beta in optim.betas):
        first, second = optim.betas
        raise UserError(f"--optim.betas is {first:g} {second:g}: give two numbers from 0 to <1")
    if optim.lr is None and optim.lr_per_256 == OptimConfig.lr_per_256:
        raise wrong_rate(OptimConfig(), optim.optimizer)


_USUAL = {
    "sgd": (0.256, 2.0**-14),
    "rmsprop": (0.016, 1e-5),
    "adamw": (2.5e-4, 0.05),
    "lamb": (6.25e-4, 0.02),
}
"""For each optimizer, a common learning rate per 256 images and a common weight decay."""


def wrong_rate(theirs: OptimConfig, optimizer: Optimizer) -> UserError:
    """The error if the learning rate is for `theirs.optimizer`; suggests one for `optimizer`."""
    rate, decay = _USUAL[optimizer]
    found, clear = f"{theirs.lr_per_256:g} for 256 images", ""
    if theirs.lr is not None:
        found, clear = f"{theirs.lr:g}", "--optim.lr None "
    return UserError(
        f"the learning rate ({found}) is for {theirs.optimizer}: with --optim.optimizer "
        f"{optimizer}, give another one, such as {clear}--optim.lr-per-256 {rate:g} "
        f"--optim.weight-decay {decay}"
    )
