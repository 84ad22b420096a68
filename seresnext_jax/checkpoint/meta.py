"""What a checkpoint stores besides its arrays: a typed `Meta`, JSON on disk."""

from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, Literal, TypeVar, get_origin, get_type_hints

import typeguard

from seresnext_jax.config import Config
from seresnext_jax.plan import Plan
from seresnext_jax.report.meters import Mean

T = TypeVar("T")


@dataclass
class Progress:
    """The training loop's own variables."""

    finished_epochs: int = 0
    """Epochs trained and, unless ``training_only`` is set, evaluated."""
    best_top1: float = -1.0
    """Percent; -1 before the first evaluation."""
    best_epoch: int = -1
    interval_loss: Mean = field(default_factory=Mean)
    """The mean loss since the report's last record of training steps."""
    epoch_loss: Mean = field(default_factory=Mean)
    epoch_bad_images: int = 0
    """Number of images of this epoch that were left out."""
    last_step: dict[str, float] = field(default_factory=dict)
    """The metrics of the last step."""
    results: dict[str, float] = field(default_factory=dict)
    """The report's metrics of the last finished epoch."""

    def finish_epoch(self, epoch: int, results: dict[str, float]) -> None:
        """Count `epoch` (from 0) as finished; keep its results, and its top-1 if it is the best."""
        self.finished_epochs = epoch + 1
        self.results = results
        top1 = results.get("val.top1")
        if top1 is not None and top1 > self.best_top1:
            self.best_top1, self.best_epoch = top1, epoch

    @property
    def epochs_without_better(self) -> int:
        """Epochs finished since the best one; -1 before the first evaluation."""
        return self.finished_epochs - 1 - self.best_epoch if self.best_epoch >= 0 else -1


@dataclass(frozen=True)
class Meta:
    """Everything about a saved state that is not an array. Each field is a key of the JSON."""

    step: int
    """Optimizer steps taken."""
    epoch: int
    """Complete epochs trained."""
    progress: Progress
    config: Config
    plan: Plan
    fingerprint: str | None = None
    """`Loader.fingerprint` of the training data; None: unknown, because the state was converted."""
    class_names: tuple[str, ...] | None = None
    """None or empty: the classes have no names."""
    top1: float | None = None
    """Validation accuracy in percent; None: this state was not evaluated."""
    batches_tracked: dict[str, int | None] = field(default_factory=dict)
    """The BatchNorm counters of a converted state, for ``weights`` and ``ema``; otherwise empty."""
    bad_steps: int = 0
    """Number of consecutive steps, up to this one, with a non-finite loss or gradient. Set by
    `Checkpoints.save`."""
    crc32: dict[str, int] = field(default_factory=dict)
    """The checksum of each array by its name. Set by `Checkpoints.save`."""

    def forward_passes(self, kind: Literal["weights", "ema"]) -> int:
        """Forward passes trained: the value of PyTorch's BatchNorm counters."""
        counter = self.batches_tracked.get(kind)
        return self.step * self.plan.accumulation if counter is None else counter

    def to_json(self) -> dict[str, Any]:
        """Plain values, independent of this object; JSON keeps floats exactly."""
        return asdict(self)

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Meta":
        """The inverse of `to_json`.

        If another version wrote it, unknown keys are ignored and missing ones get their defaults.

        Raises:
          ValueError or TypeError: a value is of another type, or one without a default is missing.
        """
        return _from_json(cls, saved)


def _from_json(kind: type[T], saved: Any) -> T:
    """Rebuild a dataclass from its `asdict`, whose tuples JSON has turned into lists."""
    if not isinstance(saved, dict):
        raise ValueError(f"{kind.__name__} is {saved!r}")
    values, hints = {}, get_type_hints(kind)
    for name in hints.keys() & saved.keys():
        value, hint = saved[name], hints[name]
        if is_dataclass(hint):
            value = _from_json(hint, value)  # type: ignore[arg-type]
        elif isinstance(value, list):
            value = tuple(value)
        if get_origin(hint) is not Literal:  # the choices differ between versions
            try:
                typeguard.check_type(value, hint)
            except typeguard.TypeCheckError as error:
                raise ValueError(f"{name} is {value!r}") from error
        values[name] = value
    return kind(**values)
