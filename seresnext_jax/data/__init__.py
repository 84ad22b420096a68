"""Input: the order of the images, their transformation, and the backends that produce batches."""
