"""Names of classes: every form of the file, comparing, and the two orders of numbers."""

import json
from pathlib import Path
from typing import Any

import pytest

from seresnext_jax.data.class_names import (
    choose_names,
    difference,
    order_warning,
    read_class_names,
)
from seresnext_jax.errors import UserError

NAMES = ("cat", "dog", "a bee")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("names.txt", "cat\ndog\na bee\n"),
        ("names", "\ufeffcat\r\n dog\t\r\na bee\r\n\r\n"),
        ("names.json", json.dumps(NAMES)),
        ("names.txt", json.dumps({"0": "cat", "2": "a bee", "1": "dog"})),
        ("class_to_idx.json", json.dumps({"a bee": 2, "cat": 0, "dog": 1})),
    ],
)
def test_each_form_of_the_file(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text, newline="")
    assert read_class_names(str(tmp_path / file), 3) == NAMES


@pytest.mark.parametrize("index", [{"1": 0, "10": 1}, {"0": "1", "1": "10"}])
def test_names_that_are_numbers(tmp_path: Path, index: Any) -> None:
    (tmp_path / "n.json").write_text(json.dumps(index))
    assert read_class_names(str(tmp_path / "n.json"), 2) == ("1", "10")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("cat\ndog", "has 2 names, but the weights have 3 classes: give one name for each class"),
        ("", "line 1 is empty"),
        ("cat\n\nbee", "line 2 is empty"),
        ('["cat", "dog"', "delimiter"),
        ("[1, 2, 3]", "something other than names"),
        ('{"0": ["n1", "cat"], "1": "b", "2": "c"}', "something other than names"),
        ('{"1": "cat", "2": "dog", "3": "bee"}', "indices are not those from 0 to 2"),
        ('{"cat": 0, "dog": 0, "bee": 1}', "indices are not those from 0 to 2"),
        ('{"cat": "x", "dog": "y", "bee": "z"}', "keys are not indices"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "n").write_text(text)
    with pytest.raises(UserError, match=problem):
        read_class_names(str(tmp_path / "n"), 3)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--class-names .*gone: No such file.*; check the path"):
        read_class_names(str(tmp_path / "gone"), 3)
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match="is not UTF-8 text: save it as UTF-8"):
        read_class_names(str(tmp_path / "latin"), 1)


def test_a_file_may_rename_the_classes_of_weights_but_not_permute_them(tmp_path: Path) -> None:
    file = tmp_path / "n"
    file.write_text("one\ntwo\n")
    assert choose_names("", ("a", "b"), 2) == ("a", "b")
    assert choose_names("", None, 2) is None
    for stored in (None, ("a", "b"), ("one", "two")):
        assert choose_names(str(file), stored, 2) == ("one", "two")
    with pytest.raises(UserError, match="in another order .*: leave --class-names out"):
        choose_names(str(file), ("two", "one"), 2)


def test_differences_name_the_classes() -> None:
    assert difference(("a", "b"), ("a", "b")) == ""
    assert difference(("a", "b"), ("a", "c")) == "only the weights have b, only the data has c"
    assert difference(("a", "b"), ("a",)) == "only the weights have b"
    text = "in the weights their order is 1, 2, 10, in the data 1, 10, 2"
    assert difference(("1", "2", "10"), ("1", "10", "2")) == text


@pytest.mark.parametrize(
    ("folders", "warned"),
    [
        (("1", "10", "2"), True),
        (("class 1", "class 10", "class 9"), True),
        (("1", "2", "3"), False),
        (("01", "02", "10"), False),
        (("ant", "bee", "n01440764"), False),
        ((), False),
    ],
)
def test_string_order_and_numeric_order(folders: tuple[str, ...], warned: bool) -> None:
    warning = order_warning(folders)
    assert bool(warning) == warned
    if warned:
        assert "the string order of the class folders" in warning
