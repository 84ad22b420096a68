"""Compiles the project's programs for an NVIDIA GPU on a machine without one."""
