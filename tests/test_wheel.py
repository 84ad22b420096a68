"""The wheel: built, installed into a fresh environment, its commands run outside the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from seresnext_jax import create_model
from tests.programs import shared

ROOT = Path(__file__).parent.parent
SOURCES = (
    *("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "NOTICE"),
    *("seresnext_jax", "configs", "convert"),
)
IN_THE_CHECKOUT_ONLY = {"setup", "benchmark"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wheel")


@pytest.fixture(scope="module")
def wheel(folder: Path) -> Path:
    """The wheel of a copy of the sources, so that the checkout gets no build folder."""
    source = folder / "source"
    source.mkdir()
    for path in (*ROOT.glob("*.py"), *(ROOT / name for name in SOURCES)):
        if path.is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, source / path.name, ignore=ignore)
        else:
            shutil.copy(path, source)
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--quiet")
    pip("wheel", *options, "--wheel-dir", str(folder), str(source))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def scripts(wheel: Path, folder: Path) -> Path:
    """The folder of the commands in an environment with the wheel and this one's other packages."""
    home = folder / "env"
    venv.create(home, symlinks=True)
    python = home / "bin/python"
    pip("--python", str(python), "install", "--no-deps", "--no-index", "--quiet", str(wheel))
    (site,) = home.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python.parent


def without_the_checkout() -> dict[str, str]:
    """The environment of a process that must not find the checkout."""
    left_out = ("PYTHONPATH", "PYTEST_CURRENT_TEST")
    return {name: value for name, value in os.environ.items() if name not in left_out}


def pip(*words: str) -> None:
    """Run this environment's pip."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words],
        env=without_the_checkout(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def outside(folder: Path, *command: object) -> str:
    """Run a command that must succeed, in a folder outside the checkout; returns what it prints."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={**without_the_checkout(), "XLA_FLAGS": "--xla_backend_optimization_level=0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_program_has_a_command(scripts: Path) -> None:
    programs = {path.stem for path in ROOT.glob("*.py")} - IN_THE_CHECKOUT_ONLY | {"convert"}
    commands = {f"seresnext-{name.replace('_', '-')}" for name in programs}
    assert {path.name for path in scripts.glob("seresnext-*")} == commands
    page = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    assert not [name for name in commands if f"| `{name}` |" not in page]


def test_the_wheel_takes_one_name_in_site_packages(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"seresnext_jax"}
    for path in ("py.typed", "data/imagenet_classes.json", "ops/cpu/grouped_native.cc"):
        assert f"seresnext_jax/{path}" in names
    assert "seresnext_jax/programs/configs/dgxa100_amp_90e.py" in names
    python = {str(p.relative_to(ROOT)) for p in (ROOT / "seresnext_jax").rglob("*.py")}
    assert python <= set(names), "a folder is missing in pyproject.toml's packages"


def test_the_commands_work_outside_the_checkout(scripts: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests/one_block.py", tmp_path / "mine.py")  # imports configs/digits.py
    data = ("--data.root", shared() / "digits")
    cache = ("--compilation-cache", shared() / "cache")
    outside(
        *(tmp_path, scripts / "seresnext-train", "--config", "mine.py", "--workspace", "run"),
        *("--epochs", 1, "--optim.warmup", 0, "--prof", 2, *data, *cache),
    )
    inspected = outside(tmp_path, scripts / "seresnext-convert", "inspect", "run/checkpoints/best")
    assert "one-block" in inspected

    create_model("se-resnext-tiny", 10, image_size=32, eval_margin=0).save(tmp_path / "weights")
    weights = ("--weights", "weights", *cache)
    evaluated = outside(
        *(tmp_path, scripts / "seresnext-eval", "--config", "digits", "--prof", 1, *data, *weights)
    )
    assert "top-1" in evaluated
    image = next((shared() / "digits/val/3").glob("*.jpg"))
    classified = outside(tmp_path, scripts / "seresnext-classify", *weights, image)
    assert classified.splitlines()[0] == str(image)
    checked = outside(tmp_path, scripts / "seresnext-check-data", *data, "--model.num-classes", 10)
    assert checked


@pytest.mark.parametrize("program", ["train", "eval", "check-data", "convert"])
def test_the_help_of_a_command_has_its_name(scripts: Path, tmp_path: Path, program: str) -> None:
    printed = outside(tmp_path, scripts / f"seresnext-{program}", "--help")
    assert f"usage: seresnext-{program}" in printed
    assert f"python {program.replace('-', '_')}.py" not in printed


def test_bash_completes_options(scripts: Path, tmp_path: Path) -> None:
    lines = (ROOT / "docs/commands.md").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if "--tyro-write-completion" in line and "train" in line]
    words = line.replace("~", str(tmp_path)).split()
    file = Path(words[-1])
    file.parent.mkdir(parents=True)
    outside(tmp_path, scripts / words[0], *words[1:])
    complete = (
        f"source {file}; COMP_WORDS=(seresnext-train --batch-s); COMP_CWORD=1; "
        "$(complete -p seresnext-train | grep -o '[^ ]*seresnext_train[^ ]*'); echo ${COMPREPLY[@]}"
    )
    assert outside(tmp_path, "bash", "-c", complete).split() == ["--batch-size"]


def test_the_library_works_outside_the_checkout(scripts: Path, tmp_path: Path) -> None:
    code = "import seresnext_jax as s; print(s.__file__, s.create_model('resnet18', 3).class_names)"
    printed = outside(tmp_path, scripts / "python", "-c", code)
    assert str(scripts.parent) in printed and "class 2" in printed
