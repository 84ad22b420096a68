"""What a run may start from: options and classes that fit a checkpoint, weights worth freezing."""

import json
from pathlib import Path

import pytest

from seresnext_jax.config import Config
from seresnext_jax.errors import UserError
from seresnext_jax.report.console import Console
from seresnext_jax.run.start import Start, check_class_names, find_start
from tests.checkpoint.metas import make_meta
from tests.command_line import read

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


# ---- options -----------------------------------------------------------------------------------


def save_options(run: Path, step: int, config: Config) -> Path:
    """A checkpoint without arrays."""
    folder = run / "checkpoints" / str(step)
    for part in ("weights", "meta"):
        (folder / part).mkdir(parents=True)
    meta = make_meta(step=step, config=config)
    (folder / "meta/metadata").write_text(json.dumps(meta.to_json()))
    return folder


@pytest.mark.parametrize("resume", ["auto", "{run}/checkpoints/6"])
@pytest.mark.parametrize(
    ("saved", "given", "said"),
    [
        (
            Config(),
            "--optim.optimizer adamw --optim.lr 0.001 --optim.weight-decay 0.05",
            "--optim.optimizer sgd, not adamw",
        ),
        (Config(), "--use-ema 0.9", "--use-ema None, not 0.9"),
        (Config(use_ema=0.9), "", "--use-ema 0.9, not None"),
        (
            Config(),
            "--model.arch resnet50 --use-ema 0.9",
            "--model.arch se-resnext101-32x4d --use-ema None, not resnet50, 0.9",
        ),
    ],
)
def test_an_option_that_gives_other_arrays_is_named_with_two_ways_on(
    saved: Config, given: str, said: str, resume: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    save_options(run, 6, saved)
    words = [*given.split(), "--workspace", str(run), "--resume", resume.format(run=run)]
    with pytest.raises(UserError) as error:
        find_start(read(*words))
    line = str(error.value)
    assert f"is of a run with {said}: " in line
    fix = line.partition("to continue that run, give ")[2].partition(";")[0].split()
    continued = read(*words, *fix)
    assert find_start(continued) != Start() and continued.optim == saved.optim
    source = line.partition("--init-from ")[2].partition(" ")[0]
    new = [*given.split(), "--init-from", source, "--workspace", str(tmp_path / "new")]
    assert find_start(read(*new)) == Start(weights=Path(source))


def test_the_options_of_a_checkpoint_before_a_broken_one_count(tmp_path: Path) -> None:
    save_options(tmp_path, 6, Config())
    broken = save_options(tmp_path, 7, Config(use_ema=0.5))
    (broken / "meta/metadata").write_text("{")
    config = Config(workspace=str(tmp_path), resume="auto")
    assert find_start(config) == Start(newest_in=tmp_path / "checkpoints")


def test_random_weights_are_not_frozen(tmp_path: Path) -> None:
    words = ["--optim.freeze-backbone", "--workspace", str(tmp_path / "run")]
    with pytest.raises(UserError, match="--optim.freeze-backbone would keep random weights"):
        find_start(read(*words))
    weights = save_options(tmp_path, 6, Config())
    assert find_start(read(*words, "--init-from", str(weights))) == Start(weights=weights)
    assert find_start(read(*words, "--evaluate")) == Start()
