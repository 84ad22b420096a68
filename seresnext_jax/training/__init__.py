"""Training: the step, the state, the optimizer, augmentation, loss, mixup, precision, metrics."""
