"""What is wrong on a command line gets one line, with a fix that works."""

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seresnext_jax import commands
from seresnext_jax.config import Config, OptimConfig, flatten, option_name, ranges
from seresnext_jax.errors import UserError
from seresnext_jax.plan import Plan
from tests.command_line import HEAD, OPTIONS, complaint, plan, read, write


@pytest.mark.parametrize(
    ("argv", "answer"),
    [
        (
            "--optim.lr-per-26 3",
            "unknown option --optim.lr-per-26: did you mean --optim.lr-per-256",
        ),
        (
            "--optim.lr_per_26=3",
            "unknown option --optim.lr-per-26: did you mean --optim.lr-per-256",
        ),
        ("--epoch 3", "did you mean --epochs?"),
        ("--momentum 0.9", "did you mean --optim.momentum?"),
        ("--num_classes 10", "did you mean --model.num-classes?"),
        ("--init 1", "did you mean --loss-scale.init?"),
        ("--confg a.py", "did you mean --config?"),
        ("--data.flip", "or use --data.no-flip for the opposite"),
        ("--qqqqqq", "unknown option --qqqqqq ("),
        ("-b 8", "unknown option -b"),
        ("foo", "unexpected argument 'foo'"),
        ("--evaluate yes", "unexpected argument 'yes'"),
        ("--evaluate False", "unexpected argument 'False': a switch takes no value; give it alone"),
        ("--evaluate=true", "unexpected argument 'true': a switch takes no value; give it alone"),
        ("-epochs 3", "unknown option -epochs: did you mean --epochs?"),
        ("--epochs 1.5", "--epochs: not a whole number: '1.5'"),
        ("--epochs", "--epochs needs a value ("),
        ("--mixup x", "--mixup: not a number: 'x'"),
        ("--optim.lr x", "--optim.lr: neither a number nor None: 'x'"),
        ("--precision fp17", "'fp32', 'tf32', 'bf16', 'fp16'"),
        ("--data.crop-area 1", "'--data.crop-area'. Expected 2 values"),
        ("--optim.lr-steps 1 x", "--optim.lr-steps: "),
        ("--optim.lr nan", "--optim.lr is nan"),
        ("--optim.lr-per-256 inf", "--optim.lr-per-256 is inf"),
        ("--mixup -1", "--mixup is -1"),
        ("--batch-size 0", "--batch-size is 0: it must be between 1 and 1000000"),
        ("--model.arch resnet51", "--model.arch 'resnet51' is unknown: choose from resnet18, "),
        ("--config", "--config needs a file"),
        ("--config --epochs 3", "--config needs a file"),
        ("--config=", "--config needs a file"),
    ],
)
def test_a_mistake_gets_one_line(argv: str, answer: str) -> None:
    assert answer in complaint(*argv.split())


def fixed(said: str, *argv: str) -> OptimConfig:
    """The options of the optimizer after the options that a message names are added."""
    words = said.partition("such as ")[2].partition(" (")[0].split()
    assert words
    return read(*argv, *words).optim


@pytest.mark.parametrize("optimizer", ["rmsprop", "adamw", "lamb"])
@pytest.mark.parametrize("config", ["digits", "dgxa100_amp_90e"])
def test_the_rate_of_a_recipe_is_not_for_another_optimizer(config: str, optimizer: str) -> None:
    argv = ("--config", config, "--optim.optimizer", optimizer)
    said = complaint(*argv)
    assert "is for sgd: " in said and f"with --optim.optimizer {optimizer}, give another" in said
    assert fixed(said, *argv).lr_per_256 < 0.1
    assert read(*argv, "--optim.lr", "0.5").optim.lr == 0.5
    assert read(*argv, "--optim.lr_per_256=0.3").optim.lr_per_256 == 0.3, "given on purpose"


def test_an_absolute_rate_of_a_config_file_gives_way(tmp_path: Path) -> None:
    optim = "OptimConfig(optimizer='adamw', lr=1e-3, weight_decay=0.05)"
    file = write(tmp_path / "a.py", HEAD + f"def get_config(): return Config(optim={optim})")
    argv = ("--config", file, "--optim.optimizer", "sgd")
    said = complaint(*argv)
    assert "the learning rate (0.001) is for adamw" in said
    optim = fixed(said, *argv)
    assert (optim.lr, optim.lr_per_256, optim.weight_decay) == (None, 0.256, 2.0**-14)
    argv = ("--config", file, "--optim.lr-per-256", "1e-4")
    assert "--optim.lr-per-256 has no effect where --optim.lr is 0.001" in complaint(*argv)
    assert read(*argv, "--optim.lr", "None").optim.lr_per_256 == 1e-4


def test_a_data_folder_without_its_option(tmp_path: Path) -> None:
    said = complaint(str(tmp_path))
    assert f"did you mean --data.root {tmp_path}?" in said
    assert read("--data.root", str(tmp_path)).data.root == str(tmp_path)


def test_checking_data_asks_for_nothing_else() -> None:
    options = ("--epochs", "1", "--model.num-classes", "2", "--model.arch", "resnet51")
    assert "--optim.warmup" in complaint(*options)
    assert read(*options, "--check-data").check_data


def test_a_mistake_points_to_the_help() -> None:
    assert complaint("--epoch", "3").endswith("(train.py --help explains every option)")


def test_a_message_names_the_command_that_the_user_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert commands.program_name("pack_data.py") == "pack_data.py"
    assert commands.command("convert") == "python -m convert"
    monkeypatch.setattr(commands, "_STARTED_AS", "seresnext-convert")
    assert commands.program_name("pack_data.py") == "seresnext-pack-data"
    assert commands.command("convert") == "seresnext-convert"
    assert "(seresnext-train --help explains every option)" in complaint("--epoch", "3")


def test_no_colours_in_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert complaint("--precision", "fp17").isprintable()


JUNK = ["", " ", "-", "--", "---", "=", "--=", "-1", "0", "1", "1e3", "nan", "-inf", "None"] + [
    *("True", "[1,2]", "{}", "fp16", "cosine", "folder", "'", '"', "\\", "é", "│", "─", "a\nb"),
    *("--help", "--no-flip", "--data.no-flip", "--config", "--data", "--optim.", "@x", "%s", "{0}"),
]
WORD = st.one_of(
    st.sampled_from(OPTIONS),
    st.sampled_from(JUNK),
    st.text(max_size=6),
    st.builds("{}={}".format, st.sampled_from(OPTIONS), st.sampled_from(JUNK)),
    st.builds(lambda o, cut: o[:cut], st.sampled_from(OPTIONS), st.integers(2, 20)),
    st.builds(str, st.floats() | st.integers()),
)


@settings(max_examples=60)
@given(st.lists(WORD, max_size=5))
def test_no_command_line_gives_a_traceback(argv: list[str]) -> None:
    try:
        assert isinstance(plan(read(*argv)), Plan)
    except UserError as error:
        assert str(error).strip()
    except SystemExit as stop:
        assert not stop.code
        assert any(word.endswith(("--help", "-h")) for word in argv)


@st.composite
def numbers(draw: st.DrawFn) -> list[str]:
    """Options with numbers in their ranges, or just outside."""
    argv = []
    limits = {path: (r.low, r.high) for path, r in ranges(Config).items()}
    for path in draw(st.lists(st.sampled_from(sorted(limits)), max_size=6)):
        low, high = limits[path]
        whole = isinstance(flatten(Config())[path], int)
        small = draw(st.integers(int(low) - 1, int(low) + 300))
        value = small if whole else draw(st.sampled_from([small, low, high, (low + high) / 2]))
        argv += [option_name(path), str(value)]
    return argv


@settings(max_examples=30)
@given(numbers())
def test_numbers_in_range_have_a_plan_or_one_line(argv: list[str]) -> None:
    try:
        assert plan(read(*argv)).total_steps > 0
    except UserError as error:
        assert str(error).strip() and "\n" not in str(error)
