"""eval.py: whose image size, which loss, and a torch file as it is."""

import json
from pathlib import Path

import pytest
import torch

import eval as program
from convert.__main__ import main as convert
from seresnext_jax.config import Config, DataConfig
from seresnext_jax.errors import UserError
from seresnext_jax.model.network import ARCHITECTURES
from seresnext_jax.training.evaluate import validation_smoothing
from seresnext_jax.weights.info import WeightsInfo
from tests.programs import DIGITS, done, event, shared, tiny
from tests.reference import torch_model, torch_training

TINY = "se-resnext-tiny"


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        (["--weights", "w"], (32, 4)),
        (["--data.image-size", "64"], (64, 4)),
        (["--data.image_size=64"], (64, 4)),
        (["--data.eval-margin", "0"], (32, 0)),
        (["--config", "configs/digits.py"], (224, 32)),
        (["--config=configs/digits.py"], (224, 32)),
    ],
)
def test_the_weights_say_the_images_size_where_nobody_else_does(
    words: list[str], sizes: tuple[int, int]
) -> None:
    """What the command line gave stands in the DataConfig already; here, the defaults."""
    info = WeightsInfo(TINY, 10, image_size=32, eval_margin=4)
    data = DataConfig()
    if any("image" in word for word in words):
        data = DataConfig(image_size=64)
    if "--data.eval-margin" in words:
        data = DataConfig(eval_margin=0)
    found = program.image_sizes(data, info, words)
    assert (found.image_size, found.eval_margin) == sizes


def test_the_loss_is_smoothed_as_the_training_validates() -> None:
    assert validation_smoothing(Config(label_smoothing=0.1)) == 0.1
    assert validation_smoothing(Config(label_smoothing=0.1, mixup=0.2)) == 0.0


def test_a_result_without_a_folder_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--json .*absent/r.json: there is no such folder"):
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
    command = printed.partition("go on with: python ")[2].split()
    out = done(command).stdout
    assert "continuing after step 12 (epoch 2)" in out
    assert [record["epoch"] for record in event(run, "epoch")] == [2]
