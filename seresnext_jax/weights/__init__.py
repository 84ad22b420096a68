"""Weights as a library: reading files safely, state dicts, training states, verification."""
