"""Random images that need no files, for benchmarks and for trying out a recipe."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from seresnext_jax.data.batch import Batch
from seresnext_jax.data.place import place
from seresnext_jax.data.sampler import Sampler
from seresnext_jax.mesh import batch_sharding

NUM_IMAGES = {"train": 1_281_167, "val": 50_000}
"""As in ImageNet, so that a synthetic run has as many steps as the recipe."""


class SyntheticLoader:
    """One fixed random batch, repeated for each step of the split; see `Loader`."""

    def __init__(
        self, sampler: Sampler, mesh: Mesh, *, seed: int, image_size: int, num_classes: int
    ) -> None:
        self.num_images = sampler.num_images
        self.num_steps = sampler.num_steps
        self.paths: Sequence[str] = ()
        self.class_names: tuple[str, ...] = ()
        self.fingerprint = f"synthetic {seed} {sampler.images_per_step} {image_size}"
        self.bad_files: list[str] = []
        self.not_listed = ""
        self._sampler = sampler
        # Seeded by the first column, so that the processes make different images.
        generator = np.random.default_rng((seed, sampler.columns.start))
        rows = sampler.accumulation * (sampler.columns.stop - sampler.columns.start)
        images = generator.integers(0, 256, (rows, image_size, image_size, 3), np.uint8)
        labels = generator.integers(0, num_classes, rows, np.int32)
        self._batch = place(mesh, sampler, images, labels, np.ones(rows, bool))
        self._sharding = batch_sharding(mesh)

    def batches(self, start: int) -> Iterator[Batch]:
        """See `Loader`."""
        for step in self._sampler.steps(start):
            mask = self._sampler.rows(step).mask
            if mask.all():
                yield self._batch
            else:
                mask = mask.reshape(self._sampler.accumulation, -1)
                placed = jax.make_array_from_process_local_data(self._sharding, mask)
                yield self._batch._replace(mask=placed)

    def close(self) -> None:
        """See `Loader`."""
