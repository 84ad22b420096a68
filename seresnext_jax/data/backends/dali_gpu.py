"""DALI decodes the images on the GPUs."""

from functools import partial

from seresnext_jax.data.backends.dali import DaliLoader
from seresnext_jax.data.batch import Backend

BACKEND = Backend(partial(DaliLoader, device="gpu"), on_gpu=True)
