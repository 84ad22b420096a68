"""The command line: values, defaults from a config file, and help."""

import ast
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from seresnext_jax.cli import parse, parse_over_config
from seresnext_jax.config import Config, DataConfig, OptimConfig, flatten, option_name
from seresnext_jax.config_files import load_config
from seresnext_jax.errors import UserError
from tests.command_line import HEAD, Pictures, complaint, read, write
from tests.programs import ROOT

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


def test_a_completion_that_can_t_be_written_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "absent/seresnext-train"
    argv = ["--tyro-write-completion", "bash", str(file)]
    with pytest.raises(UserError, match=r"No such .*absent/seresnext-train.*make its folder"):
        parse(Config(), argv, program="train.py", description="")
    file.parent.mkdir()  # the fix
    with pytest.raises(SystemExit):
        parse(Config(), argv, program="train.py", description="")
    assert file.read_text()


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
