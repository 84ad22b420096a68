"""The written digits: every scan once, split by class, readable as a dataset."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from seresnext_jax.data.digits import main, write_digits
from tests.data.loaders import list_images


def test_digits_are_written_once_and_split_by_class(tmp_path: Path) -> None:
    write_digits(tmp_path)
    train, val = list_images(tmp_path / "train"), list_images(tmp_path / "val")
    assert train.class_names == val.class_names == tuple("0123456789")
    target = load_digits().target
    counts = np.bincount(target)
    assert np.array_equal(np.bincount(train.labels) + np.bincount(val.labels), counts)
    assert np.all(np.abs(np.bincount(val.labels) - 0.2 * counts) <= 0.5)
    for files in (train, val):
        for path, label in zip(files.paths, files.labels, strict=True):
            assert target[int(Path(path).stem)] == label
    assert not {Path(p).stem for p in train.paths} & {Path(p).stem for p in val.paths}


def test_a_file_shows_its_scan_and_writing_again_changes_nothing(tmp_path: Path) -> None:
    write_digits(tmp_path)
    files = {p: p.read_bytes() for p in sorted(tmp_path.rglob("*.jpg"))}
    path = next(iter(files))
    image = Image.open(path)
    assert image.size == (32, 32)
    small = np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BOX), float)
    scan = load_digits().images[int(path.stem)]
    assert np.corrcoef(small.ravel(), scan.ravel())[0, 1] > 0.98
    write_digits(tmp_path)
    assert {p: p.read_bytes() for p in sorted(tmp_path.rglob("*.jpg"))} == files


def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What the command says before it ends with a status other than 0."""
    monkeypatch.setattr(sys, "argv", ["digits.py", *argv])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_the_command_explains_a_wrong_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "required: folder" in told(monkeypatch, capsys)
    assert "unrecognized arguments: --out" in told(monkeypatch, capsys, "--out", "x")
    (tmp_path / "file").touch()
    assert "name another folder" in told(monkeypatch, capsys, "file")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert "pip install scikit-learn" in told(monkeypatch, capsys, "data")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]
