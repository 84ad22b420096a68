"""The command line: overrides, help, and one line for whatever is wrong."""

import ast
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seresnext_jax import commands
from seresnext_jax.cli import parse, parse_over_config, run
from seresnext_jax.config import Config, DataConfig, OptimConfig, flatten, option_name, ranges
from seresnext_jax.config_files import load_config
from seresnext_jax.errors import UserError
from seresnext_jax.plan import Plan
from tests.command_line import HEAD, OPTIONS, Pictures, complaint, plan, read, write

ROOT = Path(__file__).parent.parent


# ---- overrides ---------------------------------------------------------------------------------


def test_without_options_the_schema_s_defaults() -> None:
    assert read() == Config()


def test_options_override_the_config_file(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.py",
        HEAD + "def get_config(): return Config(epochs=30, optim=OptimConfig(lr_per_256=0.1))",
    )
    config = read("--optim.lr-per-256", "0.5", "--config", file, "--data.root", "X")
    assert config == Config(epochs=30, optim=OptimConfig(lr_per_256=0.5), data=DataConfig(root="X"))


def test_hyphens_and_underscores_and_equal_signs() -> None:
    expected = Config(batch_size=7, optim=OptimConfig(lr_per_256=2.0))
    assert read("--batch-size", "7", "--optim.lr-per-256", "2") == expected
    assert read("--batch_size=7", "--optim.lr_per_256=2") == expected


def test_each_kind_of_value() -> None:
    config = read(
        *("--use-ema", "0.999", "--optim.lr", "None", "--run-epochs", "-1", "--seed", "3"),
        *("--data.crop-area", "0.5", "1", "--optim.lr-steps", "10", "20"),
        *("--precision", "bf16", "--data.no-flip", "--no-checkpoints", "--workspace=-odd"),
    )
    assert (config.use_ema, config.optim.lr, config.run_epochs, config.seed) == (0.999, None, -1, 3)
    assert (config.data.crop_area, config.optim.lr_steps) == ((0.5, 1.0), (10, 20))
    assert (config.precision, config.data.flip, config.no_checkpoints) == ("bf16", False, True)
    assert config.workspace == "-odd"


def test_a_config_s_true_can_be_switched_off(tmp_path: Path) -> None:
    file = write(tmp_path / "a.py", HEAD + "def get_config(): return Config(evaluate=True)")
    assert read("--config", file).evaluate
    assert not read("--config", file, "--no-evaluate").evaluate
    told = complaint("--config", file, "--evaluate")
    assert "leave it out, or use --no-evaluate for the opposite" in told


def test_a_tilde_that_the_shell_leaves_is_the_home_folder() -> None:
    config = read("--workspace=~/runs/a", "--resume=~/b", "--init-from=~/c")
    home = Path.home()
    assert Path(config.workspace) == home / "runs/a"
    assert (Path(config.resume), Path(config.init_from)) == (home / "b", home / "c")


def test_the_last_of_two_config_files_counts(tmp_path: Path) -> None:
    one = write(tmp_path / "1.py", HEAD + "def get_config(): return Config(seed=1)")
    two = write(tmp_path / "2.py", HEAD + "def get_config(): return Config(seed=2)")
    assert read(f"--config={one}", "--config", two).seed == 2


# ---- options of one program --------------------------------------------------------------------


@dataclass(frozen=True)
class Seeded:
    """Options of which one comes from the config file."""

    seed: int = 1
    weights: str = ""
    """Weights to evaluate."""
    json: bool = False
    """Print JSON."""
    topk: int = 5


def test_a_program_takes_its_defaults_from_a_config_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "a.py", HEAD + "def get_config(): return Config(seed=9)")

    def defaults(config: Config | None) -> Seeded:
        return Seeded() if config is None else Seeded(seed=config.seed)

    def read_evaluation(*argv: str) -> Seeded:
        return parse_over_config(defaults, argv, program="eval.py", description="Evaluate.")

    assert read_evaluation("--weights", "x.pth").seed == 1

    config = read_evaluation("--config", file, "--weights", "x.pth", "--json", "--topk", "3")
    assert (config.seed, config.weights, config.json, config.topk) == (9, "x.pth", True, 3)
    with pytest.raises(UserError, match="did you mean --weights"):
        read_evaluation("--weight", "x")
    with pytest.raises(SystemExit):
        read_evaluation("--help")
    text = capsys.readouterr().out
    assert "Weights to evaluate." in text
    assert "Nesterov momentum." not in text, "only what the program uses"


def test_a_program_with_its_own_options() -> None:
    def read_pictures(*argv: str) -> Pictures:
        return parse(Pictures(), argv, program="classify.py", description="Classify.")

    assert read_pictures("--top", "3") == Pictures(top=3)
    with pytest.raises(UserError, match="unknown option --tops: did you mean --top.*classify.py"):
        read_pictures("--tops", "3")
    with pytest.raises(UserError, match="unknown option --config"):
        read_pictures("--config", "x")


# ---- help --------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """How a default is written in the help."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return shlex.quote(value) if isinstance(value, str) else str(value)


def docstrings(path: str) -> list[str]:
    """The text under each field of the schema's sections, on one line; "" where there is none."""
    tree = ast.parse((ROOT / path).read_text())
    texts: list[str] = []
    for section in tree.body:
        if not isinstance(section, ast.ClassDef) or not section.name.endswith("Config"):
            continue
        for item, after in pairwise([*section.body, ast.Pass()]):
            if not isinstance(item, ast.AnnAssign) or "default_factory" in ast.unparse(item):
                continue
            text = ast.literal_eval(after.value) if isinstance(after, ast.Expr) else ""
            texts.append(" ".join(text.split()))
    return texts


def test_help_has_every_option_with_the_config_s_default_and_meaning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(
        tmp_path / "a.py",
        HEAD + "def get_config():\n"
        "    data = DataConfig(root='/somewhere', flip=False)\n"
        "    optim = OptimConfig(lr=0.75, lr_steps=(5, 6))\n"
        "    return Config(seed=4321, evaluate=True, data=data, optim=optim)",
    )
    with pytest.raises(SystemExit) as stop:
        read("--config", file, "--help")
    assert stop.value.code == 0
    text = " ".join(re.sub("[│─╭╮╰╯]", " ", capsys.readouterr().out).split())
    assert "Train. --config FILE: a Python file" in text
    defaults = flatten(load_config(file))
    for path, value in defaults.items():
        head, dot, leaf = path.rpartition(".")
        spelled = option_name(f"{head}{dot}no_{leaf}" if value is True else path)
        found = re.search(rf" {spelled} (.*?)\(default: (.*?)\)( |$)", text)
        assert found, spelled
        assert found[2] == shown(value), spelled
        assert " --" not in found[1], f"{spelled} has no default of its own"
    meanings = docstrings("seresnext_jax/config.py")
    assert len(meanings) == len(defaults)
    for meaning in meanings:
        assert meaning and meaning in text


def test_completion_for_an_unknown_shell_names_those_that_work() -> None:
    with pytest.raises(UserError, match="bash, zsh and fish"):
        parse(Config(), ["--tyro-print-completion", "tcsh"], program="train.py", description="")
    with pytest.raises(SystemExit):  # the fix
        parse(Config(), ["--tyro-print-completion", "fish"], program="train.py", description="")


def test_help_into_a_closed_pipe_is_quiet() -> None:
    code = (
        "from seresnext_jax.cli import parse_config, run\n"
        "run(lambda argv: parse_config(argv, program='p', description='d') and None)"
    )
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} --help | true",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""


# ---- mistakes ----------------------------------------------------------------------------------


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
        ("--epochs 1.5", "--epochs: not a whole number: '1.5'"),
        ("--epochs", "'--epochs'"),
        ("--mixup x", "--mixup: could not convert string to float: 'x'"),
        ("--optim.lr x", "--optim.lr: "),
        ("--precision fp17", "'fp32', 'tf32', 'bf16', 'fp16'"),
        ("--data.crop-area 1", "'--data.crop-area'. Expected 2 values"),
        ("--optim.lr-steps 1 x", "--optim.lr-steps: "),
        ("--optim.lr nan", "--optim.lr is nan"),
        ("--optim.lr-per-256 inf", "--optim.lr-per-256 is inf"),
        ("--mixup -1", "--mixup is -1"),
        ("--batch-size 0", "--batch-size is 0: it must be between 1 and"),
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


@settings(max_examples=60, deadline=None, derandomize=True)
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


@settings(max_examples=30, deadline=None, derandomize=True)
@given(numbers())
def test_numbers_in_range_have_a_plan_or_one_line(argv: list[str]) -> None:
    try:
        assert plan(read(*argv)).total_steps > 0
    except UserError as error:
        assert str(error).strip() and "\n" not in str(error)


# ---- exits -------------------------------------------------------------------------------------


def exit_of(monkeypatch: pytest.MonkeyPatch, main: Any, *argv: str) -> Any:
    """The status that `run` exits with."""
    monkeypatch.setattr(sys, "argv", ["program", *argv])
    with pytest.raises(SystemExit) as stop:
        run(main)
    return stop.value.code


def test_run_hands_over_the_arguments_and_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    assert not exit_of(monkeypatch, seen.extend, "a", "--b")
    assert seen == ["a", "--b"]
    assert exit_of(monkeypatch, lambda argv: 3) == 3


def test_run_prints_a_user_s_error_as_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_of(monkeypatch, lambda argv: read(*argv), "--epoch", "3") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: unknown option --epoch: did you mean --epochs?")
    assert err.count("\n") == 1


def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_of(monkeypatch, lambda argv: read(*argv), "--epochs", "0", "--debug") == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("error: --epochs is 0")


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> None:
        raise KeyboardInterrupt

    assert exit_of(monkeypatch, main) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_a_device_without_enough_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told by the runtime, and asks for smaller batches."""

    def main(argv: list[str]) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    assert exit_of(monkeypatch, main) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: the device is out of memory (Out of memory allocating 9")
    assert "--batch-size" in err and err.count("\n") == 1


def test_a_message_names_the_command_that_the_user_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert commands.program_name("pack_data.py") == "pack_data.py"
    assert commands.command("convert") == "python -m convert"
    monkeypatch.setattr(commands, "_STARTED_AS", "seresnext-convert")
    assert commands.program_name("pack_data.py") == "seresnext-pack-data"
    assert commands.command("convert") == "seresnext-convert"
    assert "(seresnext-train --help explains every option)" in complaint("--epoch", "3")


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(argv: list[str]) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(ValueError, match="a bug"):
        run(main)


def test_a_strict_terminal_gets_escapes() -> None:
    code = r"from seresnext_jax.cli import run; run(lambda _: print('caf\xe9 \udce9'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "caf\\xe9 \\udce9\n", "")
