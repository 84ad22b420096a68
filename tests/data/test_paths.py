"""Many paths in one array: what comes out is what was put in."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seresnext_jax.data.paths import Paths

names = st.binary(max_size=12).map(lambda data: os.fsdecode(data.replace(b"\0", b"")))


@given(st.lists(names, max_size=8), st.lists(names, max_size=8))
def test_any_names_come_back(one: list[str], other: list[str]) -> None:
    assert list(Paths.pack(one)) == one
    assert list(Paths.pack(one, "x/")) == [f"x/{name}" for name in one]
    both = Paths.join([Paths.pack(one), Paths.pack(other)])
    assert list(both) == one + other and len(both) == len(one + other)
    assert both[2:5] == (one + other)[2:5]
    assert [both[-i - 1] for i in range(len(both))] == (one + other)[::-1]
    with pytest.raises(IndexError):
        both[len(both)]


@given(st.lists(names, min_size=1, max_size=8), names, st.data())
def test_rows_are_the_strings_filled_with_zeros(
    strings: list[str], prefix: str, data: st.DataObject
) -> None:
    index = data.draw(st.lists(st.integers(0, len(strings) - 1), min_size=1, max_size=9))
    rows = Paths.pack(strings).rows(np.array(index), prefix)
    found = [row.tobytes().rstrip(b"\0") for row in rows]
    assert found == [os.fsencode(prefix) + os.fsencode(strings[i]) for i in index]
    assert not rows[:, -1].any(), "a zero ends the longest, too"
