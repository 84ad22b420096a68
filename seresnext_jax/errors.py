"""The one exception for things that are wrong outside the program: input, options, files."""

_SHOWN = 80


class UserError(Exception):
    """Something the user can mend; the message is one line naming the cause and the mend.

    The command-line programs print it as ``error: <message>`` and exit with status 2 (no traceback
    unless ``--debug`` is given). A bug in this project is never a `UserError`.
    """


def shown(text: object) -> str:
    """Text out of a file as it may stand in a line: control characters escaped, cut to 80."""
    plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))
    return plain if len(plain) <= _SHOWN else plain[: _SHOWN - 3] + "..."
