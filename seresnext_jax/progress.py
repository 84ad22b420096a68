"""Where a run stands beside its `TrainState`, and the log of its steps."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import jax

from seresnext_jax.config import Plan
from seresnext_jax.errors import UserError
from seresnext_jax.report.console import Console
from seresnext_jax.report.dllogger import Report
from seresnext_jax.report.meters import Clock, Mean


@dataclass
class Progress:
    """The loop's own variables; a checkpoint's ``meta`` holds them."""

    finished_epochs: int = 0
    """Epochs trained and evaluated."""
    best_top1: float = -1.0
    """Percent; -1 before the first evaluation."""
    best_epoch: int = -1
    interval_loss: Mean = field(default_factory=Mean)
    """Since the last line of the report."""
    epoch_loss: Mean = field(default_factory=Mean)
    epoch_bad_images: int = 0
    """Images of this epoch that were left out."""
    last_step: dict[str, float] = field(default_factory=dict)
    """The metrics of the last step."""
    results: dict[str, float] = field(default_factory=dict)
    """The report's metrics of the last finished epoch."""

    def finish_epoch(self, epoch: int, results: dict[str, float]) -> None:
        """Count an epoch, keep its results and the best."""
        self.finished_epochs = epoch + 1
        self.results = results
        top1 = results.get("val.top1")
        if top1 is not None and top1 > self.best_top1:
            self.best_top1, self.best_epoch = top1, epoch

    @property
    def epochs_without_better(self) -> int:
        """Epochs finished since the best one; -1 before the first evaluation."""
        return self.finished_epochs - 1 - self.best_epoch if self.best_epoch >= 0 else -1

    def to_json(self) -> dict[str, Any]:
        """Plain values; JSON keeps floats exactly."""
        return asdict(self)

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Progress":
        """The inverse of `to_json`."""
        means = {name: Mean(**saved[name]) for name in ("interval_loss", "epoch_loss")}
        return cls(**{**saved, **means})


class TrainLog:
    """Reports training steps, each one only after the next was dispatched.

    Reading a step's metrics waits for its end. Reading them one step late leaves the device
    something to do meanwhile.
    """

    def __init__(
        self,
        report: Report,
        console: Console,
        plan: Plan,
        progress: Progress,
        *,
        last_epoch: int,
        print_freq: int,
        max_bad_steps: int,
    ) -> None:
        self._report = report
        self._console = console
        self._plan = plan
        self._progress = progress
        self._last_epoch = last_epoch
        self._print_freq = print_freq
        self._max_bad_steps = max_bad_steps
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._epoch = 0
        self._clock = Clock()
        self._seconds = self._waited = 0.0
        self._interval_steps = self._epoch_steps = 0

    @contextmanager
    def epoch(self, epoch: int, *, done: int) -> Iterator[None]:
        """Report the steps inside as those of `epoch`, of which `done` were made before."""
        self._epoch = epoch
        self._seconds = self._waited = 0.0
        self._interval_steps = self._epoch_steps = 0
        self._clock.mark()
        with self._console.epoch(
            epoch, self._plan.epochs, done=done, steps=self._plan.steps_per_epoch
        ):
            yield
            self.flush()
        self._take_time()

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time inside as waiting for data, if the device had nothing else to do.

        It had while the step dispatched last was still running at the end of the wait.
        """
        started = time.perf_counter()
        yield
        last_loss: Any = None if self._pending is None else self._pending[1]["loss"]
        if last_loss is None or last_loss.is_ready():
            self._clock.waited(time.perf_counter() - started)

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Take the metrics of step `step` (counted from 1 over the run) and report those before.

        Raises:
          UserError: too many steps in a row were not finite.
        """
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Report the steps that were added.

        Raises:
          UserError: too many steps in a row were not finite.
        """
        if self._pending is None:
            return
        (step, arrays), self._pending = self._pending, None
        metrics = {name: float(value) for name, value in jax.device_get(arrays).items()}
        iteration = step - self._epoch * self._plan.steps_per_epoch
        self._progress.interval_loss.add(metrics["loss"])
        self._progress.epoch_loss.add(metrics["loss"])
        self._interval_steps += 1
        self._epoch_steps += 1
        self._progress.epoch_bad_images += round(
            self._plan.global_batch * (1 - metrics["readable"])
        )
        self._progress.last_step = metrics
        self._console.step(iteration)
        if iteration % self._print_freq == 0:
            self._report_interval(iteration)
        if metrics["bad_steps"] >= self._max_bad_steps:
            raise UserError(
                f"{self._max_bad_steps} steps in a row up to step {step} had no finite loss or "
                "gradient: the last good checkpoint is kept; lower the learning rate, lengthen the "
                "warm-up, or choose --precision bf16 or fp32"
            )

    def epoch_metrics(self) -> dict[str, float]:
        """The means of the epoch's steps, and start the next epoch's."""
        metrics = self._metrics(
            self._progress.epoch_loss, self._epoch_steps, self._seconds, self._waited
        )
        metrics["train.bad_images"] = self._progress.epoch_bad_images
        self._progress.interval_loss.reset()
        self._progress.epoch_loss.reset()
        self._progress.epoch_bad_images = 0
        return metrics

    def _report_interval(self, iteration: int) -> None:
        seconds, waited = self._take_time()
        metrics = self._metrics(self._progress.interval_loss, self._interval_steps, seconds, waited)
        self._progress.interval_loss.reset()
        self._interval_steps = 0
        self._report.train(self._epoch, iteration, metrics)
        self._console.train_line(self._line(iteration, metrics, waited / seconds))

    def _take_time(self) -> tuple[float, float]:
        seconds, waited = self._clock.mark()
        self._seconds += seconds
        self._waited += waited
        return seconds, waited

    def _metrics(self, loss: Mean, steps: int, seconds: float, waited: float) -> dict[str, float]:
        last = self._progress.last_step
        metrics = {
            "train.loss": loss.value,
            "train.lr": last["lr"],
            "train.grad_scale": last["loss_scale"],
            "train.skipped_steps": last["skipped_steps"],
        }
        if not steps:  # the epoch was trained before a restart, only its evaluation was left
            return metrics
        images = steps * self._plan.global_batch
        return metrics | {
            "train.compute_ips": images / (seconds - waited),
            "train.total_ips": images / seconds,
            "train.data_time": waited / steps,
            "train.compute_time": (seconds - waited) / steps,
        }

    def _line(self, iteration: int, metrics: dict[str, float], data_share: float) -> str:
        plan = self._plan
        left = self._last_epoch * plan.steps_per_epoch - (
            self._epoch * plan.steps_per_epoch + iteration
        )
        eta = left * plan.global_batch / metrics["train.total_ips"]
        parts = [
            f"epoch {self._epoch + 1}/{plan.epochs} step {iteration}/{plan.steps_per_epoch}",
            f"loss {metrics['train.loss']:.4f}",
            f"lr {metrics['train.lr']:.4g}",
            f"{metrics['train.total_ips']:.1f} img/s",
            f"data wait {100 * data_share:.0f} %",
        ]
        if metrics["train.grad_scale"] != 1:
            parts.append(f"loss scale {metrics['train.grad_scale']:g}")
        if metrics["train.skipped_steps"]:
            parts.append(f"skipped {metrics['train.skipped_steps']:.0f}")
        return "  ".join([*parts, f"run ends in {_duration(eta)}"])


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
