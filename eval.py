"""Evaluate weights on a validation split: accuracy, loss, throughput and latency.

``--weights`` takes a checkpoint (or a folder of them, or its best: <folder>/best), a converted
weights folder, or a PyTorch file. The architecture and number of classes come from the weights,
and so does the image's size unless --config or an option says otherwise.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp

from seresnext_jax.cli import parse_config, run
from seresnext_jax.config import Config, DataConfig
from seresnext_jax.data.files import check_classes
from seresnext_jax.data.open import open_loader
from seresnext_jax.errors import UserError
from seresnext_jax.mesh import make_mesh, replicate
from seresnext_jax.processes import fails_alone
from seresnext_jax.report.console import Console
from seresnext_jax.run import runtime
from seresnext_jax.training.evaluate import evaluate
from seresnext_jax.training.setup import lower_eval_step, make_network
from seresnext_jax.weights.info import WeightsInfo
from seresnext_jax.weights.read import read_weights


@dataclass(frozen=True)
class EvalConfig(Config):
    """A run's options, of which evaluation uses those of data, model and precision."""

    weights: str = ""
    """What to evaluate: a checkpoint, a weights folder, or a PyTorch file."""
    ema: bool = False
    """Evaluate the moving average that the weights' file holds."""
    json: str = ""
    """Also write the results to this file."""


@fails_alone
def main(argv: list[str]) -> int:
    """Run the program; returns its exit status."""
    config = parse_config(argv, program="eval.py", description=__doc__ or "", schema=EvalConfig)
    if not config.weights:
        raise UserError("--weights is missing: name a checkpoint, weights folder or PyTorch file")
    if config.json and not Path(config.json).absolute().parent.is_dir():
        raise UserError(f"--json {config.json}: there is no such folder; make it first")
    runtime.start(config)
    mesh = make_mesh()
    console = Console(enabled=jax.process_index() == 0)

    # ---- network -------------------------------------------------------------------------------
    weights = read_weights(config.weights, ema=config.ema)
    info = weights.info
    data = image_sizes(config.data, info, argv)
    model = replace(config.model, arch=info.architecture, num_classes=info.num_classes)
    config = replace(config, data=data, model=model, topk=min(config.topk, info.num_classes))
    network = make_network(config)

    # ---- data ----------------------------------------------------------------------------------
    loader = open_loader(
        data,
        split="val",
        mesh=mesh,
        accumulation=1,
        images_per_pass=config.batch_size * mesh.size,
        seed=config.seed,
        num_classes=info.num_classes,
        max_steps=config.prof,
    )
    if loader.class_names:
        check_classes(loader.class_names, info.num_classes, Path(data.root) / "val")
    if info.class_names and loader.class_names and tuple(loader.class_names) != info.class_names:
        raise UserError(
            "the class folders of val/ are not those the weights were trained on "
            f"({loader.class_names[0]}, ... against {info.class_names[0]}, ...): sort them alike"
        )

    # ---- evaluate ------------------------------------------------------------------------------
    variables = replicate(mesh, jax.tree.map(jnp.asarray, weights.variables))
    with console.compiling("the evaluation step"):
        step = lower_eval_step(config, network, mesh, variables).compile()
    results = evaluate(step, variables, loader, topk=config.topk)
    assert results is not None  # nothing asks this program to stop
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
    console.table(
        "Evaluation",
        [(name, str(value)) for name, value in header.items()]
        + [(name, _format(name, value)) for name, value in results.items()],
    )
    for path in loader.bad_files:
        console.warn(f"left out, can't be decoded: {path}")
    if config.json and console.enabled:
        try:
            Path(config.json).write_text(json.dumps(header | results, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"--json {config.json}: {error.strerror}; name another file") from error
    return 0


def image_sizes(data: DataConfig, info: WeightsInfo, argv: Sequence[str]) -> DataConfig:
    """The image's size and margin as the weights have them, where the command line has no say."""
    given = {word.partition("=")[0].replace("_", "-") for word in argv}
    if "--config" in given:
        return data
    if "--data.image-size" not in given:
        data = replace(data, image_size=info.image_size)
    if "--data.eval-margin" not in given:
        data = replace(data, eval_margin=info.eval_margin)
    return data


def _format(name: str, value: float) -> str:
    if name.startswith("top"):
        return f"{value:.3f} %"
    if name.endswith("_ips"):
        return f"{value:.1f} img/s"
    if "time" in name or "latency" in name:
        return f"{1000 * value:.2f} ms"
    return f"{value:.0f}" if name == "count" else f"{value:.5f}"


if __name__ == "__main__":
    run(main)
