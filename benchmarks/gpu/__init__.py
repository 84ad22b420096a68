"""Compiling the project's programs for an NVIDIA GPU on a machine that has none."""
