"""Options that a program does not know: those of the original, and typing errors."""

import difflib
import os
from collections.abc import Sequence
from typing import Any

from seresnext_jax.config import flatten, option_name

_OF_THE_ORIGINAL = {
    "-a": "--model.arch",
    "-b": "--batch-size",
    "-c": "--model.conv-init",
    "-j": "--data.workers",
    "-p": "--print-freq",
    "--amp": "--precision fp16",
    "--fp16": "--precision fp16",
    "--bn-weight-decay": "--optim.decay-mask all",
    "--wd": "--optim.weight-decay",
    "--learning-rate": "--optim.lr",
    "--rmsprop-eps": "--optim.eps",
    "--model": "--model.arch",
    "--model-config": "--model.conv-init",
    "--data": "--data.root",
    "--data-backend": "--data.backend",
    "--image-size": "--data.image-size",
    "--static-loss-scale": "--loss-scale.init",
    "--dynamic-loss-scale": "--precision fp16, whose loss scale is dynamic",
    "--pretrained-from-file": "--init-from",
    "--pretrained-weights": "--init-from",
    "--pretrained": "--init-from FILE",
    "--weights": "--init-from",
    "--start-epoch": "--resume, which knows the epoch",
    "--local-rank": "--distributed.process-id",
    "--gpu-affinity": "--distributed.gpu-affinity",
    "--gather-checkpoints": "--checkpoint.keep -1",
    "--cfg-file": "--config",
    "--platform": "--config, such as --config dgxa100_amp_90e",
    "--mode": "--config, such as --config dgxa100_amp_90e",
}
"""Options of the original that have other names or forms here."""
_NEEDLESS = (
    *("--memory-format", "--checkpoint-filename", "--num-gpus"),
    *("--jit", "--trt", "--fused-se"),
)
"""Options of the original that have no equivalent."""
VALUES_OF_THE_ORIGINAL = {
    "AMP": "fp16",
    "TF32": "tf32",
    "FP32": "fp32",
    "pytorch": "folder",
    "syntetic": "synthetic",
}
"""Choices of the original that have other names here: of ``--precision`` and ``--data-backend``."""


def explain_unknown(word: str, default: Any, known: Sequence[str]) -> str:
    """One line about a word of the command line that is not an option of `default`."""
    if word.lower() in ("true", "false"):
        return (
            f"unexpected argument {word!r}: a switch takes no value; give it alone, or not at all"
        )
    if not word.startswith("-"):
        folder = os.path.isdir(word) and "data.root" in flatten(default)
        return f"unexpected argument {word!r}" + (f": did you mean --data.root {word}?" * folder)
    name = word.partition("=")[0].replace("_", "-")
    options = list(known)
    for path, value in flatten(default).items():
        if not isinstance(value, bool):
            options.append(option_name(path))
        elif name == _flag(path, value):
            opposite = _flag(path, not value)
            return f"{name} is the default here: leave it out, or use {opposite} for the opposite"
        else:
            options.append(_flag(path, not value))
    if f"-{name}" in options:
        return f"unknown option {name}: did you mean -{name}?"
    if not word.startswith("--"):
        name = name[:2]  # -b256
    ours = _OF_THE_ORIGINAL.get(name, "")
    if "--init-from" not in options:  # a program that evaluates
        ours = ours.replace("--init-from", "--weights")
    if ours.split(" ")[0].rstrip(",") in options:
        return f"unknown option {name}: here it is {ours}"
    if name in _NEEDLESS:
        return f"unknown option {name}: it is not needed here, leave it out"
    # A missing section (--lr) is more likely than a misspelled name.
    near = [option for option in options if option.endswith("." + name.lstrip("-"))]
    near = near or difflib.get_close_matches(name, options, n=1)
    return f"unknown option {name}" + (f": did you mean {' or '.join(near)}?" if near else "")


def _flag(path: str, on: bool) -> str:
    """The option that switches a boolean field on or off: ``--data.no-flip``."""
    section, dot, leaf = path.rpartition(".")
    return option_name(f"{section}{dot}{'' if on else 'no_'}{leaf}")
