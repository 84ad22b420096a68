"""The README's commands: each is understood by its program, and the weights' section is run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import benchmark
import classify
from convert.__main__ import build_parser
from eval import EvalConfig
from seresnext_jax.cli import parse, parse_config
from seresnext_jax.config import Config
from tests.reference import torch_model

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
WEIGHTS_FILE = "nvidia_se-resnext101-32x4d_200821.pth.tar"


def commands(text: str) -> list[str]:
    """The lines of the shell blocks, continuation lines joined, comments taken off."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for raw in lines if (line := raw.partition("  #")[0].strip())]


def options_in_tables(text: str) -> list[str]:
    """Option strings in back-ticks: ``--resume auto``, ``--batch-size 64``."""
    found = re.findall(r"`(--[^`]+)`", text)
    return [option.replace("\n", " ") for option in found if option != "--help"]


@pytest.mark.parametrize("line", commands(README))
def test_a_command_is_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(line)
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
    elif words[:3] == ["python", "-m", "convert"]:
        build_parser().parse_args(words[3:])
    elif words[:2] == ["python", "train.py"]:
        parse_config(words[2:], program="train.py", description="", schema=Config)
    elif words[:2] == ["python", "eval.py"]:
        parse_config(words[2:], program="eval.py", description="", schema=EvalConfig)
    elif words[:2] == ["python", "classify.py"]:
        parse(classify.ClassifyConfig(), words[2:], program="classify.py", description="")
    elif words[:2] == ["python", "benchmark.py"]:
        parse(benchmark.BenchmarkConfig(), words[2:], program="benchmark.py", description="")
    else:
        pytest.fail(f"nothing checks this command: {line}")


@pytest.mark.parametrize("text", options_in_tables(README))
def test_an_option_exists(text: str) -> None:
    words = shlex.split(text.replace("…", ""))
    if words[0] in ("--weights", "--ema", "--against"):
        return  # of the other programs; their commands are checked above
    parse_config(words, program="train.py", description="")


def test_the_section_on_weights_word_for_word(tmp_path: Path) -> None:
    section = README.partition("## Weights")[2].partition("Whole training states")[0]
    with torch.no_grad():
        model = torch_model.ResNet(torch_model.ARCHITECTURES["resnet18"])
    torch.save(torch_model.to_old_names(model.state_dict()), tmp_path / WEIGHTS_FILE)
    lines = commands(section)
    assert [line.split()[3] for line in lines] == ["inspect", "to-flax", "to-torch", "verify"]
    for line in lines:
        done = subprocess.run(
            [sys.executable, *shlex.split(line)[1:]],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert "identical" in done.stdout
    back = torch.load(tmp_path / "back.pth.tar", weights_only=True)
    given = torch.load(tmp_path / WEIGHTS_FILE, weights_only=True)
    assert list(back) == list(given)
    assert all(
        torch.equal(back[k], given[k]) for k in given if not k.endswith("num_batches_tracked")
    )


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+)`", README))))
def test_a_test_that_guards_a_claim_exists(name: str) -> None:
    assert (ROOT / "tests" / f"{name}.py").exists()
