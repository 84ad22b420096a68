"""Pillow decodes the images, on any machine; the DALI backends must match it."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from jax.sharding import Mesh

from seresnext_jax.data.backends.file_loader import FileLoader
from seresnext_jax.data.batch import Backend, Batch
from seresnext_jax.data.place import place
from seresnext_jax.data.reader import ImageReader
from seresnext_jax.data.sampler import Rows, Sampler


class FolderLoader(FileLoader):
    """Loads a split with Pillow, in threads that decode batches in advance; see `Loader`."""

    def __init__(
        self,
        reader: ImageReader,
        sampler: Sampler,
        mesh: Mesh,
        *,
        fingerprint: str,
        threads: int,
        prefetch: int,
    ) -> None:
        super().__init__(reader, sampler, mesh, fingerprint=fingerprint)
        self._prefetch = prefetch
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def batches(self, start: int) -> Iterator[Batch]:
        """See `Loader`.

        Raises:
          UserError: an image can't be decoded, and the policy is ``error``; or a folder has
            disappeared, or the disk fails.
        """
        queue: deque[tuple[Rows, list[Future[np.ndarray | None]]]] = deque()
        try:
            for step in self._sampler.steps(start):
                rows, read = self._sampler.rows(step), self._reader.image
                queue.append((rows, [self._pool.submit(read, *row) for row in rows.images()]))
                if len(queue) > self._prefetch:
                    batch = self._finish(*queue[0])
                    queue.popleft()
                    yield batch
            while queue:
                batch = self._finish(*queue[0])
                queue.popleft()
                yield batch
        finally:
            for _, images in queue:
                for image in images:
                    image.cancel()

    def close(self) -> None:
        """See `Loader`."""
        self._pool.shutdown(cancel_futures=True)

    def _finish(self, rows: Rows, images: list[Future[np.ndarray | None]]) -> Batch:
        """Wait for a step's images and place them on the devices."""
        arrays = self._reader.collect(rows, (image.result() for image in images))
        return place(self._mesh, self._sampler, *arrays)


BACKEND = Backend(FolderLoader)
