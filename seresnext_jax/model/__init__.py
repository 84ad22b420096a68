"""The network: architectures, layers, random weights, folding for inference."""
