"""`Batch`, `Loader` and `Backend`: the contract between the input backends and the steps."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax


class Batch(NamedTuple):
    """The images of one optimizer step, or of one evaluation step (then A = 1).

    A is the number of forward passes per step, and N the number of images in one forward pass over
    all devices. The arrays are global and sharded over the mesh's ``data`` axis along N. Row ``n``
    of pass ``a`` is image ``a * N + n`` of the step in sampler order, for any number of devices.
    """

    images: jax.Array
    """(A, N, H, W, 3) uint8, RGB, not normalised."""
    labels: jax.Array
    """(A, N) int32."""
    mask: jax.Array
    """(A, N) bool; False for padding and for left-out images: neither is counted."""


class Loader(Protocol):
    """A source of batches that can start at any step.

    Order, crops and flips are pure functions of (seed, step), so a checkpoint stores no loader
    state, and a resumed run continues from its step.
    """

    num_images: int
    """Number of images in the split."""
    num_steps: int
    """Number of steps in one epoch or evaluation."""
    paths: Sequence[str]
    """Path of each image relative to the split's folder, in the order of the file list; empty for
    synthetic data."""
    class_names: tuple[str, ...]
    """Class folder names in label order; empty for synthetic data."""
    fingerprint: str
    """Identifies the data: depends on files, labels, crop, seed, and images per step."""
    bad_files: list[str]
    """Files left out so far because they could not be decoded (policy ``skip``)."""
    not_listed: str
    """The split and its files that are not listed, counted by suffix; "" if there are none."""

    def batches(self, start: int) -> Iterator[Batch]:
        """Yield batches, beginning with step `start`.

        A training loader counts steps over the whole run (epoch = step // num_steps) and never
        ends; an evaluation loader counts within the split and ends after `num_steps`.
        """
        ...

    def close(self) -> None:
        """Stop threads and free pipelines; may be called twice."""
        ...


@dataclass(frozen=True)
class Backend:
    """An input backend that reads image files; each is a module in data/backends/."""

    open_loader: Callable[..., Loader]
    """Takes an `ImageReader`, a `Sampler` and the mesh, and the keyword arguments ``fingerprint``,
    ``threads`` and ``prefetch`` (the number of batches to prepare ahead)."""
    on_gpu: bool = False
    """Whether it decodes on the GPUs, with one pipeline per GPU; such a decoder accepts
    truncated JPEGs."""
