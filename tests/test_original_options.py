"""The original's options and choices are answered with ours."""

import pytest

from seresnext_jax.cli import parse
from seresnext_jax.errors import UserError
from tests.command_line import Pictures, complaint, read


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ("--amp", "--precision fp16"),
        ("-b 256", "--batch-size"),
        ("-b256", "--batch-size"),
        ("--data_backend dali-cpu", "--data.backend"),
        ("--bn-weight-decay", "--optim.decay-mask all"),
        ("--static-loss-scale=128", "--loss-scale.init"),
        ("--pretrained-from-file x.pth", "--init-from"),
        ("--wd 1e-4", "--optim.weight-decay"),
        ("--gather-checkpoints", "--checkpoint.keep -1"),
        ("--gpu-affinity socket_unique_contiguous", "--distributed.gpu-affinity"),
        ("--learning-rate 0.1", "--optim.lr"),
        ("--rmsprop-eps 1e-3", "--optim.eps"),
        ("--weights x.pth", "--init-from"),
        ("--cfg_file dgxa100_amp_90e", "--config"),
    ],
)
def test_an_option_of_the_original_gets_ours(given: str, ours: str) -> None:
    said = complaint(*given.split())
    assert f": here it is {ours} (" in said
    value = [] if " " in ours else _SOME_VALUE.get(ours)
    read(*ours.split(), *(["1"] if value is None else value))


_SOME_VALUE = {
    "--data.backend": ["dali-cpu"],
    "--init-from": ["x"],
    "--config": ["dgxa100_amp_90e"],
    "--distributed.gpu-affinity": [],
}


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ("--lr 0.1", "--optim.lr"),
        ("--optimizer rmsprop --lr 0.1", "--optim.optimizer"),
        ("--rmsprop-alpha 0.9", "--optim.rmsprop-alpha"),
        ("--augmentation autoaugment", "--data.augmentation"),
        ("--interpolation bicubic", "--data.interpolation"),
        ("--nesterov", "--optim.nesterov"),
        ("--workers 5", "--data.workers"),
        ("--arch resnet50", "--model.arch"),
    ],
)
def test_an_option_of_the_original_is_in_a_section_here(given: str, ours: str) -> None:
    words = given.split()
    assert f"did you mean {ours}?" in complaint(*words)
    read(ours, *words[1:2], *("--optim.lr", "0.1"))


def test_a_choice_of_the_original_gets_ours() -> None:
    for option, theirs, ours in (
        ("--precision", "AMP", "fp16"),
        ("--precision", "TF32", "tf32"),
        ("--data.backend", "pytorch", "folder"),
        ("--data.backend", "syntetic", "synthetic"),
    ):
        assert f"; the original's {theirs} is {ours} here (" in complaint(option, theirs)
        read(option, ours)


def test_a_file_of_weights_in_a_program_that_evaluates() -> None:
    with pytest.raises(UserError, match="unknown option --pretrained-from-file: here it is --weig"):
        parse(Pictures(), ["--pretrained-from-file", "x"], program="classify.py", description="")
    found = parse(Pictures(), ["--weights", "x"], program="classify.py", description="")
    assert found == Pictures(weights="x")


def test_an_option_of_the_original_in_a_program_that_has_none() -> None:
    with pytest.raises(UserError, match="unknown option --amp") as error:
        parse(Pictures(), ["--amp"], program="classify.py", description="")
    assert "--precision" not in str(error.value)


def test_an_option_of_the_original_that_is_not_needed() -> None:
    for words in ("--memory-format nhwc", "--jit script", "--trt False", "--fused_se False"):
        assert "not needed here, leave it out" in complaint(*words.split())
