"""Exported networks: one file that other programs run."""
