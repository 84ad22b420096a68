"""Make the page and the plots of a run: ``python -m seresnext_jax.show WORKSPACE``.

train.py writes them, too: the page (report.html) after each epoch, the plots (report.png,
loss_plot.png, top1_plot.png, top5_plot.png) at the end. This command makes them from any report,
also during a run, and also from a report of the original. `python -m seresnext_jax.compare`
compares runs.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from seresnext_jax.cli import parse, run
from seresnext_jax.errors import UserError
from seresnext_jax.report.history import read_history
from seresnext_jax.report.html import write_page
from seresnext_jax.report.names import HTML_NAME, PLOT_NAME
from seresnext_jax.report.plot import plot_report
from seresnext_jax.report.run_page import run_page


@dataclass(frozen=True)
class ShowConfig:
    """The options of show."""

    run: tyro.conf.Positional[str] = ""
    """A workspace, or a report file: report.jsonl or one in DLLogger's format."""
    out: str = ""
    """Folder for the page and the plots; empty: the folder of the report."""
    debug: bool = False
    """Show the traceback of an error."""


def main(argv: list[str]) -> None:
    """Run the program."""
    config = parse(ShowConfig(), argv, program="show", description=__doc__ or "")
    if not config.run:
        raise UserError("no run is named: give a workspace or a report file")
    history = read_history(Path(config.run))
    folder = Path(config.out) if config.out else history.path.parent
    if not folder.is_dir():
        raise UserError(f"--out {config.out}: the folder does not exist; make it first")
    write_page(folder / HTML_NAME, run_page(history))
    plot_report(history.path, folder)
    print(f"page: {folder / HTML_NAME}")
    print(f"plot: {folder / PLOT_NAME}")


if __name__ == "__main__":
    run(main)
