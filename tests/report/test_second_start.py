"""The report's files at the second start of a run: what is kept, replaced, or moved aside."""

from pathlib import Path

import pytest

from seresnext_jax.report.sinks import read_report
from tests.report.report_files import (
    NVIDIA,
    RAPORT,
    STEPS,
    TRAIN,
    VAL,
    assert_complete,
    logs,
    open_report,
    plain,
    run_epoch,
)


def test_a_new_run_keeps_the_files_of_earlier_ones(tmp_path: Path) -> None:
    for run in range(3):
        open_report(tmp_path).epoch(run, TRAIN)
    for run, ending in enumerate((".1", ".2", "")):
        assert read_report(tmp_path / f"{RAPORT}{ending}")[-1]["step"] == [run]
        assert read_report(tmp_path / f"report.jsonl{ending}")[-1]["epoch"] == run


def test_files_moved_aside_share_a_number(tmp_path: Path) -> None:
    (tmp_path / f"{RAPORT}.1").write_text("of a run before this program\n")
    open_report(tmp_path).epoch(0, TRAIN)
    open_report(tmp_path)
    moved = {f"{RAPORT}.1", f"{RAPORT}.2", "report.jsonl.2"}
    assert {p.name for p in tmp_path.iterdir()} == moved | {"report.html"}


@pytest.mark.parametrize("until", [0, 2, 4, 6, 8, 10])
def test_a_resumed_run_reports_each_step_once(tmp_path: Path, until: int) -> None:
    """Whatever was reported after the checkpoint at step `until` is reported again, once."""
    first = open_report(tmp_path)
    for epoch in range(3):
        run_epoch(first, epoch)
    first.summary(TRAIN)
    started, done = divmod(until, STEPS)
    second = open_report(tmp_path, keep_until_step=until)
    for epoch in range(started, 3):
        run_epoch(second, epoch, first=done + 2 if epoch == started else 2)
    assert_complete(tmp_path, 3)


def test_a_resumed_run_keeps_the_evaluation_of_the_epoch_it_follows(tmp_path: Path) -> None:
    report = open_report(tmp_path)
    run_epoch(report, 0)
    run_epoch(report, 1)
    open_report(tmp_path, keep_until_step=STEPS)
    assert_complete(tmp_path, 1)


def test_an_evaluation_made_again_replaces_the_first(tmp_path: Path) -> None:
    """A run killed after an epoch's report, whose checkpoint is of before the evaluation."""
    run_epoch(open_report(tmp_path), 0)
    resumed = open_report(tmp_path, keep_until_step=STEPS)
    resumed.evaluation(0, STEPS, 3, VAL | {"val.top1": 77.0})
    resumed.epoch(0, TRAIN | VAL | {"val.top1": 77.0})
    assert_complete(tmp_path, 1)
    assert [r["metrics"].get("val.top1") for r in plain(tmp_path)] == [None, None, 77.0, 77.0]


def test_an_evaluation_on_its_own_is_kept(tmp_path: Path) -> None:
    """--evaluate at the end of epoch 0 reports iteration 0 of the next."""
    run_epoch(open_report(tmp_path), 0)
    open_report(tmp_path, keep_until_step=STEPS).evaluation(1, 0, 3, VAL)
    open_report(tmp_path, keep_until_step=STEPS)
    assert [r["step"] for r in logs(tmp_path)][-4:] == [[0], [0], [1, 0, 3], [1, 0, 3]]
    assert len(plain(tmp_path)) == 5


def test_the_summary_stays_until_training_continues(tmp_path: Path) -> None:
    first = open_report(tmp_path)
    first.parameters({"seed": 1})
    run_epoch(first, 0)
    first.summary(TRAIN)
    before = len(read_report(tmp_path / RAPORT))
    second = open_report(tmp_path, keep_until_step=STEPS)
    second.parameters({"seed": 1})
    second.evaluation(1, 0, 3, VAL)
    events = [r["event"] for r in plain(tmp_path)]
    second.summary(VAL)
    assert [r["event"] for r in plain(tmp_path)] == events and events.count("summary") == 1
    assert events.count("parameters") == 2  # one for each start
    run_epoch(second, 1)
    assert "summary" not in [r["event"] for r in plain(tmp_path)]
    second.summary(TRAIN)
    assert [r["event"] for r in plain(tmp_path)].count("summary") == 1
    assert len(read_report(tmp_path / RAPORT)) > before


def test_a_resumed_run_describes_no_metric_twice(tmp_path: Path) -> None:
    run_epoch(open_report(tmp_path), 0)
    run_epoch(open_report(tmp_path, keep_until_step=STEPS), 1)
    metrics = [r["metric"] for r in read_report(tmp_path / RAPORT) if r["type"] == "METADATA"]
    assert len(metrics) == len(set(metrics)) == len(TRAIN | VAL)


@pytest.mark.parametrize("name", [RAPORT, "report.jsonl"])
@pytest.mark.parametrize("left", [1, 7, -3, -1])
def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path: Path, name: str, left: int) -> None:
    first = open_report(tmp_path)
    run_epoch(first, 0)
    path = tmp_path / name
    whole = path.read_text()
    first.train(1, 2, TRAIN)
    path.write_text(whole + path.read_text().removeprefix(whole).splitlines()[-1][:left])
    run_epoch(open_report(tmp_path, keep_until_step=STEPS), 1)
    assert_complete(tmp_path, 2)


def test_a_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    run_epoch(open_report(tmp_path), 0)
    for name in (RAPORT, "report.jsonl"):
        path = tmp_path / name
        path.write_text(path.read_text().removesuffix("\n"))
    run_epoch(open_report(tmp_path, keep_until_step=STEPS), 1)
    assert_complete(tmp_path, 2)


def test_a_run_resumed_into_an_empty_folder(tmp_path: Path) -> None:
    open_report(tmp_path / "new", keep_until_step=STEPS).epoch(1, TRAIN)
    assert [r["step"] for r in logs(tmp_path / "new")] == [[1], [1]]


def test_the_originals_file_is_continued(tmp_path: Path) -> None:
    path = tmp_path / RAPORT
    path.write_text(NVIDIA)
    report = open_report(tmp_path, 40)
    assert path.read_text() == NVIDIA  # with its summary, until training goes on
    report.train(1, 20, {"train.loss": 6.2})
    *kept, added = path.read_text().splitlines()
    assert kept == NVIDIA.splitlines()[:-1] and '"step": [1, 20]' in added


def test_a_file_that_lost_its_summary_gets_one(tmp_path: Path) -> None:
    """A run was killed between the two files' summaries."""
    first = open_report(tmp_path)
    run_epoch(first, 0)
    before = (tmp_path / "report.jsonl").read_text()
    first.summary(TRAIN)
    (tmp_path / "report.jsonl").write_text(before)
    whole = (tmp_path / RAPORT).read_text()
    open_report(tmp_path, keep_until_step=STEPS).summary(TRAIN)
    assert (tmp_path / RAPORT).read_text() == whole
    assert plain(tmp_path)[-1]["event"] == "summary"
