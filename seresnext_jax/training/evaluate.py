"""Evaluation: one pass over a split, in which every image counts once."""

import time
from collections.abc import Callable
from typing import Any

import jax

from seresnext_jax.commands import command
from seresnext_jax.data.batch import Batch, Loader
from seresnext_jax.data.limit import TooManyBadImages, check_left_out
from seresnext_jax.processes.agree import sum_over_processes
from seresnext_jax.report.meters import percentile

LATENCY_PERCENTILES = (50, 90, 95, 99, 100)


def evaluate(
    step: Callable[[Any, Batch], dict[str, jax.Array]],
    variables: Any,
    loader: Loader,
    topk: int,
    *,
    max_bad_share: float = 1.0,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Evaluate a split: sums over all images, divided once at the end.

    Args:
      step: the step of `make_eval_step`, compiled.
      variables: params and batch_stats.
      topk: the k of the top-k accuracy, for its name.
      max_bad_share: the share of images that may be left out because they can't be decoded.
      should_stop: called after each batch; True ends the evaluation early.

    Returns:
      Metrics under the names of `report.metrics`, such as ``top1``, ``loss`` and ``total_ips``;
      empty if `should_stop` ended the evaluation.

    Raises:
      TooManyBadImages: more than `max_bad_share` of the images were left out, or all of them.
      RuntimeError: some images were neither counted nor reported as undecodable.
    """
    sums: dict[str, float] = {}
    latencies: list[float] = []
    waited = 0.0
    started = before = time.perf_counter()
    for batch in loader.batches(0):
        ready = time.perf_counter()
        waited += ready - before
        for name, value in jax.device_get(step(variables, batch)).items():
            sums[name] = sums.get(name, 0.0) + float(value)
        before = time.perf_counter()
        latencies.append(before - ready)
        if should_stop():
            return {}
        size = batch.mask.size
        passed = min(loader.num_images, len(latencies) * size)
        wanted = min(loader.num_images, loader.num_steps * size)
        left_out = passed - round(sums["count"])
        check_left_out("the evaluation", left_out, wanted, max_bad_share)
    count = sums["count"]
    if left_out > sum_over_processes(len(loader.bad_files)):
        raise RuntimeError(f"evaluated {count:.0f} of {wanted} images")
    if not count:
        raise TooManyBadImages(
            f"none of the {wanted} images of the evaluation could be decoded: find out why with "
            f"{command('check_data')}"
        )
    total = before - started
    batches = len(latencies)
    means = {name: value / count for name, value in sums.items() if name != "count"}
    result = {
        "top1": 100 * means.pop("top1"),
        f"top{topk}": 100 * means.pop("topk"),
        "loss": means.pop("loss"),
        **means,
        "count": count,
        "images": wanted,
        "compute_ips": count / sum(latencies),
        "total_ips": count / total,
        "data_time": waited / batches,
        "compute_latency": sum(latencies) / batches,
    }
    for p in LATENCY_PERCENTILES:
        result[f"compute_latency_at{p}"] = percentile(latencies, p)
    return result
