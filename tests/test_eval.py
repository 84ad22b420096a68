"""eval.py: whose image size, which loss, and a PyTorch file as it is."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

import eval as program
from convert.__main__ import main as convert
from eval import EvalInput, options_from
from seresnext_jax.cli import parse_over_config
from seresnext_jax.config import Config
from seresnext_jax.errors import UserError
from seresnext_jax.model.initial import abstract_variables
from seresnext_jax.model.network import ARCHITECTURES
from seresnext_jax.training.metrics import evaluation_sums
from seresnext_jax.weights.folder import write_weights_folder
from seresnext_jax.weights.identify import network
from seresnext_jax.weights.info import Weights, WeightsInfo, size_note
from tests.programs import DIGITS, done, event, shared, tiny
from tests.reference import torch_model, torch_training

TINY = "se-resnext-tiny"


@pytest.mark.parametrize(
    ("words", "sizes", "interpolation"),
    [
        (["--weights", "w"], (32, 4), "bicubic"),
        (["--data.image-size", "64"], (64, 4), "bicubic"),
        (["--data.image_size=64"], (64, 4), "bicubic"),
        (["--data.eval-margin", "0"], (32, 0), "bicubic"),
        (["--data.interpolation", "bilinear"], (32, 4), "bilinear"),
        (["--config", "configs/digits.py"], (32, 0), "bilinear"),
        (["--config=configs/digits.py"], (32, 0), "bilinear"),
    ],
)
def test_the_weights_decide_how_images_are_resized_unless_an_option_does(
    words: list[str], sizes: tuple[int, int], interpolation: str
) -> None:
    config = parse_over_config(options_from, words, program="eval.py", description="")
    found = config.data.resolve(32, 4, "bicubic")
    assert (found.image_size, found.eval_margin) == sizes
    assert found.interpolation == interpolation


def test_the_size_of_a_torch_file_is_assumed_and_named() -> None:
    torch_file = WeightsInfo(TINY, 10, kind="torch state dict")
    note = size_note(EvalInput(), torch_file)
    assert "resized to 256 and cropped to 224 pixels" in note and "does not record" in note
    assert "resized to 96 and" in size_note(EvalInput(image_size=64), torch_file)
    assert not size_note(EvalInput(image_size=64, eval_margin=0), torch_file)
    assert not size_note(EvalInput(), WeightsInfo(TINY, 10))


def test_the_loss_is_smoothed_as_the_training_validates() -> None:
    assert Config(label_smoothing=0.1).validation_smoothing == 0.1
    assert Config(label_smoothing=0.1, mixup=0.2).validation_smoothing == 0.0
    assert Config(label_smoothing=0.1, cutmix=1.0).validation_smoothing == 0.0


def test_a_result_without_a_folder_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--json .*absent/r.json: its folder does not exist"):
        program.main(["--weights", "w", "--json", str(tmp_path / "absent" / "r.json")])


def test_a_checkpoint_of_pytorch_is_evaluated_and_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file as it is in eval.py; its training state, converted, in train.py --resume."""
    torch.manual_seed(0)
    model = torch_model.ResNet(torch_model.Architecture(**vars(ARCHITECTURES[TINY])), 10)
    optimizer = torch_training.sgd(model, lr=0.01)
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    file = tmp_path / "a.pth.tar"
    torch_training.save_training_checkpoint(file, model, optimizer, epoch=2, best_prec1=12.5)

    done(
        [
            *("eval.py", "--weights", str(file), "--data.root", str(shared() / "digits")),
            *("--data.image-size", "32", "--data.eval-margin", "0", "--batch-size", "32"),
            *("--compilation-cache", str(shared() / "cache"), "--prof", "1"),
            *("--json", str(tmp_path / "r.json")),
        ],
    )
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["architecture"], result["image_size"], result["count"]) == (TINY, 32, 32)

    run = tmp_path / "run"
    program_name, flag, config, *options = tiny(run, "--optimizer-batch-size", "32", config=DIGITS)
    assert (program_name, flag) == ("train.py", "--config")
    words = ["to-flax", str(file), str(run), "--training", config, "--steps-per-epoch", "6"]
    assert convert([*words, *options]) == 0
    printed = capsys.readouterr().out
    assert "after epoch 2, step 12" in printed
    command = printed.partition("continue with: python ")[2].split()
    out = done(command).stdout
    assert "continuing after step 12 (epoch 2)" in out
    assert [record["epoch"] for record in event(run, "epoch")] == [2]


# ---- labels ------------------------------------------------------------------------------------


@pytest.fixture
def first_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the network's place: the class is the red channel of the first pixel, in tens."""

    class Compiled:
        def compile(self) -> Any:
            return lambda variables, batch: evaluation_sums(
                jax.nn.one_hot(batch.images[0, :, 0, 0, 0] // 10, CLASSES, dtype=jnp.float32),
                batch.labels[0],
                batch.mask[0],
                topk=2,
                smoothing=0.0,
            )

    monkeypatch.setattr(program, "lower_eval_step", lambda *_: Compiled())
    monkeypatch.setattr(program.runtime, "start", lambda config: None)


CLASSES = 11


@pytest.fixture(scope="module")
def variables() -> Any:
    shapes = abstract_variables(network(TINY, CLASSES))
    return jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)


def evaluate(
    tmp_path: Path,
    variables: Any,
    names: tuple[str, ...] | None,
    folders: dict[str, int],
    *more: str,
) -> dict[str, float]:
    """Evaluate on class folders, each with images of one class of the network."""
    info = WeightsInfo(TINY, CLASSES, names, image_size=32, eval_margin=0)
    write_weights_folder(tmp_path / "w", Weights(variables, info))
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    for folder, label in folders.items():
        (tmp_path / "data/val" / folder).mkdir(parents=True)
        if label >= 0:
            Image.new("RGB", (32, 32), (10 * label, 0, 0)).save(
                tmp_path / "data/val" / folder / "x.png"
            )
    words = ["--weights", str(tmp_path / "w"), "--data.root", str(tmp_path / "data")]
    words += ["--data.backend", "folder", "--batch-size", "4", "--json", str(tmp_path / "r.json")]
    assert program.main([*words, *more]) == 0
    result: dict[str, float] = json.loads((tmp_path / "r.json").read_text())
    return result


NUMBERS = tuple(str(n) for n in range(1, CLASSES + 1))
"""Trained in numeric order; as strings they sort otherwise."""
FOLDERS = {name: label for label, name in enumerate(NUMBERS)}


@pytest.mark.usefixtures("first_pixel")
def test_numeric_folders_and_weights_without_names(
    tmp_path: Path, variables: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tmp_path, variables, None, FOLDERS)["top1"] < 20
    warning = capsys.readouterr().err
    assert "labels follow the string order of the class folders (1, 10, 11, ...)" in warning
    assert "not the numeric order (1, 2, 3, ...)" in warning
    assert "give --class-names FILE" in warning
    (tmp_path / "n.txt").write_text("\n".join(NUMBERS))
    option = ("--class-names", str(tmp_path / "n.txt"))
    assert evaluate(tmp_path, variables, None, FOLDERS, *option)["top1"] == 100
    assert evaluate(tmp_path, variables, NUMBERS, FOLDERS)["top1"] == 100, "names of the weights"
    assert not capsys.readouterr().err


@pytest.mark.usefixtures("first_pixel")
def test_some_of_the_classes_are_evaluated_by_name(tmp_path: Path, variables: Any) -> None:
    some = {name: FOLDERS[name] for name in ("11", "2", "7")} | {"5": -1}
    with pytest.warns(UserWarning, match=r"no images of 8 of 11 classes \(1, 3, 4, \.\.\.\)"):
        result = evaluate(tmp_path, variables, NUMBERS, some)
    assert (result["top1"], result["count"]) == (100, 3)
    with pytest.raises(UserError, match="give --class-names FILE with the names of all classes"):
        evaluate(tmp_path, variables, None, some)
    (tmp_path / "n.txt").write_text("\n".join(NUMBERS))
    with pytest.warns(UserWarning, match="no images of 8"):
        result = evaluate(tmp_path, variables, None, some, "--class-names", str(tmp_path / "n.txt"))
    assert result["top1"] == 100


@pytest.mark.usefixtures("first_pixel")
def test_renamed_folders(tmp_path: Path, variables: Any) -> None:
    new = {f"class {chr(122 - label)}": label for label in range(CLASSES)}
    with pytest.raises(UserError, match=r"not classes of the weights .* --class-names FILE"):
        evaluate(tmp_path, variables, NUMBERS, new)
    (tmp_path / "n.json").write_text(json.dumps(list(new)))
    option = ("--class-names", str(tmp_path / "n.json"))
    assert evaluate(tmp_path, variables, NUMBERS, new, *option)["top1"] == 100


@pytest.mark.usefixtures("first_pixel")
def test_topk_is_at_most_the_number_of_classes(tmp_path: Path, variables: Any) -> None:
    assert "top11" in evaluate(tmp_path, variables, NUMBERS, FOLDERS, "--topk", "100")
