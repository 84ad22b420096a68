"""The format of a checkpoint: saving and reading."""
