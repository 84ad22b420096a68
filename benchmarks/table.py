"""Prints a benchmark's results: a line of versions, and rows of figures as a Markdown table."""

from collections.abc import Iterable, Mapping
from typing import Any

Row = dict[str, Any]
"""The values of a table's row by column."""


def print_header(header: Mapping[str, Any]) -> None:
    """Print names and values in one line."""
    print("  ".join(f"{name} {value}" for name, value in header.items()), flush=True)


def print_table(rows: Iterable[Row]) -> list[Row]:
    """Print each row as soon as it is available; returns all of them.

    The first row decides the columns of the table.
    """
    printed: list[Row] = []
    for row in rows:
        if not printed:
            print("| " + " | ".join(row) + " |")
            print("|" + " --- |" * len(row))
        columns = printed[0] if printed else row
        cells = [_cell(row.get(column)) for column in columns]
        print("| " + " | ".join(cells) + " |", flush=True)
        printed.append(row)
    return printed


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
