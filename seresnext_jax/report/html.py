"""The HTML of a page and its tables; a page is one file that loads no others."""

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from seresnext_jax.output import write_whole
from seresnext_jax.report.sinks import writing

Row = Sequence[str]


def page(title: str, body: str) -> str:
    """A complete HTML page.

    Args:
      title: plain text.
      body: HTML.
    """
    style = files("seresnext_jax.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def table(label: str, header: Row, rows: Iterable[Row], *, numbers: bool = False) -> str:
    """A table that scrolls if it is large; the first cell of each row is its name.

    Args:
      label: the table's name for screen readers.
      numbers: align all columns but the first to the right.
    """
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>\n"
        for first, *rest in rows
    )
    kind = ' class="numbers"' if numbers else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">'
        f"<table{kind}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>"
    )


def tiles(values: Iterable[tuple[str, str, str]]) -> str:
    """The most important values as HTML tiles, from (name, value, remark)."""
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(remark)}</small></dd></div>"
        for name, value, remark in values
    )
    return f'<dl class="tiles">{items}</dl>'


def write_page(path: Path, text: str) -> None:
    """Write a page atomically, so that a browser never loads an incomplete one.

    Raises:
      UserError: it can't be written.
    """
    with writing(path):
        write_whole(path, text)
