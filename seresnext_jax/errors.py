"""The exceptions for what the user can fix: input, options, files."""

_SHOWN = 80


class UserError(Exception):
    """Something that the user can fix; the message is one line with the cause and the fix.

    The command-line programs print it as ``error: <message>`` and exit with status 2 (no traceback
    unless ``--debug`` is given). A bug in this project is never a `UserError`.
    """


class CommonError(UserError):
    """A `UserError` that all processes of a run raise at the same point, so that they end together.

    With any other error, a process ends before the others.
    """


def printable(text: object) -> str:
    """Make text safe to print in one line, such as a file name that is not UTF-8.

    Control characters and bytes that could not be decoded are escaped.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def shown(text: object) -> str:
    """`printable` text, cut to 80 characters: for text from a file or an exception."""
    plain = printable(text)
    return plain if len(plain) <= _SHOWN else plain[: _SHOWN - 3] + "..."


def fixable_by_the_user(error: Exception) -> UserError | None:
    """An error as one line for the user; None: it is a bug.

    If a device is out of memory, JAX raises a runtime error that begins with RESOURCE_EXHAUSTED.
    """
    if isinstance(error, UserError):
        return error
    if str(error).startswith("RESOURCE_EXHAUSTED"):
        return UserError(
            f"the device is out of memory ({shown(str(error).partition(': ')[2])}): lower "
            "--batch-size; in training, --optimizer-batch-size keeps the step's images in several "
            "passes"
        )
    return None
