"""Command lines and config files for tests of the options."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from seresnext_jax.cli import parse_config
from seresnext_jax.config import Config, flatten, option_name
from seresnext_jax.errors import UserError
from seresnext_jax.plan import Plan, resolve

HEAD = "from dataclasses import replace\nfrom seresnext_jax.config import *\n"
OPTIONS = [option_name(path) for path in flatten(Config())]


def read(*argv: str) -> Config:
    """The config of a command line."""
    return parse_config(argv, program="train.py", description="Train.")


def plan(config: Config) -> Plan:
    """What follows from a config on ImageNet and two devices."""
    return resolve(config, num_images=1_281_167, num_devices=2)


def complaint(*argv: str) -> str:
    """The one line that a command line is answered with."""
    with pytest.raises(UserError) as error:
        read(*argv)
    assert "\n" not in str(error.value)
    return str(error.value)


def write(path: Path, text: str) -> str:
    """Write a config file and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


@dataclass(frozen=True)
class Pictures:
    """Options without a config."""

    weights: str = "w"
    """Weights to use."""
    top: int = 5
    """Classes to print."""
