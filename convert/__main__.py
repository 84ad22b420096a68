"""``python -m convert``: weights and training states between PyTorch files and this project."""

import argparse
import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from seresnext_jax.checkpoint.store import find_checkpoint, read_arrays
from seresnext_jax.cli import parse_config, run
from seresnext_jax.errors import UserError, shown
from seresnext_jax.weights import training_state as training
from seresnext_jax.weights import verify as compare
from seresnext_jax.weights.folder import WeightsInfo, flatten, save_weights, weights_folder
from seresnext_jax.weights.read import (
    from_torch_file,
    is_torch_file,
    open_torch_file,
    read_weights,
    to_state_dict,
    torch_io,
)

Facts = dict[str, Any]


# ---- commands ----------------------------------------------------------------------------------


def to_flax(options: argparse.Namespace) -> int:
    """Convert a torch file to a weights folder, or a whole training state to a checkpoint."""
    if options.training:
        return _training_to_flax(options)
    variables, info = read_weights(options.file, ema=options.ema)
    save_weights(options.out, variables, info)
    _print_source(info)
    print(f"{options.out}: {_describe(info)}")
    return 0


def _training_to_flax(options: argparse.Namespace) -> int:
    if options.steps_per_epoch is None or options.steps_per_epoch < 1:
        raise UserError("--training needs --steps-per-epoch, such as 1251 for ImageNet in 1024s")
    if options.ema:
        raise UserError("--training carries the moving average along: leave --ema out")
    words = ["--config", options.training, *options.overrides]
    config = parse_config(words, program="train.py", description="")
    state, meta, info, notes = training.from_torch(
        open_torch_file(options.file),  # freed before the state is written
        options.file,
        config,
        steps_per_epoch=options.steps_per_epoch,
    )
    training.save(options.out, state, meta)
    _print_source(info)
    _print_notes(notes)
    root = [] if config.data.root else ["--data.root", "DATA"]
    more = ["--workspace", str(options.out), *root, "--resume", "auto"]
    print(f"{options.out}: a training state after epoch {meta.epoch}, step {meta.step}")
    print(f"go on with: {shlex.join(['python', 'train.py', *words, *more])}")
    return 0


def to_torch(options: argparse.Namespace) -> int:
    """Write weights as a state dict, or a checkpoint as the original's."""
    torch_file = torch_io()
    prefix = "module." if options.module_prefix else ""
    if options.checkpoint:
        if options.safetensors or options.ema:
            raise UserError(
                "--checkpoint goes with neither --safetensors nor --ema: leave them out"
            )
        folder = find_checkpoint(options.source)
        if folder is None:
            raise UserError(f"{options.source} is no checkpoint: leave --checkpoint out")
        content, notes = training.to_torch(folder, layout=options.layout, prefix=prefix)
        torch_file.write(options.out, content)
        _print_notes(notes)
        print(f"{options.out}: a training checkpoint after epoch {content['epoch']}")
        return 0
    variables, info = read_weights(options.source, ema=options.ema)
    state = to_state_dict(
        variables,
        layout=options.layout,
        prefix=prefix,
        batches_tracked=info.batches_tracked or 0,
    )
    if options.safetensors:
        torch_file.write_safetensors(options.out, state)
    else:
        torch_file.write(options.out, state)
    print(f"{options.out}: {_describe(info)}, {len(state)} entries")
    return 0


def inspect(options: argparse.Namespace) -> int:
    """Print what a file or folder holds."""
    facts = _inspect(options.file)
    if options.json:
        print(json.dumps(facts))
    else:
        _print_facts(facts)
    return 0


def _inspect(path: Path) -> Facts:
    if is_torch_file(path):
        file = open_torch_file(path)
        return {
            **_facts(*from_torch_file(file, path, ema=False)),
            "has_ema": file.ema is not None,
            "has_optimizer": file.optimizer is not None,
            "best_prec1": file.best_prec1,
            "arch": None if file.arch is None else shown(file.arch),
        }
    variables, info = read_weights(path)
    facts = _facts(variables, info)
    if weights_folder(path):
        return {**facts, "kind": "weights folder"}
    found = find_checkpoint(path)
    assert found is not None  # or read_weights would have refused
    return {**facts, "kind": "checkpoint", "has_ema": "ema" in read_arrays(found, "weights")}


def _facts(variables: dict[str, Any], info: WeightsInfo) -> Facts:
    parameters = sum(int(np.size(x)) for x in flatten(variables["params"]).values())
    names = None if info.class_names is None else [shown(name) for name in info.class_names]
    return {"kind": info.kind, **asdict(info), "class_names": names, "parameters": parameters}


def _print_facts(facts: Facts) -> None:
    for name, value in facts.items():
        print(f"{name.replace('_', ' ') + ':':22}{'-' if value in (None, '') else value}")


def verify(options: argparse.Namespace) -> int:
    """Compare two sets of weights; 1 if they are different networks."""
    a, b = compare.open_side(options.a), compare.open_side(options.b)
    info = b.info if a.engine == "PyTorch" else a.info  # a torch file does not know its image size
    pixels: Iterator[Any] = (
        compare.image_pixels(options.images, info)
        if options.images
        else compare.random_pixels(info.image_size)
    )
    result = compare.compare(a, b, pixels)
    if options.json:
        print(json.dumps(asdict(result)))
    else:
        print(f"{options.a} run by {a.engine}, {options.b} by {b.engine}")
        print(f"{'output':12}{'max abs diff':>14}{'max rel diff':>14}")
        for row in result.outputs:
            print(f"{row.output:12}{row.absolute:14.3e}{row.relative:14.3e}")
        print(f"top-1 agreement {result.top1_agreement:.2%} of {result.images} images")
        print(f"{result.differing_tensors} of {result.tensors} tensors differ")
        print(f"verdict: {result.verdict}")
    return int(result.verdict == "different")


def _print_source(info: WeightsInfo) -> None:
    """Say what was read; the metadata hold the same."""
    names = ("source", "sha256", "kind", "layout", "prefix", "se_weights", "dtype", "epoch")
    _print_facts({name: getattr(info, name) for name in names})


def _describe(info: WeightsInfo) -> str:
    average = ", moving average" if info.ema else ""
    return f"{info.architecture}, {info.num_classes} classes{average}"


def _print_notes(notes: list[str]) -> None:
    for note in notes:
        print(f"note: {note}")


# ---- command line ------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as every other error."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help explains every option)")


def build_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = _Parser(prog="python -m convert", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def command(name: str, function: Any) -> argparse.ArgumentParser:
        text = function.__doc__
        added = commands.add_parser(
            name, help=text, description=text, parents=[common], allow_abbrev=False
        )
        added.set_defaults(function=function)
        return added

    add = command("to-flax", to_flax)
    add.add_argument("file", type=Path, help="torch file (.pth.tar, .pt, .safetensors)")
    add.add_argument("out", type=Path, help="folder to write")
    add.add_argument("--ema", action="store_true", help="take the moving average")
    add.add_argument(
        "--training",
        metavar="CONFIG",
        help="convert the optimizer, too: a checkpoint for this config file's run; every option "
        "of train.py may follow, as that run is to have it",
    )
    add.add_argument(
        "--steps-per-epoch",
        type=int,
        metavar="N",
        help="with --training: optimizer steps in an epoch of the original's run",
    )

    add = command("to-torch", to_torch)
    add.add_argument("source", type=Path, help="weights folder, checkpoint or torch file")
    add.add_argument("out", type=Path, help="file to write")
    add.add_argument(
        "--layout",
        choices=("ngc", "current"),
        required=True,
        help="names: ngc layer1.0.conv1 (releases up to 2021-10), current layers.0.0.conv1",
    )
    add.add_argument("--module-prefix", action="store_true", help="put module. before every name")
    add.add_argument("--safetensors", action="store_true", help="write safetensors, not a pickle")
    add.add_argument(
        "--checkpoint", action="store_true", help="write the original's training checkpoint"
    )
    add.add_argument("--ema", action="store_true", help="take the moving average")

    add = command("inspect", inspect)
    add.add_argument("file", type=Path, help="weights folder, checkpoint or torch file")
    add.add_argument("--json", action="store_true", help="print one JSON object")

    add = command("verify", verify)
    add.add_argument("a", type=Path, help="weights folder, checkpoint or torch file")
    add.add_argument("b", type=Path, help="another one")
    add.add_argument("--images", type=Path, metavar="DIR", help="compare on these, not on noise")
    add.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of one command; `overrides` are the words that ``--training`` leaves to train.py.

    Raises:
      UserError: a wrong command line.
    """
    parser = build_parser()
    options, overrides = parser.parse_known_args(argv)
    options.overrides = overrides
    if overrides and not getattr(options, "training", None):
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    return options


def main(argv: list[str]) -> int:
    """Run one command; its exit status."""
    options = parse(argv)
    return int(options.function(options))


if __name__ == "__main__":
    run(main)
