"""Where a run starts: a named checkpoint, the newest one, ``--init-from``, or random weights."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seresnext_jax.checkpoint.save import settle_replaced
from seresnext_jax.checkpoint.store import explain_choice, find_checkpoint, step_folders
from seresnext_jax.config import Config
from seresnext_jax.errors import UserError
from seresnext_jax.model.initial import init_variables
from seresnext_jax.model.network import ResNet
from seresnext_jax.report.console import Console
from seresnext_jax.report.report import dllogger_path
from seresnext_jax.weights.read import open_source, read_weights

Tree = Any


@dataclass(frozen=True)
class Start:
    """What a run starts from: at most one of the fields is given; none means random weights."""

    checkpoint: Path | None = None
    """One to continue from."""
    newest_in: Path | None = None
    """A folder of checkpoints, to continue from the newest whole one."""
    weights: Path | None = None
    """Those of ``--init-from``, for a new run."""


def find_start(config: Config) -> Start:
    """Decide where a run starts, before anything else is read.

    The order: the checkpoint of ``--resume``, the workspace's newest one with ``--resume auto``,
    the weights of ``--init-from``, random weights.

    Raises:
      UserError: there is nothing to resume, or the workspace has another run's checkpoints, or
        ``--raport-file`` can't be used, or ``--init-from`` is not there.
    """
    dllogger_path(Path(config.workspace), config.raport_file)
    folder = checkpoints_folder(config)
    if saves_checkpoints(config):
        settle_replaced(folder)
    existing = bool(step_folders(folder))
    if existing and config.resume == "auto":
        return Start(newest_in=folder)
    named = None
    if config.resume not in ("", "auto"):
        named = find_checkpoint(Path(os.path.expanduser(config.resume)))
        if named is None:
            raise UserError(f"--resume {config.resume}: {_why_not(Path(config.resume))}")
    own = named is not None and named.resolve().parent == folder.resolve()
    if existing and saves_checkpoints(config) and not own:
        raise UserError(
            f"{folder} has checkpoints of an earlier run: continue it with --resume auto, or "
            "choose another --workspace"
        )
    if named is not None:
        return Start(checkpoint=named)
    if not config.init_from:
        return Start()
    weights = Path(config.init_from)
    open_source(weights)  # refuses a path without weights
    return Start(weights=weights)


def _why_not(path: Path) -> str:
    """Why a path can't be resumed from, with the fix."""
    if not os.path.isfile(path):
        return "there is no checkpoint; check the path"
    return (
        f"a file is not a checkpoint of this program; give --init-from {path} to start from its "
        f"weights, or convert a training state of the original first: python -m convert to-flax "
        f"{path} WORKSPACE --training CONFIG --steps-per-epoch N"
    )


def checkpoints_folder(config: Config) -> Path:
    """Where a run keeps its checkpoints."""
    return (Path(config.workspace) / "checkpoints").absolute()


def saves_checkpoints(config: Config) -> bool:
    """Whether the run writes checkpoints."""
    return not (config.no_checkpoints or config.evaluate)


def initial_variables(
    config: Config,
    network: ResNet,
    start: Start,
    class_names: tuple[str, ...],
    console: Console,
) -> Tree:
    """Random weights from the seed, or those of ``--init-from``.

    A classifier of other classes stays random: a new head. A checkpoint's own weights come later,
    with the rest of its state (`Saver.resume`).

    Args:
      class_names: of the dataset; empty if it has none.

    Raises:
      UserError: the weights can't be read or are of another architecture.
    """
    fresh = init_variables(network, config.seed)
    if start.weights is None:
        return fresh
    weights = read_weights(start.weights)
    loaded, info = weights.variables, weights.info
    if info.architecture != config.model.arch:
        raise UserError(
            f"--init-from {start.weights} is a {info.architecture}: give --model.arch "
            f"{info.architecture}, or other weights"
        )
    average = ", the moving average" if info.ema else ""
    if choice := explain_choice(start.weights):
        console.note(choice)
    console.note(f"starting from {start.weights} ({info.architecture}{average})")
    difference = None
    if info.num_classes != config.model.num_classes:
        difference = f"the weights have {info.num_classes}"
    elif info.class_names and class_names and info.class_names != tuple(class_names):
        difference = "the weights have other ones"
    if difference:
        loaded["params"]["fc"] = fresh["params"]["fc"]
        console.note(f"new classifier for {config.model.num_classes} classes ({difference})")
    return {"params": loaded["params"], "batch_stats": loaded["batch_stats"]}
