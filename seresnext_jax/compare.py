"""Compare runs: ``python -m seresnext_jax.compare RUN RUN ...``.

A run is a workspace of train.py, or a report file of this project or of NVIDIA's original
(DLLogger's format). Prints a table of the results, and the options that differ. --html draws the
curves of all runs together. `python -m seresnext_jax.show` makes the page of one run.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from seresnext_jax.cli import check_output, parse, run, write_output
from seresnext_jax.errors import UserError
from seresnext_jax.report.comparison import (
    NOTE_ON_THE_ORIGINAL,
    comparison,
    comparison_page,
    difference_tables,
    is_of_the_original,
    read_runs,
    result_table,
)


@dataclass(frozen=True)
class CompareConfig:
    """The options of compare."""

    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Workspaces and report files, at least two."""
    html: str = ""
    """Also write a page with the tables and the curves to this file."""
    json: str = ""
    """Also write the results and the differences to this JSON file."""
    debug: bool = False
    """Show the traceback of an error."""


def main(argv: list[str]) -> None:
    """Run the program."""
    config = parse(CompareConfig(), argv, program="compare", description=__doc__ or "")
    if len(config.runs) < 2:
        raise UserError("compare needs at least two runs: give workspaces or report files")
    check_output("--html", config.html)
    check_output("--json", config.json)
    runs = read_runs([Path(run) for run in config.runs])
    print(*result_table(runs).lines(), sep="\n")
    for title, table in difference_tables(runs).items():
        print("", title, *table.lines(), sep="\n")
    if any(is_of_the_original(history) for _, history in runs):
        print("", NOTE_ON_THE_ORIGINAL, sep="\n")
    write_output("--html", config.html, comparison_page(runs))
    text = json.dumps(comparison(runs), indent=2, allow_nan=False)
    write_output("--json", config.json, text + "\n")


if __name__ == "__main__":
    run(main)
