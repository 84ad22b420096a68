"""Weights and training states between PyTorch files of the original and this project."""
