"""An evaluation in detail: tables of classes, confusions, mistakes and calibration."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seresnext_jax.errors import printable, shown
from seresnext_jax.report.predictions import Predictions
from seresnext_jax.report.statistics import calibration_error, reliability, wilson_interval

_PRINTED = 5
"""Number of classes and of pairs that are printed; the files contain all."""

Row = dict[str, Any]
"""A row of a table; numbers are Python ints and floats, None if not finite."""


@dataclass(frozen=True)
class Details:
    """An evaluation in detail. Accuracies are in percent, probabilities between 0 and 1."""

    summary: Row
    """Accuracy with its 95 % confidence interval, and the expected calibration error."""
    calibration: list[Row]
    """A row for each bin of the probability of the predicted class."""
    classes: list[Row]
    """A row for each class, the least accurate first; those without images last."""
    confusions: list[Row]
    """A row for each pair of a label and a wrong prediction, the most frequent first."""
    mistakes: list[Row]
    """A row for each misclassified image, the one with the least probable label first."""


def explain(predictions: Predictions, names: Sequence[str], paths: Sequence[str]) -> Details:
    """Compute the tables of an evaluation; `predictions` must not be empty.

    Args:
      names: the name of each class, in label order.
      paths: the path of each image of the split; empty: the images have no files.
    """
    table = reliability(predictions.probabilities[:, 0], predictions.right)
    images, right = len(predictions.index), int(predictions.right.sum())
    low, high = wilson_interval(right, images)
    summary = {
        "images": images,
        "right": right,
        "top1": 100 * right / images,
        "top1_low": 100 * low,
        "top1_high": 100 * high,
        "calibration_error": number(calibration_error(table)),
    }
    bins = [
        {
            "low": round(row.low, 6),
            "high": round(row.high, 6),
            "images": row.images,
            "confidence": number(row.confidence),
            "accuracy": number(100 * row.accuracy),
        }
        for row in table
    ]
    return Details(
        summary,
        bins,
        _class_rows(predictions, names),
        _confusion_rows(predictions, names),
        [_mistake_row(predictions, i, names, paths) for i in predictions.worst().tolist()],
    )


def _class_rows(predictions: Predictions, names: Sequence[str]) -> list[Row]:
    images = np.bincount(predictions.labels, minlength=len(names))
    right = np.bincount(predictions.labels[predictions.right], minlength=len(names))
    predicted = np.bincount(predictions.classes[:, 0], minlength=len(names))
    rows = []
    for label, name in enumerate(names):
        accuracy = number(100 * right[label] / images[label]) if images[label] else None
        rows.append(
            {
                "class": label,
                "name": name,
                "images": int(images[label]),
                "right": int(right[label]),
                "predicted": int(predicted[label]),
                "accuracy": accuracy,
            }
        )
    return sorted(rows, key=lambda row: math.inf if row["accuracy"] is None else row["accuracy"])


def _confusion_rows(predictions: Predictions, names: Sequence[str]) -> list[Row]:
    wrong = ~predictions.right
    pairs = np.stack([predictions.labels[wrong], predictions.classes[wrong, 0]], axis=1)
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    return [
        {
            "label": label,
            "label_name": names[label],
            "predicted": predicted,
            "predicted_name": names[predicted],
            "images": int(counts[i]),
        }
        for i in np.argsort(-counts, kind="stable").tolist()
        for label, predicted in [found[i].tolist()]
    ]


def _mistake_row(
    predictions: Predictions, row: int, names: Sequence[str], paths: Sequence[str]
) -> Row:
    label = int(predictions.labels[row])
    best = zip(predictions.classes[row].tolist(), predictions.probabilities[row], strict=True)
    return {
        "image": image_name(paths, int(predictions.index[row])),
        "label": label,
        "label_name": names[label],
        "label_probability": number(predictions.label_probability[row]),
        "classes": [
            {"index": index, "name": names[index], "probability": number(probability)}
            for index, probability in best
        ],
    }


def image_name(paths: Sequence[str], index: int) -> str:
    """The path of image `index` of a split, or a name if it has no file."""
    return printable(paths[index]) if paths else f"image {index}"


def number(value: Any) -> float | None:
    """A float for JSON and CSV, rounded to six decimal places; None if not finite."""
    return round(float(value), 6) if math.isfinite(value) else None


def detail_rows(details: Details) -> list[tuple[str, str]]:
    """The accuracy with its interval, the calibration error, and the worst classes and pairs."""
    summary = details.summary
    error = summary["calibration_error"]
    rows = [
        (
            "top-1, 95 % interval",
            f"{summary['top1']:.2f} % ({summary['top1_low']:.2f} to {summary['top1_high']:.2f} %)",
        ),
        ("calibration error", "-" if error is None else f"{error:.4f}"),
    ]
    for row in details.classes[:_PRINTED]:
        if row["accuracy"] is not None and row["accuracy"] < 100:
            text = f"{row['accuracy']:.1f} % of {_images(row['images'])}"
            rows.append((f"class {shown(row['name'])}", text))
    for row in details.confusions[:_PRINTED]:
        pair = f"{shown(row['label_name'])} → {shown(row['predicted_name'])}"
        rows.append((pair, _images(row["images"])))
    return rows


def _images(number: int) -> str:
    return f"{number} image{'s' * (number != 1)}"
