"""The one exception for things that are wrong outside the program: input, options, files."""


class UserError(Exception):
    """Something the user can mend; the message is one line naming the cause and the mend.

    The command-line programs print it as ``error: <message>`` and exit with status 2 (no traceback
    unless ``--debug`` is given). A bug in this project is never a `UserError`.
    """
