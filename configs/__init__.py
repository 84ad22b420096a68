"""One file a recipe, each with `get_config`; run one with ``--config configs/NAME.py``."""
