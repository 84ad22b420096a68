"""Evaluate weights on a validation split: accuracy, loss, throughput and latency.

``--weights`` takes a checkpoint, a folder of checkpoints (its newest one; <folder>/best: its best
one), a weights folder, or a PyTorch file. Architecture, number of classes and class names come from
the weights, and so does the image size unless --config or an option sets it. Class folders are
matched by name. Weights without class names take the sorted folders as their classes;
``--class-names`` gives another order.

``--details FOLDER`` adds accuracy by class, confusions, every wrong image, calibration, and a
picture of the worst mistakes. ``--against`` evaluates other weights on the same images and tests
whether the difference may be chance. docs/evaluate.md explains both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from seresnext_jax.checkpoint.store import explain_choice
from seresnext_jax.cli import check_output, parse_over_config, run, write_output
from seresnext_jax.config import (
    Config,
    EvaluationConfig,
    InputConfig,
    ModelConfig,
    SizesOfWeights,
)
from seresnext_jax.data.class_names import names_for, order_warning
from seresnext_jax.data.open import open_val
from seresnext_jax.errors import UserError
from seresnext_jax.mesh import make_mesh, replicate
from seresnext_jax.model.network import make_network
from seresnext_jax.processes.fail import fails_alone
from seresnext_jax.report.console import Console
from seresnext_jax.report.contact_sheet import NUM_IMAGES, Cell, write_contact_sheet
from seresnext_jax.report.details import detail_rows, explain, image_name
from seresnext_jax.report.details_files import make_details_folder, write_details, write_table
from seresnext_jax.report.metrics import metric_rows
from seresnext_jax.report.paired import (
    compare_paired,
    comparison_rows,
    difference_rows,
    in_common,
)
from seresnext_jax.report.predictions import Predictions
from seresnext_jax.run import runtime
from seresnext_jax.run.affinity import bind_to_gpus, local_gpus
from seresnext_jax.run.outcome import list_bad_images, list_other_files
from seresnext_jax.training.eval_step import lower_detailed_eval_step, lower_eval_step
from seresnext_jax.training.evaluate import evaluate
from seresnext_jax.training.precision import POLICIES
from seresnext_jax.training.record import Mistake, Recorder
from seresnext_jax.weights.info import Weights, size_note, to_json
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
    details: str = ""
    """New folder for the results in detail: tables as CSV and JSON, and mistakes.png."""
    against: str = ""
    """Other weights, to compare with on the same images. --ema is for --weights only."""
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
    runtime.check_same_options(config)
    console = Console(enabled=jax.process_index() == 0)
    if config.distributed.gpu_affinity:
        bind_to_gpus(local_gpus(mesh), console)
    folder = Path(config.details) if config.details else None
    if config.details or config.against:
        _check_alone()
    if folder:
        make_details_folder(folder)

    weights = read(config, console)
    others = replace(config, weights=config.against, ema=False)
    against = read(others, console) if config.against else None
    first = evaluate_weights(weights, config, mesh, console)
    console.table("Evaluation", first.rows)
    output = first.header | first.results
    if folder:
        report_details(folder, first, console)
    if against:
        # The file of --class-names is not about other names.
        if against.info.class_names not in (None, weights.info.class_names):
            others = replace(others, class_names="")
        second = evaluate_weights(against, others, mesh, console)
        console.table("Evaluation of --against", second.rows)
        if folder:
            make_details_folder(folder / "against")
            report_details(folder / "against", second, console)
        comparison = compare(first, second, folder, console)
        output |= {"against": second.header | second.results, "comparison": comparison}
    if console.enabled:
        write_output("--json", config.json, to_json(output))
    return 0


def _check_alone() -> None:
    if jax.process_count() > 1:
        raise UserError(
            f"--details and --against run in one process, and this is one of "
            f"{jax.process_count()}: start eval.py once, with --distributed.num-processes 1"
        )


# ---- one evaluation ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluated:
    """The evaluation of one set of weights."""

    header: dict[str, Any]
    """What was evaluated, and how."""
    results: dict[str, float]
    paths: Sequence[str]
    """The path of each image of the split."""
    names: tuple[str, ...]
    """The names of the classes, for people."""
    recorder: Recorder | None

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Header and results, for a table."""
        return [(k, str(v)) for k, v in self.header.items()] + metric_rows(self.results)

    @property
    def predictions(self) -> Predictions:
        """The prediction for each image, which an evaluation with a recorder has."""
        assert self.recorder is not None
        return self.recorder.predictions()


def read(config: EvalConfig, console: Console) -> Weights:
    """Read ``--weights``."""
    if choice := explain_choice(Path(config.weights)):
        console.note(choice)
    return read_weights(config.weights, ema=config.ema)


def evaluate_weights(
    weights: Weights, config: EvalConfig, mesh: Mesh, console: Console
) -> Evaluated:
    """Evaluate weights; also records each image's prediction if the options need it."""
    info = weights.info.with_class_names(config.class_names)
    chosen = config.data
    data = chosen.resolve(info.image_size, info.eval_margin, info.interpolation)
    config = replace(config, data=data, topk=min(config.topk, info.num_classes))
    model = ModelConfig(arch=info.architecture, num_classes=info.num_classes)
    network = make_network(model, POLICIES[config.precision].compute_dtype)

    # ---- data
    loader = open_val(config, mesh, num_classes=info.num_classes, class_names=info.class_names)
    if info.class_names is None and (warning := order_warning(loader.class_names)):
        console.warn(f"{warning}; if they were trained in another order, give --class-names FILE")
    if note := size_note(chosen, info):
        console.note(f"note: {note}")
    list_other_files([loader], console)

    # ---- evaluate
    variables = replicate(mesh, jax.tree.map(jnp.asarray, weights.variables))
    recorder = None
    with console.compiling("the evaluation step"):
        if config.details or config.against:
            lowered = lower_detailed_eval_step(network.apply, config, mesh, variables)
            recorder = Recorder(lowered.compile(), num_worst=NUM_IMAGES)
            step = recorder.step
        else:
            step = lower_eval_step(network.apply, config, mesh, variables).compile()
    share = config.data.max_bad_share
    results = evaluate(step, variables, loader, config.topk, max_bad_share=share)
    loader.close()
    list_bad_images([loader])

    header = {
        "weights": config.weights,
        "architecture": info.architecture,
        "image_size": data.image_size,
        "precision": config.precision,
        "batch_size": config.batch_size,
        "devices": mesh.size,
    }
    names = names_for(info.num_classes, loader.class_names)
    return Evaluated(header, results, loader.paths, names, recorder)


# ---- details -------------------------------------------------------------------------------------


def report_details(folder: Path, done: Evaluated, console: Console) -> None:
    """Print the most important details, and write all of them.

    Raises:
      UserError: a file can't be written.
    """
    predictions = done.predictions
    details = explain(predictions, done.names, done.paths)
    write_details(folder, details, done.header)
    assert done.recorder is not None
    if worst := done.recorder.worst:
        row_of = {index: row for row, index in enumerate(predictions.index.tolist())}
        cells = [_cell(done, predictions, row_of[m.number], m) for m in worst]
        write_contact_sheet(folder / "mistakes.png", cells)
    console.table("Details", detail_rows(details))
    console.note(f"{len(details.mistakes)} wrong images and all tables: {folder}")


def _cell(done: Evaluated, predictions: Predictions, row: int, mistake: Mistake) -> Cell:
    label, predicted = predictions.labels[row], predictions.classes[row, 0]
    return Cell(
        mistake.pixels,
        f"{done.names[label]} ({mistake.label_probability:.1%})",
        f"{done.names[predicted]} ({predictions.probabilities[row, 0]:.1%})",
        image_name(done.paths, mistake.number),
    )


# ---- comparison ----------------------------------------------------------------------------------


def compare(
    first: Evaluated, second: Evaluated, folder: Path | None, console: Console
) -> dict[str, Any]:
    """Print and return how two networks differ on the images that both classified."""
    a, b = in_common(first.predictions, second.predictions)
    test = compare_paired(a.right, b.right)
    console.table("Comparison", comparison_rows(test))
    if folder:
        rows = difference_rows(a, b, first.names, first.paths)
        write_table(folder, "differences", rows)
    return test._asdict()


if __name__ == "__main__":
    run(main)
