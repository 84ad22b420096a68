"""Train an image classifier, evaluate each epoch, keep the last and the best checkpoint.

Read `main` from top to bottom: data, network, state, where to continue, then one visible loop.
"""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from seresnext_jax.checkpoint.progress import Progress
from seresnext_jax.checkpoint.reading import find_checkpoint
from seresnext_jax.cli import parse_config, run
from seresnext_jax.config import Config, Plan, divide_batch, flatten, resolve, to_dict
from seresnext_jax.data.batch import Batch, Loader
from seresnext_jax.data.check import check_data
from seresnext_jax.data.files import check_classes, check_same_classes
from seresnext_jax.data.open import Split, open_loader
from seresnext_jax.data.place import abstract_batch
from seresnext_jax.errors import UserError
from seresnext_jax.mesh import make_mesh, replicate
from seresnext_jax.model.initial import init_variables
from seresnext_jax.model.network import ResNet, build
from seresnext_jax.processes import fails_alone
from seresnext_jax.report.console import Console
from seresnext_jax.report.dllogger import Report
from seresnext_jax.report.plot import plot_report
from seresnext_jax.run import runtime
from seresnext_jax.run.log import TrainLog
from seresnext_jax.run.saver import Saver, find_start
from seresnext_jax.run.stop import EXIT_STOPPED, StopRequest
from seresnext_jax.training.evaluate import evaluate, validation_smoothing
from seresnext_jax.training.optimizer import learning_rate, make_optimizer
from seresnext_jax.training.precision import POLICIES, init_loss_scale
from seresnext_jax.training.state import TrainState, create
from seresnext_jax.training.step import StepOptions, make_eval_step, make_train_step
from seresnext_jax.weights.read import find_weights, read_weights


@fails_alone
def main(argv: list[str]) -> int:
    """Run the program; returns its exit status."""
    config = parse_config(argv, program="train.py", description=__doc__ or "")
    runtime.start(config)
    mesh = make_mesh()
    console = Console(enabled=jax.process_index() == 0)
    if config.check_data:
        return report_data(config, console)
    stop = StopRequest(mesh)

    # ---- what can be refused before the dataset is read ----------------------------------------
    accumulation, _ = divide_batch(config, mesh.size)
    start = find_start(config)
    if config.init_from and start is None:
        find_weights(Path(config.init_from))

    # ---- data; the small split first, as it is refused sooner ----------------------------------
    val_loader = None if config.training_only else open_split(config, mesh, "val")
    train_loader = open_split(config, mesh, "train", accumulation)
    if val_loader is not None:
        check_same_classes(train_loader.class_names, val_loader.class_names)
    plan = resolve(config, num_images=train_loader.num_images, num_devices=mesh.size)

    # ---- network, optimizer, state -------------------------------------------------------------
    policy = POLICIES[config.precision]
    network = build(config.model, dtype=policy.compute_dtype, bn_group_size=plan.bn_group_size)
    optimizer = make_optimizer(config.optim)
    state = create(
        initial_variables(config, network, train_loader.class_names, console),
        optimizer=optimizer,
        loss_scale=init_loss_scale(policy, config.loss_scale.init),
        seed=config.seed,
        with_ema=config.use_ema is not None,
    )
    state = replicate(mesh, state)

    # ---- where to continue ---------------------------------------------------------------------
    saver = Saver(config, plan, train_loader, console)
    state, progress = saver.resume(start, state)
    step = int(state.step)
    report = open_report(config, plan, console, resumed_step=step if config.resume else 0)

    # ---- the steps, compiled -------------------------------------------------------------------
    eval_step: Any = make_eval_step(
        network.apply,
        policy=policy,
        topk=config.topk,
        smoothing=validation_smoothing(config),
        mesh=mesh,
    )
    if val_loader is not None:
        with console.compiling("the evaluation step"):
            batch = batch_shape(config, mesh, passes=1)
            eval_step = eval_step.lower(state.variables, batch).compile()
    if config.evaluate:
        assert val_loader is not None  # config.check: --evaluate excludes --training-only
        if not step and not config.init_from:
            console.warn("the weights are random: name others with --resume or --init-from")
        results = validate(config, eval_step, state, val_loader, stop)
        if results is None:
            return stopped(argv, config, saver, console)
        report.evaluation(step // plan.steps_per_epoch, 0, val_loader.num_steps, results)
        console.table("Evaluation", [(k, f"{v:.5g}") for k, v in results.items()])
        list_bad_images([val_loader])
        val_loader.close()
        return 0
    train_step: Any = make_train_step(network.apply, optimizer, step_options(config), mesh)
    with console.compiling("the training step"):
        batch = batch_shape(config, mesh, passes=plan.accumulation)
        train_step = train_step.lower(state, batch, np.float32(0)).compile()

    # ---- train ---------------------------------------------------------------------------------
    epochs = epochs_to_run(config, progress.finished_epochs)
    log = TrainLog(
        report,
        console,
        plan,
        progress,
        last_epoch=epochs.stop,
        print_freq=config.print_freq,
        max_bad_steps=config.max_bad_steps,
    )
    batches = train_loader.batches(step)
    with saver:  # an error waits for the last save
        for epoch in epochs:
            if 0 <= config.early_stopping_patience <= progress.epochs_without_better:
                waited = progress.epochs_without_better
                console.note(f"no better top-1 for {waited} epochs: stopping")
                break
            done = step - epoch * plan.steps_per_epoch
            with log.epoch(epoch, done=done):
                for step in range(step + 1, (epoch + 1) * plan.steps_per_epoch + 1):  # noqa: B020
                    with log.waiting_for_data():
                        batch = next(batches)
                    lr = learning_rate(config.optim, plan, step - 1)
                    state, metrics = train_step(state, batch, np.float32(lr))
                    log.add(step, metrics)
                    if stop.requested():
                        log.flush()
                        saver.save(state, progress)
                        return stopped(argv, config, saver, console)
                    if saver.due(step):
                        log.flush()
                        saver.save_if_good(state, progress)

            # ---- evaluate, report, save --------------------------------------------------------
            results = {}
            if val_loader is not None:
                results = validate(config, eval_step, state, val_loader, stop)
                if results is None:
                    saver.save(state, progress)
                    return stopped(argv, config, saver, console)
                report.evaluation(epoch, plan.steps_per_epoch, val_loader.num_steps, results)
            results |= log.epoch_metrics()
            report.epoch(epoch, results)
            progress.finish_epoch(epoch, results)
            console.note(epoch_line(config, epoch, results, best=progress.best_epoch == epoch))
            saver.save(state, progress, top1=results.get("val.top1"))

    # ---- the outcome ---------------------------------------------------------------------------
    if console.enabled:
        if progress.results and not report.has_summary:  # else the run had ended before
            best = {"best.top1": progress.best_top1} if progress.best_epoch >= 0 else {}
            report.summary(progress.results | best)
        plot = Path(config.workspace) / "report.png"
        plot_report(report.jsonl_path, plot)
        outcome = outcome_rows(config, progress)
        if not config.no_checkpoints:
            outcome.append(("checkpoint", str(saver.folder)))
        files = [("report", str(report.dlll_path)), ("plot", str(plot))]
        console.table("Outcome", [*outcome, *files])
    loaders = [train_loader] if val_loader is None else [train_loader, val_loader]
    list_bad_images(loaders)
    for loader in loaders:
        loader.close()
    return 0


def report_data(config: Config, console: Console) -> int:
    """Check the dataset and print what was found; returns 1 if anything is wrong."""
    with console.bar("decoding images") as progress:
        found = check_data(config.data, config.model.num_classes, progress)
    console.table("Dataset", found.facts)
    for problem in found.problems:
        console.note(f"problem: {problem}")
    console.note(f"{len(found.problems)} problem(s)")
    return 1 if found.problems else 0


def open_split(config: Config, mesh: Mesh, split: Split, accumulation: int = 1) -> Loader:
    """Open a split whose class folders are those of the network.

    Raises:
      UserError: the dataset is missing or malformed.
    """
    loader = open_loader(
        config.data,
        split=split,
        mesh=mesh,
        accumulation=accumulation,
        images_per_pass=config.batch_size * mesh.size,
        seed=config.seed,
        num_classes=config.model.num_classes,
        max_steps=config.prof,
    )
    if loader.class_names:
        folder = Path(config.data.root) / split
        check_classes(loader.class_names, config.model.num_classes, folder)
    return loader


def initial_variables(
    config: Config, network: ResNet, class_names: tuple[str, ...], console: Console
) -> Any:
    """Random weights from the seed, or those of ``--init-from``.

    A classifier of other classes stays random: a new head. A run that is continued brings its own
    weights, so that those of ``--init-from`` are not needed any more.

    Raises:
      UserError: the weights can't be read or are of another architecture.
    """
    fresh = init_variables(network, config.seed)
    resumed = config.resume and (
        config.resume != "auto" or find_checkpoint(Path(config.workspace) / "checkpoints")
    )
    if not config.init_from or resumed:
        return fresh
    loaded, info = read_weights(config.init_from)
    if info.architecture != config.model.arch:
        raise UserError(
            f"--init-from {config.init_from} is a {info.architecture}: give --model.arch "
            f"{info.architecture}, or other weights"
        )
    average = ", the moving average" if info.ema else ""
    console.note(f"starting from {config.init_from} ({info.architecture}{average})")
    difference = None
    if info.num_classes != config.model.num_classes:
        difference = f"the weights have {info.num_classes}"
    elif info.class_names and class_names and info.class_names != tuple(class_names):
        difference = "the weights have other ones"
    if difference:
        loaded["params"]["fc"] = fresh["params"]["fc"]
        console.note(f"new classifier for {config.model.num_classes} classes ({difference})")
    return {"params": loaded["params"], "batch_stats": loaded["batch_stats"]}


def step_options(config: Config) -> StepOptions:
    """What the training step needs to know of the configuration."""
    return StepOptions(
        num_classes=config.model.num_classes,
        policy=POLICIES[config.precision],
        label_smoothing=config.label_smoothing,
        mixup=config.mixup,
        ema_decay=config.use_ema,
        growth_interval=config.loss_scale.growth_interval,
        freeze_backbone=config.optim.freeze_backbone,
    )


def batch_shape(config: Config, mesh: Mesh, passes: int) -> Batch:
    """A batch's shapes, to compile a step before the first one was read."""
    size = config.data.image_size
    return abstract_batch(mesh, passes=passes, batch_size=config.batch_size, image_size=size)


def open_report(config: Config, plan: Plan, console: Console, *, resumed_step: int) -> Report:
    """Open the report, and put the configuration and what follows from it into the workspace.

    An evaluation is added to whatever the report holds.
    """
    report = Report(
        Path(config.workspace),
        config.raport_file,
        steps_per_epoch=plan.steps_per_epoch,
        keep_until_step=sys.maxsize if config.evaluate else resumed_step or None,
        enabled=console.enabled,
    )
    report.parameters(flatten(config))
    if not config.evaluate:
        for name, value in {"config": config, "plan": plan}.items():
            report.attach(f"{name}.json", json.dumps(to_dict(value), indent=2) + "\n")
    console.table("Plan", [(name, str(value)) for name, value in to_dict(plan).items()])
    return report


def epochs_to_run(config: Config, finished: int) -> range:
    """The epochs of this start: from the first unfinished one, as many as --run-epochs allows."""
    limit = finished + config.run_epochs if config.run_epochs > 0 else config.epochs
    return range(finished, min(config.epochs, limit))


def validate(
    config: Config,
    eval_step: Any,
    state: TrainState,
    loader: Loader,
    stop: StopRequest,
) -> dict[str, float] | None:
    """Evaluate the weights, and their average where there is one; None if told to stop."""
    results: dict[str, float] = {}
    for name, variables in {"val": state.variables, "val_ema": state.ema}.items():
        if variables is None:
            continue
        result = evaluate(
            eval_step, variables, loader, topk=config.topk, should_stop=stop.requested
        )
        if result is None:
            return None
        results |= {f"{name}.{key}": value for key, value in result.items()}
    return results


def stopped(argv: list[str], config: Config, saver: Saver, console: Console) -> int:
    """Wait for the save and say how to go on; returns the exit status."""
    saver.close()
    if config.no_checkpoints or config.evaluate:
        console.note("stopped; nothing was saved")
        return EXIT_STOPPED
    words = [word for word in argv if not word.startswith("--resume=")]
    if "--resume" in words:
        at = words.index("--resume")
        del words[at : at + 2]
    command = shlex.join(["python", "train.py", *words, "--resume", "auto"])
    console.note(f"stopped; continue with: {command}")
    return EXIT_STOPPED


def epoch_line(config: Config, epoch: int, results: dict[str, float], *, best: bool) -> str:
    """One line on a finished epoch."""
    parts = [f"epoch {epoch + 1}/{config.epochs}", f"loss {results['train.loss']:.4f}"]
    if "val.top1" in results:
        parts += [
            f"val loss {results['val.loss']:.4f}",
            f"top-1 {results['val.top1']:.2f} %{' (best)' if best else ''}",
            f"top-{config.topk} {results[f'val.top{config.topk}']:.2f} %",
        ]
    if "train.total_ips" in results:
        parts.append(f"{results['train.total_ips']:.1f} img/s")
    return "  ".join(parts)


def outcome_rows(config: Config, progress: Progress) -> list[tuple[str, str]]:
    """The end-of-run table, without the files."""
    rows = []
    if progress.best_epoch >= 0:
        best = f"{progress.best_top1:.2f} % (epoch {progress.best_epoch + 1})"
        rows.append(("best top-1", best))
    labels = {
        "val.top1": ("top-1", "%"),
        f"val.top{config.topk}": (f"top-{config.topk}", "%"),
        "val_ema.top1": ("top-1 of the average", "%"),
        "train.total_ips": ("training", "img/s"),
        "train.compute_ips": ("training without data wait", "img/s"),
    }
    for name, (label, unit) in labels.items():
        if name in progress.results:
            rows.append((label, f"{progress.results[name]:.2f} {unit}"))
    return rows


def list_bad_images(loaders: list[Loader]) -> None:
    """Name the files that were left out; each process those that it met."""
    console = Console(enabled=True)
    for path in [path for loader in loaders for path in loader.bad_files]:
        console.warn(f"left out, can't be decoded: {path}")


if __name__ == "__main__":
    run(main)
