"""NVIDIA's network and training step in plain PyTorch: the yardstick of the parity tests."""
