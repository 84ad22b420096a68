"""The measurements behind benchmark.py."""
