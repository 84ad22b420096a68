"""Saving and restoring a run with orbax: asynchronous, atomic, best and last kept.

A checkpoint is one folder named by its optimizer step, with three items: ``weights`` (params,
batch_stats, and the moving average where there is one), ``training`` (what else `TrainState`
holds), and ``meta`` (JSON: position, best result, config and plan). Weights stand apart so that
evaluation and conversion need neither the optimizer nor its options.
"""

import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from seresnext_jax.errors import UserError
from seresnext_jax.state import TrainState

Tree = Any
Meta = dict[str, Any]
_WEIGHTS = ("params", "batch_stats", "ema")
_ITEMS = ("weights", "training", "meta")
_METRIC = "top1"
_BROKEN = ".broken"
_REPLACED = ".replaced"
"""A checkpoint whose step is being saved again; it counts until the new one is whole."""

# Orbax narrates each of its steps, and prints an error beside raising it.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class Checkpoints:
    """The checkpoints of one run. Use as a context manager: leaving waits for the last save."""

    def __init__(self, folder: Path, *, keep: int = 0) -> None:
        """Open or create `folder`.

        Args:
          keep: 0 keeps the last and the best checkpoint, N also the last N, -1 all of them.
        """
        self.folder = folder.absolute()
        _on_one_process(self._settle_replaced)

        def score(metrics: Meta) -> float:
            return float(metrics[_METRIC])

        policy = None
        if keep >= 0:
            best = BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
            policy = AnyPreservationPolicy([LatestN(max(1, keep)), best])
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                # Without best_fn orbax does not write the metrics that the policy reads.
                best_fn=score,
                preservation_policy=policy,
                cleanup_tmp_directories=True,
            ),
            item_names=_ITEMS,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the last save and free the folder.

        Raises:
          UserError: the save failed.
        """
        self.wait()
        self._manager.close()

    def save(self, state: TrainState, meta: Meta, *, top1: float | None = None) -> None:
        """Start writing `state`; returns once its arrays may be donated.

        Args:
          meta: JSON-serialisable; ``top1`` is added to it.
          top1: validation accuracy, if this state was evaluated; decides what is best.

        Raises:
          UserError: this save or the previous one failed (disk full, say); what was whole stays.
        """
        self.wait()
        step = int(state.step)
        weights, training = split_state(state)
        try:
            if step in self._manager.all_steps():
                self._set_aside([step], _REPLACED)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    weights=ocp.args.StandardSave(weights),
                    training=ocp.args.StandardSave(training),
                    meta=ocp.args.JsonSave({**meta, _METRIC: top1}),
                ),
                metrics=None if top1 is None else {_METRIC: top1},
                force=True,
            )
        except (OSError, ValueError) as error:
            raise self._save_error(error) from error

    def wait(self) -> None:
        """Return when the last save is whole on disk.

        Raises:
          UserError: it failed.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._save_error(error) from error
        _on_one_process(self._settle_replaced)

    def _save_error(self, error: Exception) -> UserError:
        _on_one_process(self._settle_replaced)
        self._manager.reload()
        steps = self._manager.all_steps()
        kept = f"checkpoint {max(steps)} is whole" if steps else "there is no earlier one"
        return UserError(
            f"saving to {self.folder} failed ({_first_line(error)}): {kept}; "
            "free space there and continue with --resume auto"
        )

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def restore_newest(self, like: TrainState) -> tuple[TrainState, Meta, list[str]]:
        """Read the newest whole checkpoint onto the devices of `like`.

        A broken one is renamed to ``<step>.broken`` and the one before it is tried.

        Args:
          like: a state of the same network and optimizer; gives shapes, types and shardings.

        Returns:
          The state, its meta, and a line for each broken checkpoint.

        Raises:
          UserError: there is no checkpoint, or none can be read into `like`.
        """
        notes: list[str] = []
        for step in reversed(self.steps()):
            try:
                state, meta = self._read(step, like)
            except Exception as error:  # tensorstore raises no narrower one for a damaged file
                notes.append(f"checkpoint {step} can't be read ({_first_line(error)})")
            else:
                self._set_aside([s for s in self.steps() if s > step], _BROKEN)
                return state, meta, notes
        if notes:
            raise UserError(
                f"no checkpoint in {self.folder} fits this run: {'; '.join(notes)}; "
                "check that --model and --optim are those of the run, or choose another --workspace"
            )
        raise UserError(f"{self.folder} holds no checkpoint: check the path given to --resume")

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, Meta]:
        """Read one checkpoint onto the devices of `like`.

        Raises:
          UserError: it is damaged or of another network or optimizer.
        """
        try:
            return self._read(step, like)
        except Exception as error:
            raise UserError(
                f"{self.folder / str(step)} can't be read into this run ({_first_line(error)}): "
                "check that --model and --optim are those of its run"
            ) from error

    def _read(self, step: int, like: TrainState) -> tuple[TrainState, Meta]:
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        weights, training = split_state(abstract)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                weights=ocp.args.StandardRestore(weights),
                training=ocp.args.StandardRestore(training),
                meta=ocp.args.JsonRestore(),
            ),
        )
        ema = restored["weights"].get("ema")
        parts = {**restored["training"], **restored["weights"], "ema": ema}
        return TrainState(**parts), restored["meta"]

    def _set_aside(self, steps: list[int], suffix: str) -> None:
        def rename() -> None:
            for step in steps:
                target = self.folder / f"{step}{suffix}"
                shutil.rmtree(target, ignore_errors=True)
                (self.folder / str(step)).rename(target)

        if steps:
            _on_one_process(rename)
            self._manager.reload()

    def _settle_replaced(self) -> None:
        """Drop the checkpoints that were saved again; bring back those whose new save failed."""
        for old in self.folder.glob(f"*{_REPLACED}"):
            new = old.with_suffix("")
            if new.exists():
                shutil.rmtree(old)
            else:
                old.rename(new)


def _quiet_unraisablehook(unraisable: "sys.UnraisableHookArgs") -> None:
    """Pass over what tensorstore's threads say about writes that were given up with their save."""
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        sys.__unraisablehook__(unraisable)


sys.unraisablehook = _quiet_unraisablehook


def _on_one_process(action: Callable[[], None]) -> None:
    """Change the folder on the first process while the others wait."""
    if jax.process_index() == 0:
        action()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("seresnext_jax.checkpoint")


def split_state(state: TrainState) -> tuple[Tree, Tree]:
    """The two array items of a checkpoint: weights, and everything else."""
    fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
    weights = {name: fields.pop(name) for name in _WEIGHTS}
    if weights["ema"] is None:
        del weights["ema"]
    return weights, fields


def find_checkpoint(path: Path) -> Path | None:
    """The checkpoint folder that `path` means, or None where there is none.

    `path` is a checkpoint, a folder of checkpoints (its newest is meant), ``<folder>/best``, or a
    run's workspace.
    """
    if path.name == "best" and not path.exists():
        return _best(path.parent)
    if (path / "checkpoints").is_dir():
        path = path / "checkpoints"
    if (path / "weights").is_dir() and (path / "meta").is_dir():
        return path
    found = _step_folders(path)
    return found[-1] if found else None


def _step_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    parts = ("weights", "meta/metadata")  # a kill while an old one is deleted leaves some
    steps = [
        step
        for step in folder.iterdir()
        if step.name.isdigit() and all((step / part).exists() for part in parts)
    ]
    return sorted(steps, key=lambda p: int(p.name))


def _best(folder: Path) -> Path | None:
    if (folder / "checkpoints").is_dir():
        folder = folder / "checkpoints"
    scored = [(read_meta(step)[_METRIC], step) for step in _step_folders(folder)]
    scored = [(top1, step) for top1, step in scored if top1 is not None]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


def read_meta(checkpoint: Path) -> Meta:
    """The JSON part of one checkpoint folder.

    Raises:
      UserError: it is damaged.
    """
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            meta: Meta = reader.restore((checkpoint / "meta").absolute())
        meta[_METRIC]
    except Exception as error:
        raise UserError(
            f"checkpoint {checkpoint} can't be read ({_first_line(error)}): choose another one"
        ) from error
    return meta


def read_weights(checkpoint: Path) -> Tree:
    """The weights of one checkpoint folder as float32 numpy arrays, with no device involved.

    Returns:
      ``{"params": ..., "batch_stats": ...}``, and ``"ema"`` (the same two) where it was kept.

    Raises:
      UserError: the files are damaged.
    """
    return _read_arrays(checkpoint / "weights")


def read_training(checkpoint: Path) -> Tree:
    """The rest of one checkpoint's `TrainState` as nested dictionaries of numpy arrays."""
    return _read_arrays(checkpoint / "training")


def _read_arrays(folder: Path) -> Tree:
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            metadata = reader.metadata(folder.absolute()).item_metadata
            as_numpy = jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree
            )
            return reader.restore(
                folder.absolute(), args=ocp.args.PyTreeRestore(restore_args=as_numpy)
            )
    except Exception as error:
        raise UserError(
            f"checkpoint {folder.parent} can't be read ({_first_line(error)}): choose another one"
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
