"""Convert weights and training states between PyTorch files and this project, and export them."""

import argparse
import shlex
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

from seresnext_jax.checkpoint.store import explain_choice
from seresnext_jax.cli import check_output, parse_config, run, write_output
from seresnext_jax.commands import command
from seresnext_jax.data.class_names import choose_names
from seresnext_jax.errors import UserError, shown
from seresnext_jax.plan import TOTAL_STRIDE
from seresnext_jax.weights import training_state as training
from seresnext_jax.weights.folder import write_weights_folder
from seresnext_jax.weights.info import WeightsInfo, to_json
from seresnext_jax.weights.read import inspect_weights, read_weights
from seresnext_jax.weights.state_dict import to_state_dict
from seresnext_jax.weights.verify import compare_weights

# ---- commands ----------------------------------------------------------------------------------


def to_flax(options: argparse.Namespace) -> int:
    """Convert a PyTorch file to a weights folder, or a complete training state to a checkpoint."""
    if options.training:
        return _training_to_flax(options)
    weights = read_weights(options.file, ema=options.ema, table=options.table)
    info = weights.info.with_class_names(options.class_names)
    write_weights_folder(options.out, replace(weights, info=info))
    _print_source(info)
    _print_notes(info.notes)
    print(f"{options.out}: {_describe(info)}")
    return 0


def _training_to_flax(options: argparse.Namespace) -> int:
    if options.steps_per_epoch is None or options.steps_per_epoch < 1:
        raise UserError("--training needs --steps-per-epoch, such as 1251 for ImageNet in 1024s")
    if options.ema:
        raise UserError("--training converts the moving average, too: leave --ema out")
    if options.table:
        raise UserError("--training takes the file's own tables: leave --table out")
    words = ["--config", options.training, *options.overrides]
    config = parse_config(words, program="train.py", description="")
    state, meta, info, notes = training.from_torch(
        options.file, config, steps_per_epoch=options.steps_per_epoch
    )
    names = choose_names(options.class_names, meta.class_names, config.model.num_classes)
    training.write_first_checkpoint(options.out, state, replace(meta, class_names=names))
    _print_source(info)
    _print_notes((*info.notes, *notes))
    root = [] if config.data.root else ["--data.root", "DATA"]
    more = ["--workspace", str(options.out), *root, "--resume", "auto"]
    print(f"{options.out}: a training state after epoch {meta.epoch}, step {meta.step}")
    print(f"continue with: {command('train')} {shlex.join([*words, *more])}")
    return 0


def to_torch(options: argparse.Namespace) -> int:
    """Write weights as a state dict, or a checkpoint in the original's format."""
    # Imported here because it needs torch; most other commands don't.
    from seresnext_jax.weights.torch_write import write_safetensors, write_torch_file

    prefix = "module." if options.module_prefix else ""
    as_safetensors = _check_out(options)
    if options.checkpoint:
        content, notes = training.to_torch(options.source, layout=options.layout, prefix=prefix)
        write_torch_file(options.out, content)
        _print_notes(notes)
        print(f"{options.out}: a training checkpoint after epoch {content['epoch']}")
        return 0
    weights = read_weights(options.source, ema=options.ema)
    state = to_state_dict(
        weights.variables,
        layout=options.layout,
        prefix=prefix,
        batches_tracked=weights.info.batches_tracked or 0,
    )
    write = write_safetensors if as_safetensors else write_torch_file
    write(options.out, state)
    _print_notes(weights.info.notes)
    print(f"{options.out}: {_describe(weights.info)}, {len(state)} entries")
    return 0


def _check_out(options: argparse.Namespace) -> bool:
    """Whether to write safetensors, according to the name of the file.

    Raises:
      UserError: the options contradict each other or the name, or the file exists and may not be
        replaced.
    """
    out: Path = options.out
    named_safetensors = out.suffix == ".safetensors"
    if options.checkpoint and (options.safetensors or options.ema):
        raise UserError("--checkpoint goes with neither --safetensors nor --ema: leave them out")
    if options.checkpoint and named_safetensors:
        raise UserError(
            f"{out}: safetensors can't contain a training checkpoint: name it "
            f"{out.with_suffix('.pth.tar')}"
        )
    if options.safetensors and not named_safetensors:
        stem = out.name.removesuffix(".tar")
        for suffix in (".pth", ".pt", ".bin", ".ckpt"):
            stem = stem.removesuffix(suffix)
        raise UserError(
            f"{out} is not a name for safetensors: name it {out.with_name(stem + '.safetensors')}, "
            "or leave --safetensors out"
        )
    if out.exists() and not options.force:
        raise UserError(f"{out} exists: give another name, or --force to replace it")
    return named_safetensors


def inspect(options: argparse.Namespace) -> int:
    """Print what a file or folder contains."""
    check_output("--json", options.json)
    facts = inspect_weights(options.file, table=options.table)
    _print_facts({k: v for k, v in facts.items() if k not in ("tables", "content", "notes")})
    for table in facts.get("tables", ()):
        print(_describe_table(table))
    for name, value in (facts.get("content") or {}).items():
        print(f"{'content ' + shown(name) + ':':21} {shown(value)}")
    _print_notes(facts["notes"])
    write_output("--json", options.json, to_json(facts))
    return 0


def verify(options: argparse.Namespace) -> int:
    """Compare two sets of weights; 1 if they are different networks."""
    check_output("--json", options.json)
    result = compare_weights(options.a, options.b, options.images, table=options.table)
    engine_a, engine_b = result.engines
    print(f"{options.a} run by {engine_a}, {options.b} by {engine_b}")
    print(f"{'output':12}{'max abs diff':>14}{'max rel diff':>14}")
    for row in result.outputs:
        print(f"{row.output:12}{row.absolute:14.3e}{row.relative:14.3e}")
    print(f"top-1 agreement {result.top1_agreement:.2%} of {result.images} images")
    print(f"{result.differing_tensors} of {result.tensors} tensors differ")
    print(f"verdict: {result.verdict}")
    write_output("--json", options.json, to_json(asdict(result)))
    return int(result.verdict == "different")


def export(options: argparse.Namespace) -> int:
    """Write a network as one ONNX or StableHLO file for other programs, and check that file."""
    # Imported here because most other commands don't need it.
    from seresnext_jax.export.export import export_weights

    weights = read_weights(options.source, ema=options.ema)
    info = weights.info.with_class_names(options.class_names)
    size = info.image_size if options.image_size is None else options.image_size
    if size < TOTAL_STRIDE:
        raise UserError(f"--image-size is {size}: give {TOTAL_STRIDE} or more")
    weights = replace(weights, info=replace(info, image_size=size))
    done = export_weights(weights, options.out, options.precision, replace=options.force)
    print(f"{done.path}: {done.format}, {_describe(info)}, {size} pixels")
    print(f"{done.description}: its input, output, preprocessing and class names")
    print(
        f"checked with {done.runtime}: logits differ from ours by at most {done.difference:.2e}; "
        f"the largest is {done.largest:.3g}"
    )
    return 0


def _print_facts(facts: dict[str, Any]) -> None:
    """Print the facts that are known."""
    for name, value in facts.items():
        if isinstance(value, float):
            value = f"{value:.6g}"
        elif isinstance(value, dict):
            value = ", ".join(map(" ".join, value.items()))
        elif isinstance(value, list):
            value = shown(", ".join(map(str, value)))
        if value not in (None, ""):
            print(f"{name.replace('_', ' ') + ':':22}{value}")


def _print_notes(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"note: {note}")


def _describe_table(table: dict[str, Any]) -> str:
    """A line about a state dict that ``inspect`` found."""
    kind = "moving average" if table["moving_average"] else "table"
    dtypes = ", ".join(table["dtypes"])
    start = f"{kind} {shown(table['name'])}: {table['tensors']} tensors, {dtypes}"
    if table["architecture"] is None:
        return f"{start}; {table['difference']}"
    prefix = f", prefix {table['prefix']}" if table["prefix"] else ""
    return f"{start}; {table['architecture']} with {table['num_classes']} classes{prefix}"


def _print_source(info: WeightsInfo) -> None:
    """Print what was read; the metadata contains the same facts."""
    names = (
        "source", "sha256", "kind", "table", "layout", "prefix", "se_weights", "dtype", "epoch",
    )  # fmt: skip
    _print_facts({name: getattr(info, name) for name in names})


def _describe(info: WeightsInfo) -> str:
    average = ", moving average" if info.ema else ""
    return f"{info.architecture}, {info.num_classes} classes{average}"


# ---- command line ------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Raises a `UserError` for a wrong command line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help explains every option)")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the commands and their options."""
    parser = _Parser(prog=command("convert"), description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def add_command(name: str, function: Any) -> argparse.ArgumentParser:
        text = function.__doc__
        added = commands.add_parser(
            name, help=text, description=text, parents=[common], allow_abbrev=False
        )
        added.set_defaults(function=function)
        return added

    add = add_command("to-flax", to_flax)
    add.add_argument("file", type=Path, help="PyTorch file (.pth.tar, .pt, .safetensors)")
    add.add_argument("out", type=Path, help="folder to write")
    add.add_argument("--ema", action="store_true", help="take the moving average")
    _add_class_names(add)
    add.add_argument(
        "--training",
        metavar="CONFIG",
        help="convert the optimizer, too: a checkpoint for this config file's run; every option "
        "of train.py may follow, as for that run",
    )
    add.add_argument(
        "--steps-per-epoch",
        type=int,
        metavar="N",
        help="with --training: optimizer steps in an epoch of the original's run",
    )

    _add_table(add)

    add = add_command("to-torch", to_torch)
    add.add_argument("source", type=Path, help="weights folder, checkpoint or PyTorch file")
    add.add_argument("out", type=Path, help="file to write")
    add.add_argument(
        "--layout",
        choices=("ngc", "current"),
        required=True,
        help="names: ngc layer1.0.conv1 (releases up to 2021-10), current layers.0.0.conv1",
    )
    add.add_argument("--module-prefix", action="store_true", help="put module. before every name")
    add.add_argument(
        "--safetensors",
        action="store_true",
        help="write safetensors; a name that ends with .safetensors is enough",
    )
    add.add_argument("--force", action="store_true", help="replace an existing file")
    add.add_argument(
        "--checkpoint", action="store_true", help="write the original's training checkpoint"
    )
    add.add_argument("--ema", action="store_true", help="take the moving average")

    add = add_command("export", export)
    add.add_argument("source", type=Path, help="weights folder, checkpoint or PyTorch file")
    add.add_argument("out", type=Path, help="file to write: NAME.onnx or NAME.stablehlo")
    add.add_argument(
        "--precision",
        choices=("fp32", "fp16", "bf16"),
        default="fp32",
        help="of the weights and the computation; bf16 for .stablehlo only (default: fp32)",
    )
    add.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        help="width and height of the input (default: as stored with the weights, or 224)",
    )
    add.add_argument("--ema", action="store_true", help="take the moving average")
    _add_class_names(add)
    add.add_argument("--force", action="store_true", help="replace existing files")

    add = add_command("inspect", inspect)
    add.add_argument("file", type=Path, help="weights folder, checkpoint or PyTorch file")
    _add_table(add)
    add.add_argument("--json", default="", metavar="FILE", help="also write JSON to this file")

    add = add_command("verify", verify)
    add.add_argument("a", type=Path, help="weights folder, checkpoint or PyTorch file")
    add.add_argument("b", type=Path, help="another one")
    _add_table(add)
    add.add_argument("--images", type=Path, metavar="DIR", help="compare on these, not on noise")
    add.add_argument("--json", default="", metavar="FILE", help="also write JSON to this file")
    return parser


def _add_class_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--class-names",
        default="",
        metavar="FILE",
        help="names of the classes in the order of the labels: one per line, or JSON",
    )


def _add_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--table", default="", metavar="NAME", help="state dict to take from a file with several"
    )


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the options of one command; `overrides` are options of train.py, for ``--training``.

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
    """Run one command and return its exit status."""
    options = parse(argv)
    for name in ("file", "source", "a", "b"):
        if name in options and (choice := explain_choice(getattr(options, name))):
            print(f"note: {choice}")
    return int(options.function(options))


if __name__ == "__main__":
    run(main)
