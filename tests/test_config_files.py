"""Config files: found by path or name, and one line for whatever is wrong in them."""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seresnext_jax.config import Config
from seresnext_jax.config_files import load_config
from seresnext_jax.errors import UserError
from seresnext_jax.plan import Plan
from tests.command_line import HEAD, OPTIONS, complaint, plan, read, write
from tests.programs import ROOT


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("def get_config(:\n", " line 1: SyntaxError"),
        ("x = 1\n\nraise RuntimeError('first\\nsecond')\n", " line 3: RuntimeError: first"),
        ("def get_config():\n    return 1 / 0\n", " line 2: ZeroDivisionError: division by zero"),
        ("def get_config(x): ...", "TypeError"),
        ("import no_such_module", " line 1: ModuleNotFoundError: No module named"),
        (HEAD + "def get_config():\n    return Config(epoch=3)", " line 4: TypeError"),
        ("get_config = 3", "defines no get_config()"),
        ("", "defines no get_config()"),
        ("def get_config(): return {}", "returned a dict: return a Config"),
        (HEAD + "get_config = Config.__class__", "TypeError"),
        (HEAD + "def get_config(): return Config", "returned a type: return a Config"),
        (HEAD + "def get_config(): return Config(epochs='90')", "epochs is '90': str is not"),
        (HEAD + "def get_config(): return Config(precision='fp17')", "precision is 'fp17'"),
        (HEAD + "def get_config(): return Config(use_ema='x')", "use_ema is 'x'"),
        (HEAD + "def get_config(): return Config(data=None)", "data is None"),
        (
            HEAD + "def get_config(): return Config(data=DataConfig(crop_area=[0.5, 1]))",
            "data.crop_area is [0.5, 1]: list is not a tuple",
        ),
        (
            HEAD + "def get_config(): return Config(optim=OptimConfig(lr_steps=(1, 'a')))",
            "optim.lr_steps is (1, 'a')",
        ),
    ],
)
def test_a_wrong_config_file_gets_one_line(tmp_path: Path, text: str, answer: str) -> None:
    file = write(tmp_path / "bad.py", text)
    said = complaint("--config", file)
    assert said.startswith(f"--config {file}")
    assert answer in said


@pytest.mark.parametrize("name", ["digits", "digits.py", "configs/digits.py", "configs/digits"])
def test_a_config_of_the_checkout_is_found_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_config(str(ROOT / "configs/digits.py"))
    monkeypatch.chdir(tmp_path)
    assert load_config(name) == expected
    (tmp_path / "digits").mkdir()
    assert load_config(name) == expected
    if name.endswith(".py"):  # a file that is there is meant
        write(tmp_path / name, HEAD + "def get_config(): return Config(seed=5)")
        assert load_config(name).seed == 5


def test_a_config_name_with_a_typo() -> None:
    assert "did you mean digits?" in complaint("--config", "Digits")
    assert "did you mean resnet50/dgx2v_amp_90e?" in complaint("--config", "dgx2v_amp_90e")
    assert read("--config", "resnet50/dgx2v_amp_90e").optimizer_batch_size == 4096
    assert "did you mean dgxa100_amp_90e?" in complaint("--config", "dgxa100_amp_90")
    assert read("--config", "dgxa100_amp_90e").epochs == 90


@pytest.mark.parametrize("arch", ["se-resnext101-32x4d", "resnext101-32x4d", "resnet50"])
def test_a_recipe_of_another_architecture_is_found_by_its_name(
    arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"{arch}/dgxa100_amp_90e"
    config = read("--config", name, "--data.root", "X")
    assert (config.model.arch, config.epochs, config.data.root) == (arch, 90, "X")
    assert load_config(f"configs/{name}.py") == load_config(name)


def test_a_wrong_name_of_a_recipe_gets_the_nearest_and_the_list() -> None:
    said = complaint("--config", "resnet50/dgxa100_amp")
    assert "did you mean resnet50/dgxa100_amp_90e?" in said
    assert "resnet50/t4_fp32_250e" in said and "resnext101" not in said
    assert read("--config", "resnet50/dgxa100_amp_90e").batch_size == 256
    assert "resnet50/dgx2v_amp_90e" in complaint("--config", "resnet50")
    every = complaint("--config", "no-such-name")
    assert "benchmark_inference" in every and "t4_fp32_90e" in every and "resnet50/..." in every
    assert "base" not in every and "__init__" not in every
    for name in ("base", "__init__"):
        assert "or a name: benchmark_inference" in complaint("--config", name)


def test_a_config_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file or directory" in complaint("--config", str(tmp_path / "none.py"))
    assert "Is a directory" in complaint("--config", str(tmp_path))
    (tmp_path / "binary.py").write_bytes(b"\x00\xff")
    assert "binary.py" in complaint("--config", str(tmp_path / "binary.py"))


def test_a_config_out_of_range_is_refused_with_a_fix(tmp_path: Path) -> None:
    file = write(tmp_path / "a.py", HEAD + "def get_config(): return Config(epochs=3)")
    assert "--optim.warmup 8 leaves no epoch" in complaint("--config", file)
    assert read("--config", file, "--optim.warmup", "1").epochs == 3


def test_whole_numbers_do_for_floats(tmp_path: Path) -> None:
    file = write(tmp_path / "a.py", HEAD + "def get_config(): return Config(mixup=1)")
    assert read("--config", file) == replace(Config(), mixup=1)


def test_a_config_imports_its_neighbours_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "repo/my_recipes/shared.py", "SEED = 77\n")
    write(
        tmp_path / "repo/my_recipes/a.py",
        HEAD + "def get_config():\n"
        "    from my_recipes.shared import SEED\n"
        "    return Config(seed=SEED)",
    )
    before = list(sys.path)
    monkeypatch.chdir(tmp_path)
    assert load_config("repo/my_recipes/a.py").seed == 77
    monkeypatch.chdir(tmp_path / "repo/my_recipes")
    assert load_config("a.py").seed == 77
    assert sys.path == before
    for name in ("my_recipes.shared", "my_recipes"):
        monkeypatch.delitem(sys.modules, name)


VALUES = st.one_of(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    st.lists(st.integers() | st.text(max_size=2), max_size=3),
    st.sampled_from(["fp16", "cosine", (0.1, 1.0), {}]),
)
FIELDS = sorted({option.removeprefix("--").replace("-", "_") for option in OPTIONS})


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4))
def test_no_config_file_gives_a_traceback(fields: dict[str, Any]) -> None:
    """Every field, of the sections too, with values of every type."""
    lines = ["def get_config():", "    c = Config()"]
    for name, value in fields.items():
        section, _, last = name.rpartition(".")
        change = f"replace(c{'.' if section else ''}{section}, {last}={value!r})"
        lines.append(f"    c = {f'replace(c, {section}={change})' if section else change}")
    text = HEAD + "nan, inf = float('nan'), float('inf')\n" + "\n".join([*lines, "    return c"])
    with tempfile.TemporaryDirectory() as folder:
        try:
            config = read("--config", write(Path(folder) / "fuzz.py", text))
            assert isinstance(plan(config), Plan)
        except UserError as error:
            assert str(error).strip() and "\n" not in str(error)
