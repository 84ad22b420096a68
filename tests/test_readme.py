"""The README and docs/: commands are understood, some are run, and what they name exists."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import benchmark
import classify
from check_data import options_from as check_data_options
from convert.__main__ import parse as parse_conversion
from doctor import options_from as doctor_options
from eval import options_from as eval_options
from pack_data import options_from as pack_data_options
from seresnext_jax import __version__, compare, show
from seresnext_jax.cli import parse, parse_config, parse_over_config
from seresnext_jax.config import Config, flatten, option_name
from seresnext_jax.data.normalize import normalize
from seresnext_jax.weights.folder import write_weights_folder
from seresnext_jax.weights.read import read_weights
from tests.reference import torch_model, torch_training

ROOT = Path(__file__).parent.parent
PAGES = {
    path.name: path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")))
}
README, CONVERT, TRAIN = PAGES["README.md"], PAGES["convert.md"], PAGES["train.md"]
WEIGHTS_FILE = "nvidia_se-resnext101-32x4d_200821.pth.tar"


def commands(text: str) -> list[str]:
    """The lines of the shell blocks, without continuation marks, comments and variables."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    lines = [re.sub(r"^[A-Z_]+=\S+ ", "", raw.partition("  #")[0]).strip() for raw in lines]
    return [line for line in lines if line]


def options_in_tables(text: str) -> list[str]:
    """Options of train.py in back-ticks: ``--resume auto``, ``--batch-size 64``."""
    found = [option.replace("\n", " ") for option in re.findall(r"`(--[^`]+)`", text)]
    return [option for option in found if option not in ("--help", "--config", "--weights")]


SHELL = ("mkdir", "cp", ".", "python3")
"""Commands of the README that are not the project's own."""
EVERY_COMMAND = [
    line
    for name, text in PAGES.items()
    for line in commands(text)
    if name == "README.md" or line.startswith(("make ", "python ", "pip "))
]


@pytest.mark.parametrize("line", EVERY_COMMAND)
def test_a_command_is_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(line)
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
    elif words[:3] == ["pip", "install", "-e"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        wanted = words[3].removeprefix(".").strip("[]").split(",")
        assert set(wanted) <= project["optional-dependencies"].keys()
    elif words[0] == "pip":  # tests/test_wheel.py does the same
        assert words[1] == "wheel" or f"-{__version__}-" in words[2]
    elif words[:3] == ["python", "-m", "convert"]:
        options = parse_conversion(words[3:])
        if options.overrides:
            config = ["--config", options.training, *options.overrides]
            parse_config(config, program="train.py", description="")
    elif words[:2] == ["python", "train.py"]:
        parse_config(words[2:], program="train.py", description="")
    elif words[:2] == ["python", "eval.py"]:
        parse_over_config(eval_options, words[2:], program="eval.py", description="")
    elif words[:2] == ["python", "doctor.py"]:
        parse_over_config(doctor_options, words[2:], program="doctor.py", description="")
    elif words[:2] == ["python", "check_data.py"]:
        parse_over_config(check_data_options, words[2:], program="check_data.py", description="")
    elif words[:2] == ["python", "pack_data.py"]:
        parse_over_config(pack_data_options, words[2:], program="pack_data.py", description="")
    elif words[0] == "python" and words[1].startswith("examples/"):
        assert f"    {shlex.join(words)}\n" in (ROOT / words[1]).read_text(encoding="utf-8")
    elif words[:2] == ["python", "classify.py"]:
        parse(classify.ClassifyConfig(), words[2:], program="classify.py", description="")
    elif words[:3] == ["python", "-m", "seresnext_jax.show"]:
        parse(show.ShowConfig(), words[3:], program="show", description="")
    elif words[:3] == ["python", "-m", "seresnext_jax.compare"]:
        parse(compare.CompareConfig(), words[3:], program="compare", description="")
    elif words[:3] == ["python", "-m", "seresnext_jax.data.digits"]:
        assert len(words) == 4  # the folder
    elif words[:2] == ["python", "benchmark.py"]:
        parse(benchmark.BenchmarkConfig(), words[2:], program="benchmark.py", description="")
    else:
        assert words[0] in SHELL, f"nothing checks this command: {line}"


@pytest.mark.parametrize("text", options_in_tables(README + TRAIN))
def test_an_option_exists(text: str) -> None:
    words = shlex.split(text.replace("…", ""))
    if len(words) == 1:
        assert words[0] in map(option_name, flatten(Config()))
    else:
        parse_config(words, program="train.py", description="")


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_names_exists(name: str) -> None:
    """Files of the project, tests, and the pages that its links lead to."""
    text = PAGES[name]
    folder = ROOT if (ROOT / name).exists() else ROOT / "docs"
    for path in re.findall(r"`([\w./-]+(?:\.py|\.cc|/))`", text):
        if path not in (
            "checkpoints/",
            "tensorboard/",
            "wandb/",
            "train/",
            "val/",
        ):  # of a run, of a dataset
            assert (ROOT / path).exists() or (ROOT / "seresnext_jax" / path).exists(), path
    for link in re.findall(r"\]\((?!https:)([^)#]+)[^)]*\)", text):
        assert (folder / link).exists(), link
    tests = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/test_*.py"))
    for test in re.findall(r"`(test_\w+)`", text):
        assert f"def {test}(" in tests, test


def test_the_five_lines_of_python_give_pytorchs_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with torch.no_grad():
        model = torch_model.ResNet(torch_model.ARCHITECTURES["resnet18"]).eval()
    torch.save(model.state_dict(), "file.pth")
    write_weights_folder(Path("weights"), read_weights("file.pth"))
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    Image.fromarray(pixels).save("photo.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(code.partition("\n\n")[2].splitlines()) == 5
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["stages"]["layer4"].shape == (1, 7, 7, 512)
    assert len(names["best"][0]) == 5
    images = torch.from_numpy(np.array(normalize(names["pixels"]))).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = model(images).numpy()
    np.testing.assert_allclose(names["logits"], logits, rtol=1e-4, atol=1e-4)


def test_the_section_on_weights_word_for_word(tmp_path: Path) -> None:
    section = README.partition("## Convert")[2].partition("\n## ")[0]
    with torch.no_grad():
        model = torch_model.ResNet(torch_model.ARCHITECTURES["resnet18"])
    torch.save(torch_model.to_old_names(model.state_dict()), tmp_path / WEIGHTS_FILE)
    lines = commands(section)
    assert lines == [line for line in commands(CONVERT) if "checkpoint" not in line]
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
        for line in commands(README) + commands(CONVERT.partition("## Whole training states")[2])
        if "convert to-flax" in line or "--checkpoint" in line
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
