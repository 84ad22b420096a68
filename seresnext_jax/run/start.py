"""Where a run starts: a named checkpoint, the newest one, ``--init-from``, or random weights."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seresnext_jax.checkpoint.save import settle_replaced
from seresnext_jax.checkpoint.store import explain_choice, find_checkpoint, read_meta, step_folders
from seresnext_jax.commands import command
from seresnext_jax.config import Config, flatten, option_name
from seresnext_jax.data.class_names import Names, difference, order_warning
from seresnext_jax.errors import UserError
from seresnext_jax.model.initial import init_variables
from seresnext_jax.model.network import ResNet
from seresnext_jax.report.console import Console
from seresnext_jax.report.names import dllogger_path
from seresnext_jax.report.trackers import check_trackers
from seresnext_jax.weights.read import open_source, read_weights

Tree = Any


@dataclass(frozen=True)
class Start:
    """What a run starts from: one of these; random weights if all are None."""

    checkpoint: Path | None = None
    """A checkpoint to continue from."""
    newest_in: Path | None = None
    """A folder of checkpoints; the newest complete one is continued."""
    weights: Path | None = None
    """The weights of ``--init-from``, for a new run."""


def find_start(config: Config) -> Start:
    """Decide where a run starts, before anything else is read.

    The order: the checkpoint that ``--resume`` names, the newest one in the workspace with
    ``--resume auto``, the weights of ``--init-from``, random weights.

    Raises:
      UserError: there is nothing to resume, the workspace has checkpoints of another run or can't
        be written, an option that decides which arrays a state has differs from the checkpoint's,
        ``--raport-file`` or ``--report-to`` can't be used, ``--init-from`` does not exist, or
        random weights would be frozen.
    """
    dllogger_path(Path(config.workspace), config.raport_file)
    check_trackers(config.report_to)
    folder = checkpoints_folder(config)
    if saves_checkpoints(config):
        settle_replaced(folder)
    existing = bool(step_folders(folder))
    if existing and config.resume == "auto":
        _check_options(config, folder, step_folders(folder)[::-1])
        return Start(newest_in=folder)
    named = None
    if config.resume not in ("", "auto"):
        named = find_checkpoint(Path(config.resume))
        if named is None:
            raise UserError(f"--resume {config.resume}: {_why_not(Path(config.resume))}")
    own = named is not None and named.resolve().parent == folder.resolve()
    if existing and saves_checkpoints(config) and not own:
        raise UserError(
            f"{folder} has checkpoints of an earlier run: continue it with --resume auto, or "
            "choose another --workspace"
        )
    if named is not None:
        _check_options(config, named, [named])
        return Start(checkpoint=named)
    if not config.init_from:
        if config.evaluate and config.resume:
            raise UserError(
                f"{folder} has no checkpoint to evaluate: name one with --resume, or give weights "
                "with --init-from"
            )
        if config.optim.freeze_backbone and not config.evaluate:
            raise UserError(
                "--optim.freeze-backbone would keep random weights: load some with --init-from"
            )
        return Start()
    weights = Path(config.init_from)
    open_source(weights)  # refuses a path without weights
    return Start(weights=weights)


def _check_options(config: Config, source: Path, checkpoints: list[Path]) -> None:
    """Refuse options with which the state would have other arrays than the checkpoint.

    Args:
      checkpoints: those of one run; the first whose options can be read is compared.
    """
    for checkpoint in checkpoints:
        with suppress(UserError):
            saved = flatten(read_meta(checkpoint).config)
            break
    else:
        return
    here = flatten(config)
    names = [n for n in ("model.arch", "optim.optimizer") if saved[n] != here[n]]
    if (saved["use_ema"] is None) != (here["use_ema"] is None):
        names.append("use_ema")
    if names:
        rates = ("optim.lr", "optim.lr_per_256", "optim.weight_decay")
        also = [n for n in rates if saved[n] != here[n]] if "optim.optimizer" in names else []
        theirs, fix = (
            " ".join(f"{option_name(n)} {saved[n]}" for n in part) for part in (names, names + also)
        )
        raise UserError(
            f"{source} is of a run with {theirs}, not {', '.join(str(here[n]) for n in names)}: "
            f"to continue that run, give {fix}; to start a new one from its weights, give "
            f"--init-from {source} and another --workspace, without --resume"
        )


def _why_not(path: Path) -> str:
    """Why a run can't resume from a path, and the fix; the end of a message."""
    if not os.path.isfile(path):
        return "there is no checkpoint; check the path"
    return (
        f"a file is not a checkpoint of this program; give --init-from {path} to start from its "
        f"weights, or convert a training state of the original first: {command('convert')} "
        f"to-flax {path} WORKSPACE --training CONFIG --steps-per-epoch N"
    )


def checkpoints_folder(config: Config) -> Path:
    """Where a run keeps its checkpoints."""
    return (Path(config.workspace) / "checkpoints").absolute()


def saves_checkpoints(config: Config) -> bool:
    """Whether the run writes checkpoints."""
    return not (config.no_checkpoints or config.evaluate)


def check_class_names(
    config: Config, start: Start, saved: Names | None, data: Names, console: Console
) -> None:
    """Refuse to continue or evaluate a checkpoint on data whose labels mean other classes.

    Args:
      saved: the class names of the checkpoint; None or empty: it has none.
      data: the class names of the dataset; empty: it has none.

    Raises:
      UserError: the names differ.
    """
    if not saved:
        _warn_of_order(data, console)
        return
    different = difference(saved, data) if data else ""
    if not different:
        return
    source = start.checkpoint or start.newest_in
    fix = f"fine-tune with --init-from {source} and another --workspace"
    if config.evaluate:
        fix = f"name them with {command('eval')} --weights {source} --class-names FILE"
    raise UserError(
        f"the class folders of the data are not those of the checkpoint ({different}): rename the "
        f"folders as in the checkpoint's run, or {fix}"
    )


def _warn_of_order(folders: Names, console: Console) -> None:
    """Warn that the folders' string order gives the labels, if their numeric order differs."""
    if warning := order_warning(folders):
        console.warn(
            f"{warning}; {command('eval')} --class-names FILE evaluates them in another order"
        )


def initial_variables(
    config: Config, network: ResNet, start: Start, class_names: Names, console: Console
) -> Tree:
    """Random weights from the seed, or the weights of ``--init-from``.

    Training on other classes starts with a random classifier. A checkpoint's own weights come
    later, with the rest of its state (`Saver.resume`).

    Args:
      class_names: the names in the dataset; empty if it has none.

    Raises:
      UserError: the weights can't be read, have another architecture, or would be evaluated on
        other classes.
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
    here = config.model.num_classes
    names = difference(info.class_names, class_names) if info.class_names and class_names else ""
    if info.num_classes == here and not names:
        if not info.class_names:
            _warn_of_order(class_names, console)
    elif config.evaluate:
        raise UserError(
            f"--evaluate: {start.weights} has a classifier for other classes "
            f"({names or f'{info.num_classes}, not {here}'}): train a new one without --evaluate, "
            f"or evaluate with {command('eval')} --weights {start.weights}, and --class-names FILE "
            "if the folders are not named after the classes"
        )
    else:
        loaded["params"]["fc"] = fresh["params"]["fc"]
        has = "other ones" if info.num_classes == here else str(info.num_classes)
        more = f": {names}" if names else ""
        console.note(f"new classifier for {here} classes (the weights have {has}){more}")
    return {"params": loaded["params"], "batch_stats": loaded["batch_stats"]}
