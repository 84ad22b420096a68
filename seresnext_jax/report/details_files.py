"""The files of an evaluation in detail: one JSON file, and one CSV file per table."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seresnext_jax.errors import UserError, printable
from seresnext_jax.report.details import Details, Row

_COLUMNS = {
    "confusions": ("label", "label_name", "predicted", "predicted_name", "images"),
    "mistakes": ("image", "label", "label_name", "label_probability"),
    "differences": (
        "image",
        "label",
        "label_name",
        "right",
        "weights_probability",
        "against_probability",
    ),
}
"""The columns of the tables that may have no rows."""


def make_details_folder(folder: Path) -> None:
    """Create the folder of the details.

    Raises:
      UserError: it can't be created, or there are files in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        empty = not any(folder.iterdir())
    except OSError as error:
        raise _cannot_write(folder, error) from error
    if not empty:
        raise UserError(
            f"--details {printable(folder)} has files in it: give a new folder, so that two "
            "evaluations are not mixed"
        )


def write_details(folder: Path, details: Details, header: Mapping[str, Any]) -> None:
    """Write ``details.json`` and one CSV file per table.

    Args:
      folder: an existing folder.
      header: what was evaluated and how; it comes first in the JSON file.

    Raises:
      UserError: a file can't be written.
    """
    tables = {
        "calibration": details.calibration,
        "classes": details.classes,
        "confusions": details.confusions,
        "mistakes": details.mistakes,
    }
    text = json.dumps({**header, **details.summary, **tables}, indent=1) + "\n"
    try:
        (folder / "details.json").write_text(text, encoding="utf-8")
    except OSError as error:
        raise _cannot_write(folder, error) from error
    for name, rows in tables.items():
        write_table(folder, name, [_flat(row) for row in rows])


def write_table(folder: Path, name: str, rows: Sequence[Row]) -> None:
    """Write one of the tables to ``<name>.csv``; its columns are the keys of the rows.

    Text that a spreadsheet would take for a formula gets an apostrophe in front.

    Raises:
      UserError: the file can't be written.
    """
    path = folder / f"{name}.csv"
    try:
        with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else _COLUMNS[name])
            writer.writeheader()
            writer.writerows({key: _harmless(value) for key, value in row.items()} for row in rows)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _flat(row: Row) -> Row:
    """A row with its list of classes spread over columns: ``index_1``, ``name_1``, …"""
    flat = {name: value for name, value in row.items() if name != "classes"}
    for i, found in enumerate(row.get("classes", ()), start=1):
        flat |= {f"{name}_{i}": value for name, value in found.items()}
    return flat


def _harmless(value: Any) -> Any:
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula else value


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(
        f"--details: {printable(path)} can't be written ({error.strerror}): free space there, "
        "change its permissions or give another folder"
    )
