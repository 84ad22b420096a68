"""Class names: reading them from a file, comparing them, and checking their order.

imagenet_classes.json is the original's list (NVIDIA: LOC_synset_mapping.json): the words of
ImageNet's 1,000 WordNet synsets, under WordNet's licence (NOTICE). Two classes in it are called
crane: 134 (the bird) and 517 (the machine).
"""

import json
import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from seresnext_jax.errors import UserError, shown

Names = tuple[str, ...]
"""Class names in label order."""

_LISTED = 3
"""Number of names that a message lists."""


@cache
def imagenet_names() -> Names:
    """The 1,000 classes of ImageNet-1k in the order of their sorted WordNet ids."""
    text = (files("seresnext_jax.data") / "imagenet_classes.json").read_text(encoding="utf-8")
    return tuple(json.loads(text))


def names_for(num_classes: int, known: Names | None) -> Names:
    """The known names, or else ImageNet's for 1,000 classes, or ``class 0``, ``class 1``, …

    WordNet ids, the names of ImageNet's class folders, are replaced by ImageNet's words.
    """
    if known and not (num_classes == 1000 and known[0] == "n01440764"):
        return known
    if num_classes == 1000:
        return imagenet_names()
    return tuple(f"class {index}" for index in range(num_classes))


# ---- names from a file -------------------------------------------------------------------------


def choose_names(file: str, stored: Names | None, num_classes: int) -> Names | None:
    """The names in the file of ``--class-names``; without a file, those stored with the weights.

    None if there are no stored names either.

    Raises:
      UserError: as `read_class_names`, or the file has the stored names in another order.
    """
    if not file:
        return stored
    names = read_class_names(file, num_classes)
    if stored and names != stored and sorted(names) == sorted(stored):
        raise UserError(
            f"--class-names {file} has the names of the weights in another order "
            f"({listed(names)}; the weights: {listed(stored)}): leave --class-names out"
        )
    return names


def read_class_names(file: str, num_classes: int) -> Names:
    """Read the names of `num_classes` classes.

    Args:
      file: text with one name per line; or JSON: a list of names, or an object that maps index →
        name or name → index (torchvision's ``class_to_idx``).

    Raises:
      UserError: the file can't be read, has other content, or has the wrong number of names.
    """
    try:
        text = Path(file).read_text(encoding="utf-8-sig").strip()
    except OSError as error:
        raise UserError(f"--class-names {file}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--class-names {file} is not UTF-8 text: save it as UTF-8") from error
    is_json = file.lower().endswith(".json") or text[:1] in ("[", "{")
    try:
        names = _from_json(json.loads(text)) if is_json else _from_lines(text)
    except ValueError as error:
        raise UserError(
            f"--class-names {file}: {shown(error)}; give one name per line, or JSON: a list of "
            "names or an object from index to name"
        ) from error
    if len(names) != num_classes:
        raise UserError(
            f"--class-names {file} has {len(names)} names, but the weights have {num_classes} "
            "classes: give one name for each class, in the order of the labels"
        )
    return names


def _from_lines(text: str) -> Names:
    names = tuple(line.strip() for line in text.split("\n"))
    if "" in names:
        raise ValueError(f"line {names.index('') + 1} is empty")
    return names


def _from_json(value: Any) -> Names:
    if isinstance(value, dict):
        value = _by_index(value)
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise ValueError("it contains something other than names")
    return tuple(value)


def _by_index(table: dict[str, Any]) -> list[Any]:
    """The names in an object that maps index → name or name → index."""
    if all(type(index) is int for index in table.values()):
        names = {index: name for name, index in table.items()}
    elif all(key.isdecimal() for key in table):
        names = {int(key): name for key, name in table.items()}
    else:
        raise ValueError("its keys are not indices")
    if set(names) != set(range(len(table))):
        raise ValueError(f"its indices are not those from 0 to {len(table) - 1}")
    return [names[index] for index in range(len(names))]


# ---- comparing ---------------------------------------------------------------------------------


def listed(names: Iterable[str]) -> str:
    """The first few names as text, for a message."""
    names = list(names)
    return ", ".join([*map(shown, names[:_LISTED]), *["..."] * (len(names) > _LISTED)])


def difference(weights: Names, data: Names) -> str:
    """How the class names of weights and data differ, for a message; "" if they are the same."""
    if weights == data:
        return ""
    if sorted(weights) == sorted(data):
        return f"in the weights their order is {listed(weights)}, in the data {listed(data)}"
    only_weights = [name for name in weights if name not in set(data)]
    only_data = [name for name in data if name not in set(weights)]
    parts = [("only the weights have", only_weights), ("only the data has", only_data)]
    return ", ".join(f"{text} {listed(names)}" for text, names in parts if names)


def order_warning(folders: Names) -> str:
    """A warning for weights without class names if folders sort differently as numbers; else ""."""
    numeric = tuple(sorted(folders, key=_numeric_key))
    if numeric == folders:
        return ""
    return (
        f"the weights have no class names: labels follow the string order of the class folders "
        f"({listed(folders)}), not the numeric order ({listed(numeric)})"
    )


def _numeric_key(name: str) -> list[tuple[int, str]]:
    """Sort key that puts ``class 2`` before ``class 10``."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
