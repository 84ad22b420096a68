"""Evaluate weights on a validation split: accuracy, loss, throughput and latency.

``--weights`` takes a checkpoint, a folder of checkpoints (its newest one; <folder>/best: its best),
a converted weights folder, or a PyTorch file. Architecture, number of classes and class names come
from the weights, and so does the image size unless --config or an option sets it. The class folders
are matched with the names. Weights without names take the sorted folders as their classes;
``--class-names`` gives another order.
"""

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import jax
import jax.numpy as jnp

from seresnext_jax.checkpoint.store import explain_choice
from seresnext_jax.cli import check_output, parse_over_config, run, write_output
from seresnext_jax.config import (
    Config,
    EvaluationConfig,
    InputConfig,
    ModelConfig,
    SizesOfWeights,
)
from seresnext_jax.data.class_names import choose_names, order_warning
from seresnext_jax.data.open import open_val
from seresnext_jax.errors import UserError
from seresnext_jax.mesh import make_mesh, replicate
from seresnext_jax.model.network import make_network
from seresnext_jax.processes import fails_alone
from seresnext_jax.report.console import Console
from seresnext_jax.report.metrics import metric_rows
from seresnext_jax.run import runtime
from seresnext_jax.run.outcome import list_bad_images, list_other_files
from seresnext_jax.training.evaluate import evaluate
from seresnext_jax.training.precision import POLICIES
from seresnext_jax.training.step import lower_eval_step
from seresnext_jax.weights.info import size_note
from seresnext_jax.weights.read import read_weights


@dataclass(frozen=True)
class EvalInput(SizesOfWeights, InputConfig):
    """The images and how they are read."""


@dataclass(frozen=True)
class EvalConfig(EvaluationConfig):
    """The options of eval.py."""

    data: EvalInput = field(default_factory=EvalInput)

    weights: str = ""
    """The weights to evaluate: a checkpoint, a weights folder, or a PyTorch file."""
    ema: bool = False
    """Evaluate the moving average that is stored with the weights."""
    class_names: str = ""
    """File with the names of the class folders in the order of the weights' labels: one name per
    line, or JSON. Only needed for weights without class names, or with other ones."""
    json: str = ""
    """Also write the results to this JSON file."""


def options_from(config: Config | None) -> EvalConfig:
    """The default options, taken from a config file if there is one."""
    if config is None:
        return EvalConfig()
    common = {f.name: getattr(config, f.name) for f in fields(EvaluationConfig)}
    data = {f.name: getattr(config.data, f.name) for f in fields(InputConfig)}
    smoothing = config.validation_smoothing
    return EvalConfig(**{**common, "data": EvalInput(**data), "label_smoothing": smoothing})


@fails_alone
def main(argv: list[str]) -> int:
    """Run the program and return its exit status."""
    config = parse_over_config(options_from, argv, program="eval.py", description=__doc__ or "")
    if not config.weights:
        raise UserError("--weights is missing: name a checkpoint, weights folder or PyTorch file")
    check_output("--json", config.json)
    runtime.start(config)
    mesh = make_mesh()
    console = Console(enabled=jax.process_index() == 0)

    if choice := explain_choice(Path(config.weights)):
        console.note(choice)

    # ---- network -------------------------------------------------------------------------------
    weights = read_weights(config.weights, ema=config.ema)
    info = weights.info
    chosen = config.data
    data = chosen.resolve(info.image_size, info.eval_margin)
    config = replace(config, data=data, topk=min(config.topk, info.num_classes))
    model = ModelConfig(arch=info.architecture, num_classes=info.num_classes)
    network = make_network(model, POLICIES[config.precision].compute_dtype)

    # ---- data ----------------------------------------------------------------------------------
    names = choose_names(config.class_names, info.class_names, info.num_classes)
    loader = open_val(config, mesh, num_classes=info.num_classes, class_names=names)
    if names is None and (warning := order_warning(loader.class_names)):
        console.warn(f"{warning}; if they were trained in another order, give --class-names FILE")
    if note := size_note(chosen, info):
        console.note(f"note: {note}")

    list_other_files([loader], console)

    # ---- evaluate ------------------------------------------------------------------------------
    variables = replicate(mesh, jax.tree.map(jnp.asarray, weights.variables))
    with console.compiling("the evaluation step"):
        step = lower_eval_step(network.apply, config, mesh, variables).compile()
    share = config.data.max_bad_share
    results = evaluate(step, variables, loader, config.topk, max_bad_share=share)
    loader.close()

    # ---- report --------------------------------------------------------------------------------
    header = {
        "weights": config.weights,
        "architecture": info.architecture,
        "image_size": data.image_size,
        "precision": config.precision,
        "batch_size": config.batch_size,
        "devices": mesh.size,
    }
    rows = [(name, str(value)) for name, value in header.items()]
    console.table("Evaluation", rows + metric_rows(results))
    list_bad_images([loader])
    if console.enabled:
        write_output("--json", config.json, json.dumps(header | results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    run(main)
