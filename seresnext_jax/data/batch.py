"""`Batch` and `Loader`: the contract between the input backends and the steps."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import jax


class Batch(NamedTuple):
    """One optimizer step's images (training) or one evaluation step's (then A = 1).

    A is the accumulation (forward passes per step), N the images of one forward pass over all
    devices. The arrays are global and sharded over the mesh's ``data`` axis along N. Row ``n`` of
    pass ``a`` is image ``a * N + n`` of the step in the order of the sampler, whatever the number
    of devices.
    """

    images: jax.Array
    """(A, N, H, W, 3) uint8, RGB, not normalised."""
    labels: jax.Array
    """(A, N) int32."""
    mask: jax.Array
    """(A, N) bool; False marks padding and left-out images, which are not counted."""


class Loader(Protocol):
    """A source of batches whose only position is the step.

    Order, crops and flips are a pure function of (seed, step), so a checkpoint saves nothing of a
    loader, and a resumed run continues from its step.
    """

    num_images: int
    """Images in the split."""
    num_steps: int
    """Steps of one epoch or evaluation."""
    class_names: tuple[str, ...]
    """Class folder names in label order; empty for synthetic data."""
    fingerprint: str
    """Changes when the files, their labels, the crop, the seed, or the images per step change."""
    bad_files: list[str]
    """Files left out so far because they could not be decoded (policy ``skip``)."""
    not_listed: str
    """The split and its files that are not read as images, by suffix; empty if there are none."""

    def batches(self, start: int) -> Iterator[Batch]:
        """Yield the batches from step `start` on.

        A training loader counts steps over the whole run (epoch = step // num_steps) and never
        ends; an evaluation loader counts within the split and ends after `num_steps`.
        """
        ...

    def close(self) -> None:
        """Stop threads and free pipelines; may be called twice."""
        ...
