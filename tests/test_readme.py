"""The README's commands: each is understood by its program, and the weights' section is run."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import benchmark
import classify
from convert.__main__ import parse as parse_conversion
from eval import options_from as eval_options
from seresnext_jax.cli import parse, parse_config, parse_over_config
from tests.reference import torch_model, torch_training

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
        options = parse_conversion(words[3:])
        if options.overrides:
            config = ["--config", options.training, *options.overrides]
            parse_config(config, program="train.py", description="")
    elif words[:2] == ["python", "train.py"]:
        parse_config(words[2:], program="train.py", description="")
    elif words[:2] == ["python", "eval.py"]:
        parse_over_config(eval_options, words[2:], program="eval.py", description="")
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
    assert "pip install -e '.[convert]'" in section
    assert [line.split()[3] for line in lines] == ["inspect", "to-flax", "to-torch", "verify"]
    for line in lines:
        done = run_in(tmp_path, shlex.split(line)[1:])
    assert "run by PyTorch, weights by Flax" in done.stdout
    assert "identical" in done.stdout
    back = torch.load(tmp_path / "back.pth.tar", weights_only=True)
    given = torch.load(tmp_path / WEIGHTS_FILE, weights_only=True)
    assert list(back) == list(given)
    assert all(torch.equal(back[k], given[k]) for k in given)


PEAK = """
import sys
from convert.__main__ import main
main(sys.argv[1:])
print([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""
"""Runs a conversion and prints the largest memory that its process had."""


@pytest.mark.slow
def test_full_size_training_states_word_for_word_and_their_memory(tmp_path: Path) -> None:
    """545 MB with a moving average; the same tensors come back, and neither way takes 2.5 GB."""
    flat, to_flax, to_torch = (
        shlex.split(line)[3:]
        for line in commands(README.partition("## Weights")[2].partition("\n## ")[0])
        if "to-flax" in line or "--checkpoint" in line
    )
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    model = torch_model.ResNet(torch_model.ARCHITECTURES["se-resnext101-32x4d"])
    optimizer = torch_training.sgd(model, lr=0.384)
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.randn_like(parameter)
    torch_training.save_training_checkpoint(
        tmp_path / "checkpoint.pth.tar", model, optimizer, 3, 61.5, ema=model.state_dict()
    )
    torch.save(torch_model.to_old_names(model.state_dict()), tmp_path / WEIGHTS_FILE)
    peaks = []
    for words in (flat, [*to_flax, "--use-ema", "0.9999"], to_torch):
        done = run_in(tmp_path, ["-c", PEAK, *words])
        assert done.returncode == 0, done.stderr
        peaks.append(int(re.findall(r"VmHWM:\s+(\d+) kB", done.stdout)[0]) / 1e6)
        if words[0] == "to-flax" and "--training" in words:
            assert done.stdout.count("note: ") == 1  # on the loss scale, which no file has
            assert "--optim.decay-mask nvidia-names --use-ema 0.9999" in done.stdout
    assert peaks[0] < 1.5 and max(peaks) < 2.5

    given = torch.load(tmp_path / "checkpoint.pth.tar", weights_only=False)
    back = torch.load(tmp_path / "out.pth.tar", weights_only=True)
    for name in ("state_dict", "state_dict_ema"):
        assert list(back[name]) == list(given[name])
        assert all(torch.equal(back[name][k], x) for k, x in given[name].items())
    buffers = back["optimizer"]["state"]
    for i, entry in given["optimizer"]["state"].items():
        assert torch.equal(buffers[i]["momentum_buffer"], entry["momentum_buffer"])
    for path in tmp_path.iterdir():  # pytest keeps the folders of three runs
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def run_in(folder: Path, words: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run Python in a folder, with this project importable."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+)`", README))))
def test_a_test_that_guards_a_claim_exists(name: str) -> None:
    assert (ROOT / "tests" / f"{name}.py").exists()
