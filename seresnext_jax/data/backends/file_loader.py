"""`FileLoader`, the base class of the loaders of image files."""

from collections.abc import Sequence

from jax.sharding import Mesh

from seresnext_jax.data.reader import ImageReader
from seresnext_jax.data.sampler import Sampler


class FileLoader:
    """Sets the attributes of `Loader` that do not depend on the decoder."""

    def __init__(
        self, reader: ImageReader, sampler: Sampler, mesh: Mesh, *, fingerprint: str
    ) -> None:
        self.num_images = sampler.num_images
        self.num_steps = sampler.num_steps
        self.paths: Sequence[str] = reader.files.paths
        self.class_names = reader.files.class_names
        self.fingerprint = fingerprint
        self.bad_files = reader.bad_files
        self.not_listed = reader.files.note_left_out()
        self._reader = reader
        self._sampler = sampler
        self._mesh = mesh
