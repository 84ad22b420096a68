"""The labels of a run that continues: the classes of the data are those of the checkpoint."""

from pathlib import Path

import pytest

from seresnext_jax.config import Config
from seresnext_jax.errors import UserError
from seresnext_jax.report.console import Console
from seresnext_jax.run.start import Start, check_class_names

CHECKPOINT = Path("runs/a/checkpoints/6")
NAMED, NEWEST = Start(checkpoint=CHECKPOINT), Start(newest_in=CHECKPOINT.parent)


def check(
    saved: tuple[str, ...] | None,
    data: tuple[str, ...],
    start: Start = NAMED,
    *,
    evaluate: bool = False,
) -> None:
    check_class_names(Config(evaluate=evaluate), start, saved, data, Console(enabled=True))


@pytest.mark.parametrize("start", [NAMED, NEWEST])
def test_other_names_are_refused(start: Start) -> None:
    with pytest.raises(UserError) as error:
        check(("a", "b"), ("a", "c"), start)
    source = start.checkpoint or start.newest_in
    assert "(only the weights have b, only the data has c)" in str(error.value)
    assert f"--init-from {source} and another --workspace" in str(error.value)
    with pytest.raises(UserError, match=f"python eval.py --weights {source} --class-names FILE"):
        check(("a", "b"), ("a", "c"), start, evaluate=True)


def test_the_same_names_in_another_order_are_refused() -> None:
    with pytest.raises(UserError, match="their order is 1, 2, 10, in the data 1, 10, 2"):
        check(("1", "2", "10"), ("1", "10", "2"))


def test_equal_or_unknown_names_are_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    check(("1", "10", "2"), ("1", "10", "2"))
    check(("a", "b"), ())  # synthetic images
    check(None, ("a", "b"))
    check((), ())
    assert not capsys.readouterr().err


def test_numbers_and_a_checkpoint_without_names(capsys: pytest.CaptureFixture[str]) -> None:
    check(None, ("1", "10", "2"))
    assert "labels follow the string order" in capsys.readouterr().err
