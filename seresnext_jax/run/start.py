"""Where a run starts: a named checkpoint, the newest one, ``--init-from``, or random weights."""

import os
from pathlib import Path
from typing import Any

from seresnext_jax.checkpoint.reading import find_checkpoint, step_folders
from seresnext_jax.checkpoint.saving import settle_replaced
from seresnext_jax.config import Config
from seresnext_jax.errors import UserError
from seresnext_jax.model.initial import init_variables
from seresnext_jax.model.network import ResNet
from seresnext_jax.report.console import Console
from seresnext_jax.weights.read import open_source, read_weights

Tree = Any


def find_start(config: Config) -> Path | None:
    """Where a run continues, decided before anything else is read.

    The order: the checkpoint of ``--resume``, the workspace's newest one with ``--resume auto``,
    the weights of ``--init-from``, random weights. `initial_variables` reads the last two.

    Returns:
      the checkpoint that ``--resume`` names; the workspace's folder of checkpoints, for its newest
      one that is whole; or None for a run from the beginning.

    Raises:
      UserError: there is nothing to resume, or the workspace has another run's checkpoints or can't
        be written, or ``--init-from`` is not there.
    """
    start = _checkpoint_to_continue(config)
    if start is None and config.init_from:
        open_source(config.init_from)  # refuses a path without weights
    return start


def _checkpoint_to_continue(config: Config) -> Path | None:
    folder = checkpoints_folder(config)
    _check_writable(Path(config.workspace))
    if saves_checkpoints(config):
        settle_replaced(folder)
    existing = step_folders(folder)
    if config.resume == "auto" and existing:
        return folder
    named = None
    if config.resume not in ("", "auto"):
        named = find_checkpoint(Path(os.path.expanduser(config.resume)))
        if named is None:
            raise UserError(f"--resume {config.resume}: there is no checkpoint; check the path")
        if named.resolve().parent == folder.resolve():
            return named
    if saves_checkpoints(config) and existing:
        raise UserError(
            f"{folder} holds checkpoints of an earlier run: continue it with --resume auto, or "
            "choose another --workspace"
        )
    return named


def checkpoints_folder(config: Config) -> Path:
    """Where a run keeps its checkpoints."""
    return (Path(config.workspace) / "checkpoints").absolute()


def saves_checkpoints(config: Config) -> bool:
    """Whether the run writes checkpoints."""
    return not (config.no_checkpoints or config.evaluate)


def _check_writable(workspace: Path) -> None:
    """Refuse a workspace that can't be made or written, without making it."""
    folder = workspace.absolute()
    while not os.path.exists(folder):
        folder = folder.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise UserError(
            f"--workspace {workspace} can't be written: make {folder} a writable folder, or choose "
            "another --workspace"
        )


def initial_variables(
    config: Config,
    network: ResNet,
    start: Path | None,
    class_names: tuple[str, ...],
    console: Console,
) -> Tree:
    """Random weights from the seed, or those of ``--init-from``.

    A classifier of other classes stays random: a new head.

    Args:
      start: what `find_start` found. A run that is continued brings its own weights and does not
        need those of ``--init-from`` any more.
      class_names: of the dataset; empty if it has none.

    Raises:
      UserError: the weights can't be read or are of another architecture.
    """
    fresh = init_variables(network, config.seed)
    if not config.init_from or start is not None:
        return fresh
    weights = read_weights(config.init_from)
    loaded, info = weights.variables, weights.info
    if info.architecture != config.model.arch:
        raise UserError(
            f"--init-from {config.init_from} is a {info.architecture}: give --model.arch "
            f"{info.architecture}, or other weights"
        )
    average = ", the moving average" if info.ema else ""
    console.note(f"starting from {config.init_from} ({info.architecture}{average})")
    difference = None
    if info.num_classes != config.model.num_classes:
        difference = f"the weights have {info.num_classes}"
    elif info.class_names and class_names and info.class_names != tuple(class_names):
        difference = "the weights have other ones"
    if difference:
        loaded["params"]["fc"] = fresh["params"]["fc"]
        console.note(f"new classifier for {config.model.num_classes} classes ({difference})")
    return {"params": loaded["params"], "batch_stats": loaded["batch_stats"]}
