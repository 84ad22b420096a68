"""The input pipeline: image order, transforms, and the backends that produce batches."""
