"""The programs: where they are, and how the user starts them.

In a checkout they are train.py, eval.py, … in its root. A wheel has them in seresnext_jax/programs/
(setup.py copies them), and pip makes a command for each, such as seresnext-train.
"""

import runpy
import signal
import sys
from pathlib import Path

_HERE = Path(__file__).parent
_INSTALLED = _HERE / "programs"
PROGRAMS = _INSTALLED if _INSTALLED.is_dir() else _HERE.parent
"""The folder of the programs and of configs/."""
_PREFIX = "seresnext-"
_STARTED_AS = Path(sys.argv[0]).stem
"""Read early: a program that `main` runs has its own file as ``sys.argv[0]``."""


def main() -> None:
    """Run the program that this command is named after: for ``seresnext-train`` train.py."""
    name = _STARTED_AS.removeprefix(_PREFIX).replace("-", "_")
    # Ctrl-C while the program imports its packages: no traceback. `cli.run` handles it later.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if it is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.path.insert(0, str(PROGRAMS))  # as when Python runs a file of that folder
    file = PROGRAMS / f"{name}.py"
    runpy.run_path(str(file if file.exists() else PROGRAMS / name), run_name="__main__")


def command(program: str) -> str:
    """How to start a program, for messages: ``python train.py``, or ``seresnext-train``.

    Args:
      program: the name of its file without the suffix.
    """
    if _STARTED_AS.startswith(_PREFIX):
        return _PREFIX + program.replace("_", "-")
    return "python -m convert" if program == "convert" else f"python {program}.py"


def program_name(file: str) -> str:
    """The name of a program in its own help: ``train.py``, or ``seresnext-train``."""
    return command(Path(file).stem) if _STARTED_AS.startswith(_PREFIX) else file
