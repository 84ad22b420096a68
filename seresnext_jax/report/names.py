"""The names of the files that a run writes into its workspace."""

from pathlib import Path

from seresnext_jax.errors import UserError

JSONL_NAME, PLOT_NAME, HTML_NAME = "report.jsonl", "report.png", "report.html"
PLAN_NAME = "plan.json"
LOG_NAME, LOCK_NAME = "log.txt", "lock"
TENSORBOARD_NAME, WANDB_NAME = "tensorboard", "wandb"
OWN_NAMES = (
    *(JSONL_NAME, PLOT_NAME, HTML_NAME, LOG_NAME, LOCK_NAME),
    *("config.json", PLAN_NAME, "checkpoints", TENSORBOARD_NAME, WANDB_NAME),
)
"""Files and folders that a run writes into its workspace besides the DLLogger file."""


def dllogger_path(workspace: Path, raport_file: str) -> Path:
    """The path of the DLLogger file.

    Raises:
      UserError: `raport_file` is a folder or another file of the run.
    """
    path = workspace / raport_file
    if path == workspace or path.is_dir():  # a new run would rename the entire folder
        raise UserError(f"--raport-file {raport_file!r} is a folder: give a file's name")
    if path in [workspace / name for name in OWN_NAMES]:
        raise UserError(f"--raport-file {raport_file} is taken by the run: choose another name")
    return path
