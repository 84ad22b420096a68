"""Formulations for NVIDIA GPUs."""
