"""Training: the step, the state, the optimizer, loss, mixup, precision and metrics."""
