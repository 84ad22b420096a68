"""Writing the files of a run's folder: what goes wrong is one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seresnext_jax.errors import UserError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file `path`, or its folder, in the error of a write inside.

    Raises:
      UserError: it can't be written.
    """
    try:
        yield
    except OSError as error:
        mend = "free space there, mend its permissions or choose another --workspace"
        raise UserError(f"the report {path} can't be written ({error.strerror}): {mend}") from error
