"""The modules of the program benchmark.py: what it runs, times and prints."""
