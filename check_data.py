"""Check a dataset before training: its classes, broken files, val images in train.

    python check_data.py --data.root FOLDER --model.num-classes 1000

Every image is decoded. The exit status is 1 if anything is wrong.
"""

from dataclasses import dataclass, field
from typing import Annotated

from seresnext_jax.cli import parse_over_config, run
from seresnext_jax.config import Config, InputConfig, Range
from seresnext_jax.report.console import Console
from seresnext_jax.run.data_check import check_and_print


@dataclass(frozen=True)
class Dataset:
    """The images."""

    root: str = ""
    """Folder with train/<class>/<image> and val/<class>/<image>."""
    workers: Annotated[int, Range(1, 1024)] = 4
    """Decoding threads."""


@dataclass(frozen=True)
class Classes:
    """The network to train."""

    num_classes: Annotated[int, Range(1, 10**7)] = 1000
    """Width of its classifier."""


@dataclass(frozen=True)
class CheckDataConfig:
    """The options of check_data.py."""

    data: Dataset = field(default_factory=Dataset)
    model: Classes = field(default_factory=Classes)
    debug: bool = False
    """Show the traceback of an error."""


def options_from(config: Config | None) -> CheckDataConfig:
    """The default options, taken from a config file if there is one."""
    if config is None:
        return CheckDataConfig()
    data = Dataset(config.data.root, config.data.workers)
    return CheckDataConfig(data, Classes(config.model.num_classes), config.debug)


def main(argv: list[str]) -> int:
    """Run the program and return its exit status."""
    options = parse_over_config(
        options_from, argv, program="check_data.py", description=__doc__ or ""
    )
    data = InputConfig(root=options.data.root, workers=options.data.workers)
    return check_and_print(data, options.model.num_classes, Console(enabled=True))


if __name__ == "__main__":
    run(main)
