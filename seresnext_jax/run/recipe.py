"""How a run differs from its recipe: the options that the command line changed."""

from collections.abc import Mapping
from typing import Any

from seresnext_jax.config import Config, flatten, option_name
from seresnext_jax.report.history import RunStart
from seresnext_jax.report.options import show_value

_NO_EFFECT = (
    *("data.root", "data.index", "data.workers", "data.prefetch", "data.max_bad_share"),
    *("max_bad_steps", "distributed.", "checkpoint.", "no_checkpoints", "resume", "run_epochs"),
    *("check_data", "evaluate", "training_only", "topk", "print_freq", "workspace", "raport_file"),
    *("compilation_cache", "debug", "report_to"),
)
"""Options that do not change the trained weights: their paths, or prefixes of paths."""


def find_deviations(recipe: Config, config: Config) -> dict[str, dict[str, Any]]:
    """The options that differ and may change the weights: ``{"epochs": {"recipe": 90, "run": 3}}``.

    An option counts unless it is known to have no effect, so a new one is never overlooked.
    """
    wanted = flatten(recipe)
    return {
        path: {"recipe": wanted[path], "run": value}
        for path, value in flatten(config).items()
        if value != wanted[path] and not path.startswith(_NO_EFFECT)
    }


def recipe_rows(start: RunStart) -> list[tuple[str, str]]:
    """The recipe and the deviations from it, for the table at the end of a run."""
    name = start.recipe or "the default options"
    changed: Mapping[str, Any] = start.deviations or {}
    rows = [("recipe", f"{name}, except for" if changed else f"{name}, unchanged")]
    for path, values in changed.items():
        given, wanted = show_value(values["run"]), show_value(values["recipe"])
        rows.append(("", f"{option_name(path)}: {given} (recipe: {wanted})"))
    return rows
