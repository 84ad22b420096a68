"""Config files: Python whose ``get_config()`` returns a `Config`, found by path or by name."""

import contextlib
import difflib
import os
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import typeguard

from seresnext_jax.commands import PROGRAMS
from seresnext_jax.config import Config
from seresnext_jax.errors import UserError

_CONFIGS = PROGRAMS / "configs"
_TABLE = _CONFIGS / "base.py"


def load_config(file: str) -> Config:
    """Run a config file and return the result of its ``get_config()``.

    While it runs, the parent of the file's folder is on the import path. So ``configs/a.py`` can
    use ``from configs.base import recipe`` wherever the program was started.

    Raises:
      UserError: the file is missing or fails, or does not return a well-typed `Config`.
    """
    path = _find_config(file)
    try:
        source = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--config {file}: {reason}{_known_configs(file)}") from error
    try:
        with _importable(path.resolve().parent.parent):
            namespace = _execute(path, source)
            named = namespace["NAMED"] if path == _TABLE else {}
            get_config = named.get(_name(file), namespace.get("get_config"))
            config = get_config() if callable(get_config) else None
    except Exception as error:
        where = _line_in(path, error)
        reason = str(getattr(error, "msg", error)).partition("\n")[0]
        raise UserError(f"--config {file}{where}: {type(error).__name__}: {reason}") from error
    if not callable(get_config):
        raise UserError(
            f"--config {file}: it defines no get_config(): add one that returns a Config"
        )
    if not isinstance(config, Config):
        raise UserError(
            f"--config {file}: get_config() returned a {type(config).__name__}: return a Config"
        )
    try:
        _check_types(config)
    except typeguard.TypeCheckError as error:
        raise UserError(f"--config {file}: {error}") from error
    return config


def _execute(path: Path, source: bytes) -> dict[str, Any]:
    """Run the source of a config file and return its global names."""
    namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    exec(compile(source, str(path), "exec"), namespace)
    return namespace


def _find_config(file: str) -> Path:
    """Find a config file by path or name; ``digits`` and ``configs/digits.py`` work in any folder.

    An existing file takes precedence over a name. The name of a recipe, ``ARCHITECTURE/NAME``,
    gives configs/base.py, which has the table of recipes. Anything else is returned as a path.
    """
    if os.path.isfile(file):
        return Path(file)
    if _name(file) in _files():
        return _CONFIGS / f"{_name(file)}.py"
    return _TABLE if _name(file) in _recipes() else Path(file)


def _name(file: str) -> str:
    """``configs/digits.py`` → ``digits``."""
    return os.path.normpath(file).removeprefix("configs/").removesuffix(".py")


def _files() -> list[str]:
    """The names of the config files in configs/."""
    return sorted(p.stem for p in _CONFIGS.glob("*.py") if p.stem not in ("__init__", "base"))


def _recipes() -> list[str]:
    """The names of the recipes of all architectures."""
    return list(_execute(_TABLE, _TABLE.read_bytes())["NAMED"])


def _known_configs(file: str) -> str:
    """The end of the message about a missing config: the nearest name, and the valid names."""
    recipes, name = _recipes(), _name(file).lower()
    near = [recipe for recipe in recipes if recipe.endswith(f"/{name}")]
    near = near or difflib.get_close_matches(name, _files() + recipes, n=1)
    near = near or difflib.get_close_matches(Path(name).stem, _files(), n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    arch = name.partition("/")[0]
    archs = dict.fromkeys(f"{recipe.partition('/')[0]}/..." for recipe in recipes)
    listed = [x for x in recipes if x.startswith(f"{arch}/")] or [*_files(), *archs]
    return (
        f"{hint}; give the path of a Python file with get_config(), or a name: {', '.join(listed)}"
    )


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Put a folder at the front of the import path, for the block."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _line_in(path: Path, error: Exception) -> str:
    """`` line N`` of the file at `path` if it or code it calls raised the error; otherwise ""."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f" line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f" line {lines[-1]}" if lines else ""


def _check_types(config: Any, prefix: str = "") -> None:
    """Check the types of a config's fields, which Python does not do.

    Raises:
      typeguard.TypeCheckError: a field has the wrong type; the message names it.
    """
    hints = get_type_hints(type(config))
    for item in fields(config):
        value = getattr(config, item.name)
        try:
            typeguard.check_type(
                value,
                hints[item.name],
                collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS,
            )
        except typeguard.TypeCheckError as error:
            reason = re.sub(r"\s*\n\s*", "; ", str(error))
            raise typeguard.TypeCheckError(f"{prefix}{item.name} is {value!r}: {reason}") from error
        if is_dataclass(value):
            _check_types(value, f"{prefix}{item.name}.")
