"""Train, evaluate and convert SE-ResNeXt-family image classifiers in JAX."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seresnext_jax.api import (
        Model,
        Prediction,
        create_model,
        load_weights,
        normalize,
        preprocess,
    )

__version__ = "0.1.0"
__all__ = ["Model", "Prediction", "create_model", "load_weights", "normalize", "preprocess"]


def __getattr__(name: str) -> Any:
    """Import the library when one of its names is first used, because JAX takes a second."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from seresnext_jax import api

    return getattr(api, name)
