"""TensorBoard's files read back, and Weights & Biases by a stand-in for its package."""

import struct
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from seresnext_jax.cli import parse_config
from seresnext_jax.errors import UserError
from seresnext_jax.report import trackers
from seresnext_jax.report.report import Report
from seresnext_jax.report.sinks import read_report
from seresnext_jax.report.trackers import check_trackers
from tests.report import report_files
from tests.report.report_files import STEPS
from tests.report.runs import OPTIONS, add_epoch


def open_report(folder: Path, *names: str, resumed_at: int | None = None) -> Report:
    return report_files.open_report(folder, resumed_at, trackers=names)


def events(folder: Path) -> list[Event]:
    """The events of every file: length (8 bytes), checksum (4), the event, checksum (4)."""
    found = []
    for path in sorted(folder.glob("events.*"), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[12 + length + 4 :]
    return found


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """The value of each tag and step; no tag has two at one step."""
    values = [(v.tag, e.step, v.simple_value) for e in events(folder) for v in e.summary.value]
    found = {(tag, step): value for tag, step, value in values if "options" not in tag}
    assert len(found) == len([tag for tag, _, _ in values if "options" not in tag])
    return found


# ---- TensorBoard -------------------------------------------------------------------------------


def test_tensorboard_gets_each_metric_at_its_step(tmp_path: Path) -> None:
    report = open_report(tmp_path, "tensorboard")
    report.parameters(OPTIONS)
    add_epoch(report, 0, 2.0, 50.0)
    add_epoch(report, 1, 1.0, 60.0)
    report.summary({"best.top1": 60.0})
    found = scalars(tmp_path / "tensorboard")
    assert [step for tag, step in found if tag == "train/loss"] == [2, 4, 6, 8]
    assert found["train/loss", 6] == pytest.approx(1.02)
    assert (found["val/top1", 4], found["val/top1", 8]) == (50.0, 60.0)
    assert (found["train_epoch/loss", 4], found["train_epoch/loss", 8]) == (2.0, 1.0)
    assert not [tag for tag, _ in found if "top5" in tag]  # it was not finite
    texts = [v.tensor.string_val for e in events(tmp_path / "tensorboard") for v in e.summary.value]
    assert any(b'"model.arch": "resnet18"' in text[0] for text in texts if text)


def test_tensorboard_ignores_steps_that_a_resumed_run_repeats(tmp_path: Path) -> None:
    add_epoch(open_report(tmp_path, "tensorboard"), 0, 2.0, 50.0)
    add_epoch(open_report(tmp_path, "tensorboard", resumed_at=2), 0, 2.0, 50.0)
    (start,) = [e for e in events(tmp_path / "tensorboard") if e.HasField("session_log")]
    assert (start.session_log.status, start.step) == (SessionLog.START, 3)


def test_tensorboard_takes_an_evaluation_that_keeps_every_step(tmp_path: Path) -> None:
    report = open_report(tmp_path, "tensorboard", resumed_at=sys.maxsize)
    report.evaluation(1, 0, 3, {"val.top1": 50.0})
    assert scalars(tmp_path / "tensorboard") == {("val/top1", STEPS): 50.0}


def test_a_full_disk_ends_the_event_files_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    report = report_files.open_report(tmp_path, trackers=["tensorboard"], warn=warnings.append)
    (file,) = (tmp_path / "tensorboard").iterdir()

    def full(data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tensorboardX.record_writer.RecordWriter.write", lambda self, x: full(x))
    for epoch in range(9):  # more records than any queue takes
        add_epoch(report, epoch, 2.0, 50.0)
    (warning,) = warnings
    assert warning.startswith("tensorboard is no longer updated") and "No space left" in warning
    assert file.exists() and len(read_report(report.jsonl_path)) == 4 * 9


def test_a_new_run_moves_the_event_files_of_an_earlier_one_aside(tmp_path: Path) -> None:
    add_epoch(open_report(tmp_path, "tensorboard"), 0, 2.0, 50.0)
    add_epoch(open_report(tmp_path, "tensorboard"), 0, 1.0, 55.0)
    assert scalars(tmp_path / "tensorboard.1")["val/top1", 4] == 50.0
    assert scalars(tmp_path / "tensorboard")["val/top1", 4] == 55.0


# ---- Weights & Biases --------------------------------------------------------------------------


class WandBStandIn(ModuleType):
    """Records what the package would be told; without `online`, only offline mode works."""

    class errors:  # noqa: N801
        class Error(Exception):
            pass

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.started: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}

    def Settings(self, **settings: str) -> dict[str, str]:  # noqa: N802
        return settings

    def init(self, **options: Any) -> Any:
        import os

        if os.environ.get("WANDB_MODE") != "offline":
            raise self.errors.Error("No API key configured. Use `wandb login` to log in.")
        self.started.append(options)
        config, logged = self.config, self.logged

        class Config:
            def update(self, values: dict[str, Any], *, allow_val_change: bool) -> None:
                assert allow_val_change
                config.update(values)

        class Run:
            def __init__(self, summary: dict[str, Any]) -> None:
                self.summary, self.config = summary, Config()

            def log(self, values: dict[str, float], *, step: int) -> None:
                logged.append((step, values))

        return Run(self.summary)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> WandBStandIn:
    """The stand-in, in offline mode."""
    module = WandBStandIn()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return module


def test_wandb_gets_options_metrics_and_summary(tmp_path: Path, wandb: WandBStandIn) -> None:
    report = open_report(tmp_path / "run", "wandb")
    report.parameters(OPTIONS)
    add_epoch(report, 0, 2.0, 50.0)
    report.summary({"best.top1": 50.0})
    (started,) = wandb.started
    assert (started["project"], started["name"]) == ("seresnext_jax", "run")
    assert started["dir"] == str(tmp_path / "run")
    assert wandb.config == OPTIONS and wandb.summary == {"best.top1": 50.0}
    steps = [step for step, _ in wandb.logged]
    assert steps == [2, 4, 4, 4]
    assert wandb.logged[0][1]["train/loss"] == 2.02
    assert wandb.logged[2][1] == {"val/loss": 2.5, "val/top1": 50.0}
    assert wandb.logged[3][1]["train_epoch/loss"] == 2.0


def test_a_resumed_run_continues_its_run_of_wandb(
    tmp_path: Path, wandb: WandBStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_report(tmp_path, "wandb")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    open_report(tmp_path, "wandb", resumed_at=STEPS)
    open_report(tmp_path, "wandb")
    first, second, other = (options["id"] for options in wandb.started)
    assert first == second != other
    assert wandb.started[1]["project"] == "mine" and wandb.started[1]["resume"] == "allow"


def test_a_run_that_begins_with_wandb_later_gets_a_run_of_its_own(
    tmp_path: Path, wandb: WandBStandIn
) -> None:
    open_report(tmp_path, "wandb", resumed_at=STEPS)
    (started,) = wandb.started
    assert started["id"] == (tmp_path / "wandb/run-id").read_text()


def test_wandb_without_an_account(
    tmp_path: Path, wandb: WandBStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    with pytest.raises(UserError, match="No API key .* set WANDB_MODE=offline"):
        open_report(tmp_path, "wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    open_report(tmp_path, "wandb")
    assert len(wandb.started) == 1


# ---- the option --------------------------------------------------------------------------------


def test_the_option_takes_several_names() -> None:
    words = ["--report-to", "tensorboard", "wandb"]
    config = parse_config(words, program="train.py", description="")
    assert config.report_to == ("tensorboard", "wandb")


def test_an_unknown_tracker() -> None:
    with pytest.raises(UserError, match="unknown: choose from tensorboard, wandb"):
        check_trackers(["tensorboard", "mlflow"])
    check_trackers(["tensorboard"])


def test_a_tracker_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package tensorboardX: pip install tensorboardX"):
        check_trackers(["tensorboard"])
    monkeypatch.undo()
    check_trackers(["tensorboard"])  # the package of that name is installed for the tests
