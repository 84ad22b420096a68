"""DALI decodes the images on the CPU."""

from functools import partial

from seresnext_jax.data.backends.dali import DaliLoader
from seresnext_jax.data.batch import Backend

BACKEND = Backend(partial(DaliLoader, device="cpu"))
