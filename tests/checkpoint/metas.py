"""What is saved beside a state, where a test does not care."""

from dataclasses import replace
from typing import Any

from seresnext_jax.checkpoint.meta import Meta, Progress
from seresnext_jax.config import Config
from seresnext_jax.plan import resolve


def make_meta(**values: Any) -> Meta:
    """A meta of a run with the default configuration; `values` of its fields."""
    plan = resolve(Config(), num_images=1280, num_devices=1)
    meta = Meta(step=0, epoch=0, progress=Progress(), config=Config(), plan=plan)
    return replace(meta, **values)
