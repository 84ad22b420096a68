"""The programs in examples/, run as their docstrings say."""

import runpy
import shlex
import sys
from pathlib import Path

import pytest

from seresnext_jax import create_model, load_weights, preprocess
from tests import one_block
from tests.programs import shared

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def random_weights(architecture: str, folder: Path) -> Path:
    """A random network for the digits."""
    one_block.get_config()  # adds its network to the table
    create_model(architecture, 10, image_size=32, eval_margin=0).save(folder)
    return folder


def run(name: str, *words: object) -> None:
    """Run an example in this process."""
    path = str(ROOT / "examples" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [path, *map(str, words)])
        runpy.run_path(path, run_name="__main__")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_says_how_to_run_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("    python ")]
    words = shlex.split(line)
    assert words[1] == f"examples/{path.name}"
    main = runpy.run_path(str(path))["main"]
    assert [word.lower() for word in words[2:]] == [n for n in main.__annotations__][:-1]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
@pytest.mark.parametrize("words", [(), ("--help",)])
def test_a_wrong_command_line_is_answered_with_the_right_one(
    path: Path, words: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit, match=f"    python examples/{path.name} WEIGHTS"):
        run(path.name, *words)


def test_features_for_detection(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = random_weights("se-resnext-tiny", tmp_path / "weights")
    image = next((shared() / "digits/val/3").glob("*.jpg"))
    run("detection_features.py", weights, image)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert "stride  8  stage (1, 4, 4, 128)  level (1, 4, 4, 256)" in first
    assert "stride 32  stage (1, 1, 1, 512)  level (1, 1, 1, 256)" in last


def test_an_image_is_most_similar_to_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = random_weights("one-block", tmp_path / "weights")
    folder = shared() / "digits/val/3"
    image = sorted(folder.glob("*.jpg"))[7]
    run("image_search.py", weights, folder, image)
    first, *others = capsys.readouterr().out.splitlines()
    assert first == f"1.000  {image}"
    assert len(others) == 4


def test_the_training_loop_learns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The digits, after 60 steps from random weights; chance would be 10 %."""
    weights = random_weights("one-block", tmp_path / "weights")
    run("training_loop.py", weights, shared() / "digits/train", tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[-1]) for line in lines]
    assert losses[-1] < losses[0] / 2
    model = load_weights(tmp_path / "out")
    assert model.class_names == tuple("0123456789")
    files = sorted((shared() / "digits/val").glob("*/*.jpg"))
    pixels = preprocess(*files, image_size=32, eval_margin=0)
    found = [best[0].name for best in model.classify(pixels, topk=1)]
    right = [name == path.parent.name for name, path in zip(found, files, strict=True)]
    assert sum(right) / len(right) > 0.5
