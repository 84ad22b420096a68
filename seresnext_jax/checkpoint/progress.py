"""What a run knows of itself besides its `TrainState`."""

from dataclasses import asdict, dataclass, field
from typing import Any

from seresnext_jax.report.meters import Mean


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
