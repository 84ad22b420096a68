"""The page of a run, read as a browser's parser reads it."""

import math
import os
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from seresnext_jax.errors import UserError
from seresnext_jax.report.history import read_history
from seresnext_jax.report.html import write_page
from seresnext_jax.report.run_page import best_epoch, data_wait, run_page, show_duration
from tests.programs import done, error_line, run
from tests.report.report_files import NVIDIA, STEPS
from tests.report.runs import add_epoch, open_run, write_run


class Reader(HTMLParser):
    """Checks that elements are closed in order, and collects text and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data}\n" if data.strip() else ""


def test_the_page_shows_the_run(tmp_path: Path) -> None:
    write_run(tmp_path / "first", 10.0, 40.0, 30.0)
    html = run_page(read_history(tmp_path / "first"))
    reader = Reader(html)
    titles = re.findall(r"<figcaption>([^<]+)", html)
    assert titles[:3] == ["loss", "top-1 (%)", "learning rate"]
    assert "train throughput (img/s)" in titles and "train data wait (ms)" in titles
    assert "Constant: loss scale 128, skipped steps 0." in reader.text
    assert "40.00 %\nepoch 2\n" in reader.text  # the best
    assert "30.00 %\nlast epoch\n" in reader.text
    assert "3 of 3 epochs" in reader.text
    for value in ("10.0000", "2.5000", "3.3333"):  # the losses, in the table
        assert f"<td>{value}</td>" in html
    assert "train data wait, epoch 0.5: 10.02\n" in reader.text, "in ms, as the chart's title says"
    assert "device" in reader.text and "jax" in reader.text


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, 10.0, 40.0)
    html = run_page(read_history(tmp_path))
    reader = Reader(html)
    assert not {"script", "img", "link", "iframe"} & set(reader.tags)
    assert not {"src", "href"} & {name for name, _ in reader.attributes}
    assert "url(" not in html and "@import" not in html
    assert "default-src 'none'" in html


def test_the_page_is_written_after_each_epoch(tmp_path: Path) -> None:
    report = open_run(tmp_path)
    page = tmp_path / "report.html"
    report.train(0, 2, {"train.loss": 1.0})
    assert not page.exists()
    for epoch in range(2):
        add_epoch(report, epoch, 1.0, 50.0 + epoch)
        assert f"{epoch + 1} of 3 epochs so far" in page.read_text()
    report.summary({"best.top1": 51.0})
    assert "2 of 3 epochs" in page.read_text() and "so far" not in page.read_text()
    assert not list(page.parent.glob("*.tmp"))


def test_a_page_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UserError, match="report.html can't be written"):
        write_page(tmp_path / "report.html", "")


def test_names_that_are_not_utf_8_or_not_one_line(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9\n")
    command = os.fsdecode(b"train.py \xe9")
    write_run(folder, 0.5, init_from=os.fsdecode(b"\xe9.pth"), command=command, seed="1\n2")
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert r"<h1>caf\udce9\n</h1>" in html and r"<code>train.py \udce9</code>" in html
    assert r"<td>\udce9.pth</td>" in html and r"<td>1\n2</td>" in html


def test_names_are_escaped(tmp_path: Path) -> None:
    write_run(tmp_path / "a<script>b", 10.0, 20.0, init_from="<script>")
    assert "script" not in Reader(run_page(read_history(tmp_path / "a<script>b"))).tags


def test_the_deviations_are_a_table(tmp_path: Path) -> None:
    changed = {"batch_size": {"recipe": 128, "run": 64}, "optim.lr": {"recipe": None, "run": 0.5}}
    write_run(tmp_path / "a", 10.0, deviations=changed)
    html = run_page(read_history(tmp_path / "a"))
    assert "Trained as in <code>configs/a.py</code>, except for:" in html
    assert '<th scope="row">batch_size</th><td>128</td><td>64</td>' in html
    assert '<th scope="row">optim.lr</th><td>none</td><td>0.5</td>' in html
    write_run(tmp_path / "b", 10.0)
    html = run_page(read_history(tmp_path / "b"))
    assert "Trained as in <code>configs/a.py</code>: no option" in html


def test_the_starts_of_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1e9)  # both starts may end within a millisecond
    add_epoch(open_run(tmp_path), 0, 2.0, 50.0)
    add_epoch(open_run(tmp_path, resumed_at=STEPS, epochs=5), 1, 1.0, 60.0)
    text = Reader(run_page(read_history(tmp_path))).text
    assert "epochs: 3 → 5" in text and "2 starts" in text


def test_the_best_epoch_is_the_first_with_the_best_accuracy(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    add_epoch(run, 0, 7.0, 0.0)
    assert best_epoch(read_history(tmp_path)) == (0.0, 1.0)
    for epoch, top1 in ((1, 50.0), (2, 50.0), (3, 40.0)):
        add_epoch(run, epoch, 2.0, top1)
    assert best_epoch(read_history(tmp_path)) == (50.0, 2.0)


@pytest.mark.parametrize(
    ("times", "share"),
    [((0.1, 0.3), 25.0), ((0.0, 0.3), 0.0), ((0.0, 0.0), None), ((math.nan, 0.3), None)],
)
def test_the_share_of_the_time_that_was_a_wait_for_data(
    times: tuple[float, float], share: float | None, tmp_path: Path
) -> None:
    names = ("train.data_time", "train.compute_time")
    open_run(tmp_path).epoch(0, dict(zip(names, times, strict=True)))
    assert data_wait(read_history(tmp_path)) == (None if share is None else pytest.approx(share))


def test_the_page_has_the_batch_of_the_plan(tmp_path: Path) -> None:
    open_run(tmp_path)
    (tmp_path / "plan.json").write_text('{"global_batch": 64, "num_devices": 2}')
    text = Reader(run_page(read_history(tmp_path))).text
    assert "64 images per step on 2 device(s)" in text


def test_a_run_before_its_first_epoch(tmp_path: Path) -> None:
    open_run(tmp_path)
    text = Reader(run_page(read_history(tmp_path))).text
    assert "0 of 3 epochs so far" in text and "Nothing was reported yet." in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(5.4, "5 s"), (65, "1 min 05 s"), (3600 * 5 + 12 * 60, "5 h 12 min")]
)
def test_a_duration_is_shown_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert show_duration(seconds) == text


def test_the_command_makes_pages_of_any_report(tmp_path: Path) -> None:
    (tmp_path / "raport.json").write_text(NVIDIA)
    (tmp_path / "out").mkdir()
    show = ["-m", "seresnext_jax.show", str(tmp_path / "raport.json")]
    out = done([*show, "--out", str(tmp_path / "out")]).stdout
    assert str(tmp_path / "out" / "report.html") in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("report.html", "report.png", "loss_plot.png", "top1_plot.png")
    }
    line = error_line(run([*show, "--out", str(tmp_path / "new")]))
    assert "the folder does not exist; make it first" in line
    (tmp_path / "new").mkdir()
    done([*show, "--out", str(tmp_path / "new")])
    assert "give a workspace" in error_line(run(show[:2]))
