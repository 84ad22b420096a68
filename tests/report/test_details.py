"""The tables of an evaluation in detail, against scikit-learn, and their files."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix

from seresnext_jax.errors import UserError
from seresnext_jax.report.contact_sheet import COLUMNS, Cell, write_contact_sheet
from seresnext_jax.report.details import Details, detail_rows, explain
from seresnext_jax.report.details_files import make_details_folder, write_details, write_table
from seresnext_jax.report.paired import (
    compare_paired,
    comparison_rows,
    difference_rows,
    in_common,
)
from seresnext_jax.report.predictions import Predictions

NAMES = ("ant", "bee", "crane", "crane", "größe")
"""Two classes of one name, as in ImageNet."""
PATHS = tuple(f"x/{i}.png" for i in range(300))


def predictions(seed: int = 0, images: int = 300) -> Predictions:
    """Of a network that is often right; image 7 was left out, and the last class has no images."""
    random = np.random.default_rng(seed)
    labels = np.random.default_rng(0).integers(0, len(NAMES) - 1, images).astype(np.int32)
    logits = random.normal(size=(images, len(NAMES)))
    logits[np.arange(images), labels] += 1.5
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    order = np.argsort(-probabilities, axis=1)
    everything = Predictions(
        index=np.arange(images),
        labels=labels,
        rank=np.argmax(order == labels[:, None], axis=1),
        label_probability=probabilities[np.arange(images), labels],
        classes=order[:, :3],
        probabilities=np.take_along_axis(probabilities, order[:, :3], axis=1),
    )
    without = everything.index != 7
    return Predictions(**{name: array[without] for name, array in vars(everything).items()})


@pytest.fixture
def details() -> Details:
    return explain(predictions(), NAMES, PATHS)


def test_accuracy_and_classes_are_those_of_scikit_learn(details: Details) -> None:
    found = predictions()
    predicted = found.classes[:, 0]
    matrix = confusion_matrix(found.labels, predicted, labels=range(len(NAMES)))
    assert details.summary["top1"] == pytest.approx(100 * accuracy_score(found.labels, predicted))
    assert details.summary["images"] == 299
    filled = [row for row in details.calibration if row["images"]]
    right = sum(row["images"] * row["accuracy"] for row in filled)
    assert right == pytest.approx(299 * details.summary["top1"], rel=1e-6)
    by_class = {row["class"]: row for row in details.classes}
    for label, name in enumerate(NAMES):
        row = by_class[label]
        assert row["name"] == name
        assert (row["images"], row["right"]) == (matrix[label].sum(), matrix[label, label])
        assert row["predicted"] == matrix[:, label].sum()
    accuracies = [row["accuracy"] for row in details.classes[:-1]]
    assert accuracies == sorted(accuracies)
    assert details.classes[-1] | {"predicted": 0} == {
        **{"class": 4, "name": "größe", "images": 0, "right": 0, "predicted": 0},
        "accuracy": None,
    }


def test_confused_pairs_are_those_of_scikit_learn(details: Details) -> None:
    found = predictions()
    matrix = confusion_matrix(found.labels, found.classes[:, 0], labels=range(len(NAMES)))
    np.fill_diagonal(matrix, 0)
    rebuilt = np.zeros_like(matrix)
    for row in details.confusions:
        rebuilt[row["label"], row["predicted"]] = row["images"]
    np.testing.assert_array_equal(rebuilt, matrix)
    counts = [row["images"] for row in details.confusions]
    assert counts == sorted(counts, reverse=True)


def test_every_wrong_image_is_listed_with_its_probabilities(details: Details) -> None:
    found = predictions()
    wrong = {PATHS[i] for i in found.index[found.labels != found.classes[:, 0]]}
    assert {row["image"] for row in details.mistakes} == wrong
    assert PATHS[7] not in wrong
    probabilities = [row["label_probability"] for row in details.mistakes]
    assert probabilities == sorted(probabilities)
    worst = details.mistakes[0]
    row = int(np.flatnonzero(found.index == PATHS.index(worst["image"]))[0])
    assert worst["label"] == found.labels[row]
    assert [c["index"] for c in worst["classes"]] == found.classes[row].tolist()
    assert worst["classes"][0]["probability"] == pytest.approx(
        found.probabilities[row, 0], abs=1e-6
    )
    assert worst["classes"][0]["name"] == NAMES[found.classes[row, 0]]


def test_the_console_shows_the_worst_classes_and_pairs(details: Details) -> None:
    rows = detail_rows(details)
    summary = details.summary
    low, high = f"{summary['top1_low']:.2f}", f"{summary['top1_high']:.2f}"
    assert rows[0][1] == f"{summary['top1']:.2f} % ({low} to {high} %)"
    assert rows[2][0] == f"class {details.classes[0]['name']}"
    assert rows[-5][0].count(" → ") == 1


def test_the_files_have_the_tables(details: Details, tmp_path: Path) -> None:
    write_details(tmp_path, details, {"weights": "w"})
    stored: dict[str, Any] = json.loads((tmp_path / "details.json").read_text())
    assert stored["weights"] == "w" and stored["top1"] == details.summary["top1"]
    assert stored["mistakes"] == details.mistakes
    for name in ("calibration", "classes", "confusions", "mistakes"):
        with (tmp_path / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(stored[name]), name
    assert rows[0]["image"] == details.mistakes[0]["image"]
    assert rows[0]["name_1"] == details.mistakes[0]["classes"][0]["name"]
    assert float(rows[0]["probability_3"]) == details.mistakes[0]["classes"][2]["probability"]


def test_a_table_without_rows_has_the_columns_of_one_with_rows(
    details: Details, tmp_path: Path
) -> None:
    differences = difference_rows(*in_common(predictions(0), predictions(1)), NAMES, PATHS)
    tables = {"confusions": details.confusions, "differences": differences}
    for name, rows in (tables | {"mistakes": details.mistakes}).items():
        write_table(tmp_path, name, [])
        with (tmp_path / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            (header,) = csv.reader(file)
        assert header == [column for column in rows[0] if column != "classes"]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_spreadsheet_takes_no_text_for_a_formula(tmp_path: Path, start: str) -> None:
    write_table(tmp_path, "a", [{"name": f"{start}1", "images": -1}])
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == [{"name": f"'{start}1", "images": "-1"}]


def test_names_keep_their_commas_quotes_and_lines_and_are_no_formulas(tmp_path: Path) -> None:
    names = ("a,b", 'say "x"', "two\nlines", "=1+1", "@sum(a)")
    write_details(tmp_path, explain(predictions(), names, PATHS), {})
    with (tmp_path / "classes.csv").open(encoding="utf-8", newline="") as file:
        found = {int(row["class"]): row["name"] for row in csv.DictReader(file)}
    assert [found[label] for label in range(5)] == [*names[:3], "'=1+1", "'@sum(a)"]
    exact = json.loads((tmp_path / "details.json").read_text())["classes"]
    assert {row["name"] for row in exact} == set(names)


def test_a_network_without_mistakes_and_one_that_computes_nan(tmp_path: Path) -> None:
    one = predictions(images=1)
    right = Predictions(**{**vars(one), "rank": np.zeros(1, int), "classes": one.labels[:, None]})
    found = explain(right, NAMES, ())
    assert (found.summary["top1"], found.mistakes, found.confusions) == (100.0, [], [])
    assert len(detail_rows(found)) == 2, "no class is bad"
    write_details(tmp_path, found, {})
    nan = np.full((1, 3), np.nan)
    broken = Predictions(
        **{**vars(one), "rank": np.array([4]), "probabilities": nan, "label_probability": nan[:, 0]}
    )
    found = explain(broken, NAMES, ())
    assert found.summary["calibration_error"] is None
    assert found.mistakes[0]["label_probability"] is None
    assert found.mistakes[0]["image"] == "image 0"
    write_details(tmp_path, found, {})
    json.loads((tmp_path / "details.json").read_text(), parse_constant=pytest.fail)


def test_a_folder_with_files_is_refused_and_a_new_one_taken(tmp_path: Path) -> None:
    make_details_folder(tmp_path / "a/b")
    make_details_folder(tmp_path / "a/b")  # still empty
    (tmp_path / "a/b/details.json").write_text("{}")
    with pytest.raises(UserError, match="has files in it: give a new folder"):
        make_details_folder(tmp_path / "a/b")
    make_details_folder(tmp_path / "a/new")
    with pytest.raises(UserError, match=r"can't be written \(Not a directory\)"):
        make_details_folder(tmp_path / "a/b/details.json/c")


def test_the_worst_mistake_has_the_least_probable_label_or_nan() -> None:
    shown = np.array([0.2, 0.1, np.nan, 0.3])
    some = predictions(images=4)
    found = replace(some, label_probability=shown, rank=np.array([1, 1, 1, 0]))
    assert found.worst().tolist() == [2, 1, 0]


# ---- two networks --------------------------------------------------------------------------------


def test_two_networks_are_compared_on_the_images_of_both() -> None:
    first, second = predictions(0), predictions(1)
    kept = second.index != 12
    second = Predictions(**{name: array[kept] for name, array in vars(second).items()})
    a, b = in_common(first, second)
    assert a.index.tolist() == b.index.tolist() == [i for i in range(300) if i not in (7, 12)]
    test = compare_paired(a.right, b.right)
    table = confusion_matrix(a.right, b.right, labels=[True, False])
    assert list(test[:4]) == table.ravel().tolist()
    rows = difference_rows(a, b, NAMES, PATHS)
    assert len(rows) == test.only_first + test.only_second
    assert sum(row["right"] == "weights" for row in rows) == test.only_first
    row = int(np.flatnonzero(a.index == PATHS.index(rows[0]["image"]))[0])
    assert rows[0]["weights_probability"] == pytest.approx(a.label_probability[row], abs=1e-6)
    assert rows[0]["against_probability"] == pytest.approx(b.label_probability[row], abs=1e-6)


@pytest.mark.parametrize(("only_second", "verdict"), [(1, "+0.50 points"), (10, "+5.00 points")])
def test_the_verdict_names_chance_or_not(only_second: int, verdict: str) -> None:
    first = np.arange(200) < 100
    second = np.arange(200) < 100 + only_second
    rows = dict(comparison_rows(compare_paired(first, second)))
    assert rows["top-1 of --against"] == verdict
    chance = "may be chance" if only_second == 1 else "is unlikely to be chance"
    assert chance in rows["McNemar's exact test"]


def test_without_common_images_two_networks_are_equal() -> None:
    nothing = np.zeros(0, bool)
    rows = dict(comparison_rows(compare_paired(nothing, nothing)))
    assert (rows["images"], rows["top-1 of --against"]) == ("0", "+0.00 points")


# ---- contact sheet -------------------------------------------------------------------------------


def test_the_sheet_shows_the_images_row_by_row(tmp_path: Path) -> None:
    colours = [(i * 20, 100, 200) for i in range(COLUMNS + 1)]
    cells = [
        Cell(np.full((32, 32, 3), colour, np.uint8), "a" * 99 + " 1 %", "größe 99 %", "val/é.png")
        for colour in colours
    ]
    write_contact_sheet(tmp_path / "sheet.png", cells)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.ndim == 3
    assert {tuple(colour) for colour in pixels.reshape(-1, 3)} >= set(colours)
    width = pixels.shape[1] // COLUMNS
    for column, colour in enumerate(colours[:COLUMNS]):
        assert tuple(pixels[100, column * width + 100]) == colour
    margin = pixels[:, -4:]
    assert (margin == 255).all(), "long names are cut, so nothing is drawn outside its cell"


def sheet_of(folder: Path, *names: str) -> np.ndarray:
    """The sheet of black images with these names."""
    cells = [Cell(np.zeros((8, 8, 3), np.uint8), "a", "b", name) for name in names]
    write_contact_sheet(folder / "sheet.png", cells)
    with Image.open(folder / "sheet.png") as sheet:
        return np.asarray(sheet)


def test_a_sheet_is_as_large_as_its_images_need(tmp_path: Path) -> None:
    one, row, more = (sheet_of(tmp_path, *n * "x").shape for n in (1, COLUMNS, COLUMNS + 1))
    assert one[0] == row[0] < more[0] and one[1] < row[1] == more[1]


def test_a_long_name_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    for one, other in (("1" + 99 * "a", "2" + 99 * "a"), (99 * "a" + "1", 99 * "a" + "2")):
        assert not np.array_equal(sheet_of(tmp_path, one), sheet_of(tmp_path, other))


def test_a_sheet_that_cannot_be_written_is_an_error_of_the_user(tmp_path: Path) -> None:
    cell = Cell(np.zeros((8, 8, 3), np.uint8), "a", "b", "c")
    with pytest.raises(UserError, match="absent/x.png can't be written"):
        write_contact_sheet(tmp_path / "absent/x.png", [cell])
