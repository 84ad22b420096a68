"""The predictions of a network for the images of a split."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Predictions:
    """The predictions for M images, in the order of the split, without the images left out."""

    index: np.ndarray
    """(M,) int64, ascending: the index of the image in the split."""
    labels: np.ndarray
    """(M,) int32."""
    rank: np.ndarray
    """(M,) int32: how many classes the network ranks above the label; 0: the prediction is
    correct."""
    label_probability: np.ndarray
    """(M,) float32: the predicted probability of the label."""
    classes: np.ndarray
    """(M, k) int32: the most probable classes, the most probable first."""
    probabilities: np.ndarray
    """(M, k) float32: their probabilities."""

    @property
    def right(self) -> np.ndarray:
        """(M,) bool: whether the label is the most probable class."""
        return self.rank == 0

    def worst(self) -> np.ndarray:
        """The rows of the misclassified images, the least probable label first: (wrong,) int64."""
        wrong = np.flatnonzero(~self.right)
        # NaN counts as 0: a network that computes NaN knows nothing.
        return wrong[np.argsort(np.nan_to_num(self.label_probability[wrong]), kind="stable")]
