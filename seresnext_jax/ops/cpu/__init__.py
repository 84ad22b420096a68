"""Formulations for XLA's CPU backend."""
