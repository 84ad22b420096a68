"""Train, evaluate and convert SE-ResNeXt-family image classifiers in JAX."""

__version__ = "0.1.0"
