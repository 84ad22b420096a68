"""Keeps the prediction for each image of an evaluation, and the pixels of the worst mistakes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from seresnext_jax.data.batch import Batch
from seresnext_jax.report.predictions import Predictions

Arrays = dict[str, jax.Array]


class Mistake(NamedTuple):
    """An image that was classified wrongly, as the network saw it."""

    label_probability: float
    number: int
    """Index of the image in the split."""
    pixels: np.ndarray
    """(H, W, 3) uint8."""


class Recorder:
    """Wraps a detailed evaluation step, so that `evaluate` can run it as a plain one.

    One process only: it needs the results of all devices.
    """

    def __init__(
        self, step: Callable[[Any, Batch], tuple[Arrays, Arrays]], *, num_worst: int
    ) -> None:
        """Wrap a step of `make_detailed_eval_step`; `num_worst` >= 1 mistakes are kept."""
        self._step = step
        self._num_worst = num_worst
        self._results: list[dict[str, np.ndarray]] = []
        self.worst: list[Mistake] = []
        """The mistakes with the least probable labels, worst first."""

    def step(self, variables: Any, batch: Batch) -> Arrays:
        """Evaluate a batch: return its sums, and keep the results of its images."""
        sums, on_devices = self._step(variables, batch)
        results = jax.device_get(on_devices)
        self._keep_worst(results, batch.images)
        self._results.append(results)
        return sums

    def predictions(self) -> Predictions:
        """The predictions for all images so far; call it after at least one batch."""
        joined = {
            name: np.concatenate([batch[name] for batch in self._results])
            for name in self._results[0]
        }
        index = np.flatnonzero(joined.pop("mask"))
        return Predictions(index=index, **{name: x[index] for name, x in joined.items()})

    def _keep_worst(self, results: dict[str, np.ndarray], images: jax.Array) -> None:
        """Add the batch's mistakes that are among the worst so far."""
        full = len(self.worst) == self._num_worst
        limit = self.worst[-1].label_probability if full else np.inf
        probability = np.nan_to_num(results["label_probability"])
        rows = np.flatnonzero(results["mask"] & (results["rank"] > 0) & (probability < limit))
        rows = rows[np.argsort(probability[rows], kind="stable")][: self._num_worst]
        if not rows.size:
            return
        first = sum(len(before["mask"]) for before in self._results)
        pixels = jax.device_get(images)[0]
        # The pixels are copied, or each image would keep its whole batch in memory.
        found = [Mistake(float(probability[i]), first + int(i), pixels[i].copy()) for i in rows]
        ordered = sorted(
            [*self.worst, *found], key=lambda mistake: (mistake.label_probability, mistake.number)
        )
        self.worst = ordered[: self._num_worst]
