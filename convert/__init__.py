"""Converts weights and training states between the original's PyTorch files and this project."""
