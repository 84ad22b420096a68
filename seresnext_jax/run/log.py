"""The log of a run's training steps."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import jax

from seresnext_jax.checkpoint.meta import Progress
from seresnext_jax.commands import command
from seresnext_jax.config import Config
from seresnext_jax.data.batch import Batch
from seresnext_jax.data.limit import TooManyBadImages, check_left_out
from seresnext_jax.errors import UserError
from seresnext_jax.plan import Plan
from seresnext_jax.report.console import Console
from seresnext_jax.report.meters import Clock, Mean
from seresnext_jax.report.metrics import METRICS, metric_rows
from seresnext_jax.report.report import Report
from seresnext_jax.report.run_page import show_duration

_STEP_NAMES = {"grad_scale": "loss_scale"}
"""Metrics that have another name in the report than in the training step."""


class TrainLog:
    """Reports each training step once the next one has been dispatched, or the epoch has ended.

    Reading a step's metrics waits for the end of the step, so they are read one step late, while
    the device computes the next one. Every metric of a step that has a row in `METRICS` is
    reported: the loss as a mean, the others as of the last step.
    """

    def __init__(
        self,
        config: Config,
        plan: Plan,
        progress: Progress,
        report: Report,
        console: Console,
        *,
        last_epoch: int,
    ) -> None:
        self._config = config
        self._plan = plan
        self._progress = progress
        self._report = report
        self._console = console
        self._last_epoch = last_epoch
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._epoch = 0
        self._clock = Clock()
        self._seconds = self._waited = 0.0
        self._interval_steps = self._epoch_steps = 0
        self._left_out = 0
        """Images of this epoch left out since the program started: earlier ones may be fixed."""
        self._empty_steps = 0
        """Steps in a row without an image, up to the last reported step of this epoch."""

    @contextmanager
    def epoch(self, epoch: int, *, done: int) -> Iterator[None]:
        """Report the steps in the block as steps of `epoch`; `done` of its steps were trained
        earlier."""
        self._epoch = epoch
        self._empty_steps = self._left_out = 0
        self._seconds = self._waited = 0.0
        self._interval_steps = self._epoch_steps = 0
        self._clock.mark()
        with self._console.epoch(
            epoch, self._plan.epochs, done=done, steps=self._plan.steps_per_epoch
        ):
            yield
            self.flush()
        self._take_time()

    def timing_waits(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches, and count the time until each one arrives as waiting for data.

        If the last step is still running, the wait cost nothing.
        """
        started = time.perf_counter()
        for batch in batches:
            last_loss: Any = None if self._pending is None else self._pending[1]["loss"]
            if last_loss is None or last_loss.is_ready():
                self._clock.waited(time.perf_counter() - started)
            yield batch
            started = time.perf_counter()

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Keep the metrics of step `step` (counted from 1 over the run); report earlier ones.

        Raises:
          UserError: too many steps in a row were not finite, or too many images were bad.
        """
        try:
            self.flush()
        finally:
            self._pending = (step, metrics)

    def flush(self) -> None:
        """Report the steps that were added.

        Raises:
          UserError: too many steps in a row were not finite, or too many images were bad.
        """
        if self._pending is None:
            return
        (step, arrays), self._pending = self._pending, None
        metrics = {name: float(value) for name, value in jax.device_get(arrays).items()}
        iteration = step - self._epoch * self._plan.steps_per_epoch
        bad_images = round(self._plan.global_batch * (1 - metrics["readable"]))
        empty = bad_images == self._plan.global_batch
        if not empty:
            self._progress.interval_loss.add(metrics["loss"])
            self._progress.epoch_loss.add(metrics["loss"])
        self._interval_steps += 1
        self._epoch_steps += 1
        self._progress.epoch_bad_images += bad_images
        self._empty_steps = self._empty_steps + 1 if empty else 0
        self._progress.last_step = metrics
        self._console.step(iteration)
        if iteration % self._config.print_freq == 0:
            self._report_interval(iteration)
        self._left_out += bad_images
        images = self._plan.global_batch * self._plan.steps_per_epoch
        share = self._config.data.max_bad_share
        check_left_out(f"epoch {self._epoch + 1}", self._left_out, images, share)
        if self._empty_steps >= self._config.max_bad_steps:
            raise TooManyBadImages(
                f"none of the images of {self._empty_steps} steps in a row up to step {step} could "
                f"be decoded: find them with {command('check_data')} and replace them, or allow "
                "more with a larger --max-bad-steps"
            )
        if metrics["bad_steps"] >= self._config.max_bad_steps and not empty:
            raise UserError(
                f"{self._config.max_bad_steps} steps in a row up to step {step} had no finite loss "
                "or gradient: the last good checkpoint is kept; lower the learning rate, lengthen "
                "the warm-up, or choose --precision bf16 or fp32"
            )

    def forget_empty_steps(self) -> int:
        """Report the added steps, then stop counting the epoch's last ones that had no image.

        Returns their number. A resumed run repeats them.
        """
        with suppress(UserError):
            self.flush()
        forgotten, self._empty_steps = self._empty_steps, 0
        self._progress.epoch_bad_images -= forgotten * self._plan.global_batch
        return forgotten

    def epoch_metrics(self) -> dict[str, float]:
        """The epoch's mean loss, bad images and throughput, and the last step's other metrics.

        Resets the means and the number of bad images for the next epoch.
        """
        progress = self._progress
        metrics = self._metrics(progress.epoch_loss, self._epoch_steps, self._seconds, self._waited)
        metrics["train.bad_images"] = progress.epoch_bad_images
        progress.interval_loss.reset()
        progress.epoch_loss.reset()
        progress.epoch_bad_images = 0
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
        of_step = {row.name: _STEP_NAMES.get(row.name, row.name) for row in METRICS}
        metrics = {f"train.{name}": last[key] for name, key in of_step.items() if key in last}
        metrics.pop("train.loss", None)
        if loss.count:  # the mean over no image is NaN
            metrics["train.loss"] = loss.value
        if not steps:  # trained before a restart, with only the evaluation left
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
        means = {name.removeprefix("train."): value for name, value in metrics.items()}
        names = ["loss", "lr", "total_ips"]
        names += ["grad_scale"] * (means["grad_scale"] != 1)
        names += ["skipped_steps"] * (means["skipped_steps"] > 0)
        left = (self._last_epoch - self._epoch) * plan.steps_per_epoch - iteration
        parts = [
            f"epoch {self._epoch + 1}/{plan.epochs} step {iteration}/{plan.steps_per_epoch}",
            *(" ".join(row) for row in metric_rows(means, names)),
            f"data wait {100 * data_share:.0f} %",
            f"run ends in {show_duration(left * plan.global_batch / means['total_ips'])}",
        ]
        return "  ".join(parts)
