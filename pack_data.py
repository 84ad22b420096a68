"""Pack class folders into shards: tar files, which network disks read faster than single images.

    python pack_data.py --data.root /imagenet --out /shards

Each image is read back from its shard and compared. If packing is interrupted, the same command
continues it. Then train with --data.root /shards: every batch is the same as from the folders.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from seresnext_jax.cli import parse_over_config, run
from seresnext_jax.config import Config, InputConfig, Range
from seresnext_jax.data.files import list_folder
from seresnext_jax.data.open import SPLITS, show_if_slow, split_folder
from seresnext_jax.data.pack import pack_split
from seresnext_jax.errors import UserError, printable
from seresnext_jax.report.console import Console


@dataclass(frozen=True)
class Dataset:
    """The images."""

    root: str = ""
    """Folder with train/<class>/<image> and val/<class>/<image>, or one of the two."""


@dataclass(frozen=True)
class PackConfig:
    """The options of pack_data.py."""

    data: Dataset = field(default_factory=Dataset)
    out: str = ""
    """Folder for the shards: train/*.tar and val/*.tar."""
    images_per_shard: Annotated[int, Range(1, 10**7)] = 2500
    """Number of images in a shard; 2,500 of ImageNet are 280 MB."""
    debug: bool = False
    """Show the traceback of an error."""


def options_from(config: Config | None) -> PackConfig:
    """The default options, taken from a config file if there is one."""
    return PackConfig(Dataset(config.data.root)) if config else PackConfig()


def main(argv: list[str]) -> int:
    """Run the program and return its exit status."""
    options = parse_over_config(
        options_from, argv, program="pack_data.py", description=__doc__ or ""
    )
    if not options.out:
        raise UserError("--out is missing: name a folder for the shards")
    out = Path(os.path.expanduser(options.out))
    folders = {split: split_folder(InputConfig(options.data.root), split) for split in SPLITS}
    present = {split: folder for split, folder in folders.items() if folder.is_dir()}
    if not present:
        raise UserError(
            f"{printable(options.data.root)} has neither train/ nor val/: give --data.root the "
            "folder that contains them"
        )
    console = Console(enabled=True)
    for split, folder in present.items():
        files = list_folder(folder, show_if_slow()).files
        if files.left_out:
            console.note(f"files that are not packed, in {files.note_left_out()}")
        with console.bar(f"packing {split}") as progress:
            shards = pack_split(
                files,
                out / split,
                images_per_shard=options.images_per_shard,
                shuffled=split == "train",
                progress=progress,
            )
        some = "1 shard" if shards == 1 else f"{shards} shards"
        console.note(
            f"{split}: {len(files.paths)} images in {some}; "
            "each image was read back and equals its file"
        )
    return 0


if __name__ == "__main__":
    run(main)
