"""Checkpoints: their format, saving and reading."""
