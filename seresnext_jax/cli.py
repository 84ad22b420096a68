"""The command line: config files, the options that override them, and one line for each error.

A program's options are the fields of a dataclass. tyro derives their names, types and help from the
schema; its message about a wrong option becomes the message of a `UserError`.
"""

import contextlib
import io
import mimetypes
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import NoReturn, TypeVar

import tyro

from seresnext_jax.commands import command, program_name
from seresnext_jax.config import Config, OptimConfig
from seresnext_jax.config_check import check, check_ranges, wrong_rate
from seresnext_jax.config_files import load_config
from seresnext_jax.errors import UserError, fixable_by_the_user
from seresnext_jax.model.network import find_architecture
from seresnext_jax.output import write_whole
from seresnext_jax.unknown_options import VALUES_OF_THE_ORIGINAL, explain_unknown

T = TypeVar("T")

_CONFIG_HELP = """
--config FILE: a Python file whose get_config() gives the defaults of the options below, or the name
of one in configs/, or of a recipe of another architecture such as resnet50/dgxa100_amp_90e. The
defaults shown are those of """


# ---- programs ----------------------------------------------------------------------------------


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Run a program and exit with what `main` returns (None: 0).

    The status is 2 after an error that the user can fix, 130 after Ctrl-C, and 1 if the reader of
    stdout is gone.

    A warning, or an error that the user can fix, is one line on stderr; with ``--debug``, the
    error's traceback comes first. Every other exception is a bug in this project and passes
    through.
    """
    argv = sys.argv[1:]
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # by `commands.main`
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that can't show a character gets \x..
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        sys.exit(main(argv))
    except BrokenPipeError:  # ... | head; the exit must not write to the pipe again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        _end("interrupted", 130, debug="--debug" in argv)
    except Exception as error:
        known = fixable_by_the_user(error)
        if known is None:
            raise
        _end(str(known), 2, debug="--debug" in argv)


def _end(line: str, status: int, *, debug: bool) -> NoReturn:
    """Print an error and exit; `debug` prints the traceback of the current exception first."""
    if debug:
        traceback.print_exc()
    print(f"error: {line}", file=sys.stderr)
    sys.exit(status)


def parse_config(argv: Sequence[str], *, program: str, description: str) -> Config:
    """Read the options of a training run, and check them.

    With ``--check-data`` only types and ranges are checked.

    Args: as for `parse_over_config`.

    Raises:
      UserError: a bad config file, an unknown option or architecture, a value of the wrong type or
        out of range, or options that exclude each other.
      SystemExit: ``--help`` was given and printed.
    """
    config = parse_over_config(
        lambda base: base or Config(), argv, program=program, description=description
    )
    if not config.check_data:  # this needs neither a network nor a schedule
        check(config)
        _check_rate(argv, config.optim)
        find_architecture(config.model.arch)
    paths = {name: os.path.expanduser(getattr(config, name)) for name in _PATHS}
    return replace(config, **paths)


_PATHS = ("workspace", "resume", "init_from")
"""Options whose ``~`` is expanded here, as a shell does not expand it in ``--workspace=~/a``."""


def _check_rate(argv: Sequence[str], optim: OptimConfig) -> None:
    """Refuse a learning rate that was chosen for another optimizer, or that is ignored.

    Raises:
      UserError: the command line changes the optimizer but not its learning rate, or gives
        --optim.lr-per-256 although --optim.lr is set.
    """
    words = {word.partition("=")[0].replace("_", "-") for word in argv}
    if "--optim.lr-per-256" in words and optim.lr is not None:
        raise UserError(
            f"--optim.lr-per-256 has no effect where --optim.lr is {optim.lr:g}: leave it out, or "
            "also give --optim.lr None"
        )
    given = words & {"--optim.lr", "--optim.lr-per-256"}
    theirs = load_recipe(argv)[1].optim
    if optim.optimizer != theirs.optimizer and not given:
        raise wrong_rate(theirs, optim.optimizer)


def parse_over_config(
    defaults: Callable[[Config | None], T], argv: Sequence[str], *, program: str, description: str
) -> T:
    """Read ``--config FILE`` and the options that override it.

    Args:
      defaults: returns the program's default options for the config of the file, or for None if
        there is no file.
      argv, program, description: as for `parse`.

    Raises:
      UserError: a bad config file, an unknown option, or a value of the wrong type or out of range.
      SystemExit: ``--help`` was given and printed.
    """
    file, rest = _split_config(argv)
    return parse(
        defaults(load_config(file) if file else None),
        rest,
        program=program,
        description=description + _CONFIG_HELP + (file or "a run without --config") + ".",
        known=("--config",),
    )


def parse(
    default: T, argv: Sequence[str], *, program: str, description: str, known: Sequence[str] = ()
) -> T:
    """Override the fields of a dataclass with the options of a command line; return a new one.

    Args:
      default: the values of the options that are not given.
      argv: the words of the command line, without the program's name.
      program: the program's name, for the help.
      description: what the program does, for the help.
      known: options that the caller has removed from `argv`; a typo may mean one of them.

    Raises:
      UserError: an unknown option, or a value of the wrong type or out of range.
      SystemExit: ``--help`` was given and printed.
    """
    description = description.replace(f"python {program}", command(Path(program).stem))
    program = program_name(program)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            value, unknown = tyro.cli(
                type(default),
                default=default,
                args=argv,
                prog=program,
                description=description,
                return_unknown_args=True,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except BrokenPipeError:  # --help | head; the exit must not write to the pipe again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except ImportError as error:  # tyro wants another package for other shells
        raise UserError("there is completion for bash, zsh and fish: choose one") from error
    except OSError as error:  # of --tyro-write-completion
        told = f"the completion can't be written ({error}): make its folder, or name another file"
        raise UserError(told) from error
    except SystemExit as stop:
        if not stop.code:
            raise
        problem = _first_paragraph(printed.getvalue())
        word = problem.partition("'")[2].partition("'")[0]
        if ours := VALUES_OF_THE_ORIGINAL.get(word):
            problem += f"; the original's {word} is {ours} here"
    else:
        sys.stderr.write(printed.getvalue())
        if not unknown:
            check_ranges(value)
            return value
        problem = explain_unknown(unknown[0], default, known)
    raise UserError(f"{problem} ({program} --help explains every option)")


_PLAINER = (
    (r"invalid literal for int\(\) with base 10", "not a whole number"),
    (r"could not convert string to float", "not a number"),
    (
        r"no type matching \{None\}\|FLOAT could be instantiated from \[(.*)\]",
        r"neither a number nor None: \1",
    ),
    (r"Missing value for argument '(.*)'\. Expected 1 values", r"\1 needs a value"),
)
"""Patterns in tyro's messages, and what replaces them."""


def _first_paragraph(box: str) -> str:
    """The first paragraph of an error that tyro prints in a box, as one plain line."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    body = [line.strip("│ ") for line in plain.splitlines()[1:]]
    lines = takewhile(lambda line: line and line[0] not in "─╰", body)
    text = " ".join(lines).removeprefix("Error parsing ").rstrip(".")
    for pattern, plain in _PLAINER:
        text = re.sub(pattern, plain, text)
    return text


def load_recipe(argv: Sequence[str]) -> tuple[str, Config]:
    """The file that ``--config`` names, and its options before the command line overrides them.

    Without ``--config``: "" and the default options.

    Raises:
      UserError: no file follows ``--config``, or it is a bad config file.
    """
    file, _ = _split_config(argv)
    return file, load_config(file) if file else Config()


def _split_config(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Separate ``--config FILE`` or ``--config=FILE`` from a command line; the last one counts.

    Returns:
      The file, or "" if none is given, and the other words.

    Raises:
      UserError: no file follows ``--config``.
    """
    file, rest, words = "", [], iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name != "--config":
            rest.append(word)
            continue
        file = value if equals else next(words, "")
        if not file or file.startswith("--"):
            raise UserError("--config needs a file, such as --config configs/dgxa100_amp_90e.py")
    return file, rest


# ---- output files ------------------------------------------------------------------------------


def check_output(option: str, path: str) -> None:
    """Refuse an output file early if its folder is missing or it has the name of an image.

    Raises:
      UserError: the file is refused; the message names the option.
    """
    if path and not Path(path).absolute().parent.is_dir():
        raise UserError(f"{option} {path}: its folder does not exist; make it first")
    if (mimetypes.guess_type(path)[0] or "").startswith("image/"):
        raise UserError(f"{option} {path} is the name of an image: give {option} another name")


def write_output(option: str, path: str, text: str) -> None:
    """Write `text` to the file that an option names, atomically; do nothing if `path` is "".

    Raises:
      UserError: it can't be written.
    """
    try:
        if path:
            write_whole(Path(path), text)
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror}; name another file") from error
