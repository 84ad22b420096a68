"""Checks of a machine, and of a run before it starts; doctor.py prints them."""
