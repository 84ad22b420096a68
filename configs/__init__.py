"""Recipes, one per file, each with `get_config`; run one with ``--config configs/NAME.py``."""
