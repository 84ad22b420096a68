"""Options as text, and the differences between the options of several runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from seresnext_jax.errors import printable

_PLACES = ("workspace", "raport_file", "resume", "compilation_cache", "debug")
"""Options of a single start of a run, which do not describe its training."""


def show_value(value: Any) -> str:
    """The value of an option for people."""
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(show_value, value))
    return printable(value)


def find_differences(options: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The options that all runs have, but with different values; returns the values by name.

    The options are as read from JSON.

    A run of the original has only the original's names. An option may be recorded twice: under
    its path, such as ``optim.lr`` or ``data.root``, and under the original's name, such as ``lr``
    or ``data``. It is returned once if the values are the same.
    """
    first, *others = options
    found = {}
    for name in first:
        if name not in _PLACES and all(name in other for other in others):
            values = [run[name] for run in options]
            if any(value != values[0] for value in values):
                found[name] = values
    repeated = {
        name
        for path, values in found.items()
        for name in path.split(".")
        if name != path and found.get(name) == values
    }
    return {name: values for name, values in found.items() if name not in repeated}
