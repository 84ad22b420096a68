"""Train an image classifier, evaluate it after each epoch, keep the last and the best checkpoint.

The workspace gets report.html, a page with the curves, after each epoch. `python -m
seresnext_jax.compare RUN RUN ...` compares workspaces. "The original" below is NVIDIA's
SE-ResNeXt101-32x4d for PyTorch.
"""

# Read `train` from top to bottom: data, network, state, where to continue, then one visible loop.

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from seresnext_jax.cli import parse_config, run
from seresnext_jax.commands import command
from seresnext_jax.config import Config
from seresnext_jax.data.batch import Loader
from seresnext_jax.data.open import open_splits
from seresnext_jax.mesh import make_mesh, replicate
from seresnext_jax.model.network import make_network
from seresnext_jax.plan import divide_batch, resolve
from seresnext_jax.processes.fail import fails_alone
from seresnext_jax.report.console import Console
from seresnext_jax.report.metrics import metric_rows
from seresnext_jax.run import runtime
from seresnext_jax.run.affinity import bind_to_gpus, local_gpus
from seresnext_jax.run.bad_images import saving_before_bad_images
from seresnext_jax.run.data_check import check_and_print
from seresnext_jax.run.log import TrainLog
from seresnext_jax.run.outcome import (
    epoch_line,
    list_bad_images,
    list_other_files,
    open_report,
    report_outcome,
)
from seresnext_jax.run.saver import Saver
from seresnext_jax.run.start import Start, find_start, initial_variables, saves_checkpoints
from seresnext_jax.run.stop import EXIT_STOPPED, StopRequest
from seresnext_jax.run.workspace import open_workspace
from seresnext_jax.training.eval_step import lower_eval_step
from seresnext_jax.training.evaluate import evaluate
from seresnext_jax.training.optimizer import learning_rate
from seresnext_jax.training.precision import POLICIES
from seresnext_jax.training.state import TrainState, create_train_state
from seresnext_jax.training.step import lower_train_step


@fails_alone
def main(argv: list[str]) -> int:
    """Run the program and return its exit status."""
    config = parse_config(argv, program="train.py", description=__doc__ or "")
    config = replace(config, topk=min(config.topk, config.model.num_classes))
    if config.check_data:
        return check_and_print(config.data, config.model.num_classes, Console(enabled=True))
    runtime.start(config)
    mesh = make_mesh()
    runtime.check_same_options(config)
    console = Console(enabled=jax.process_index() == 0)
    if config.distributed.gpu_affinity:
        bind_to_gpus(local_gpus(mesh), console)
    stop = StopRequest(mesh)
    divide_batch(config, mesh.size)  # refuses batch sizes that do not divide
    with open_workspace(Path(config.workspace), console):
        return train(argv, config, mesh, stop, console)


def train(argv: list[str], config: Config, mesh: Mesh, stop: StopRequest, console: Console) -> int:
    """Train, or evaluate, in an open workspace; returns the exit status."""
    start = find_start(config)  # before the dataset is read

    # ---- data ----------------------------------------------------------------------------------
    train_loader, val_loader = open_splits(config, mesh)
    loaders = [loader for loader in (train_loader, val_loader) if loader is not None]
    list_other_files(loaders, console)
    plan = resolve(config, num_images=train_loader.num_images, num_devices=mesh.size)

    # ---- network, optimizer, state -------------------------------------------------------------
    network = make_network(config.model, POLICIES[config.precision].compute_dtype)
    variables = initial_variables(config, network, start, train_loader.class_names, console)
    state = replicate(mesh, create_train_state(config, variables))

    # ---- where to continue ---------------------------------------------------------------------
    saver = Saver(config, plan, train_loader, console)
    state, progress = saver.resume(start, state)
    resumed_step = int(state.step)
    resumed = resumed_step if config.resume else 0
    report = open_report(argv, config, plan, console, resumed_step=resumed)

    # ---- evaluate only -------------------------------------------------------------------------
    if val_loader is not None:
        with console.compiling("the evaluation step"):
            eval_step = lower_eval_step(network.apply, config, mesh, state.variables).compile()
    if config.evaluate:
        assert val_loader is not None  # config.check: --evaluate excludes --training-only
        if start == Start():
            console.warn("the weights are random: load some with --resume or --init-from")
        results = validate(config, eval_step, state, val_loader, stop)
        if not stop.stopping:
            epoch = resumed_step // plan.steps_per_epoch
            report.evaluation(epoch, 0, val_loader.num_steps, results)
            console.table("Evaluation", metric_rows(results))
        return end(argv, config, stop, loaders, console)

    # ---- train ---------------------------------------------------------------------------------
    epochs = epochs_to_run(config, progress.finished_epochs)
    if not epochs:
        saver.close()
        console.note(f"nothing to train: the run has already finished its {config.epochs} epochs")
        report_outcome(config, progress, report, console)
        return end(argv, config, stop, loaders, console)
    with console.compiling("the training step"):
        lowered = lower_train_step(network.apply, config, mesh, state, passes=plan.accumulation)
        train_step = lowered.compile()
    log = TrainLog(config, plan, progress, report, console, last_epoch=epochs.stop)
    batches = log.timing_waits(train_loader.batches(resumed_step))
    before_bad_images = saving_before_bad_images(saver, progress, log, lambda: state)
    with saver, before_bad_images:  # an error waits for the last save
        for epoch in epochs:
            if 0 <= config.early_stopping_patience <= progress.epochs_without_better:
                waited = progress.epochs_without_better
                console.note(f"no better top-1 for {waited} epoch{'s' * (waited > 1)}: stopping")
                break
            first, end_step = (e * plan.steps_per_epoch for e in (epoch, epoch + 1))
            done = max(0, resumed_step - first)
            with log.epoch(epoch, done=done):
                steps = range(first + done + 1, end_step + 1)
                for step, batch in zip(steps, batches, strict=False):
                    lr = learning_rate(config.optim, plan, step - 1)
                    state, metrics = train_step(state, batch, np.float32(lr))
                    log.add(step, metrics)
                    if stop.requested():
                        break
                    if saver.due(step):
                        log.flush()
                        saver.save_if_good(state, progress)

            results = {}
            if val_loader is not None and not stop.stopping:
                results = validate(config, eval_step, state, val_loader, stop)
            if stop.stopping:
                saver.save(state, progress)
                break
            if val_loader is not None:
                report.evaluation(epoch, plan.steps_per_epoch, val_loader.num_steps, results)
            results |= log.epoch_metrics()
            report.epoch(epoch, results)
            progress.finish_epoch(epoch, results)
            console.note(epoch_line(config, epoch, results, best=progress.best_epoch == epoch))
            saver.save(state, progress, top1=results.get("val.top1"))

    if not stop.stopping:
        report_outcome(config, progress, report, console)
    return end(argv, config, stop, loaders, console)


def epochs_to_run(config: Config, finished: int) -> range:
    """The epochs to train now: the unfinished ones, at most --run-epochs of them."""
    limit = finished + config.run_epochs if config.run_epochs > 0 else config.epochs
    return range(finished, min(config.epochs, limit))


def validate(
    config: Config, eval_step: Any, state: TrainState, loader: Loader, stop: StopRequest
) -> dict[str, float]:
    """Evaluate the weights and, if there is one, their moving average.

    A request to stop ends it early; the results are then incomplete.
    """
    results: dict[str, float] = {}
    for name, variables in {"val": state.variables, "val_ema": state.ema}.items():
        if variables is not None and not stop.stopping:
            found = evaluate(
                eval_step,
                variables,
                loader,
                config.topk,
                max_bad_share=config.data.max_bad_share,
                should_stop=stop.requested,
            )
            results |= {f"{name}.{key}": value for key, value in found.items()}
    return results


def end(
    argv: list[str], config: Config, stop: StopRequest, loaders: list[Loader], console: Console
) -> int:
    """Close the loaders, say how to continue if the run was stopped, and return the exit status."""
    list_bad_images(loaders)
    for loader in loaders:
        loader.close()
    if not stop.stopping:
        return 0
    if saves_checkpoints(config):
        console.note(f"stopped; continue with: {command_to_continue(argv)}")
    else:
        console.note("stopped; nothing was saved")
    return EXIT_STOPPED


def command_to_continue(argv: list[str]) -> str:
    """The command line that continues this run: its own with ``--resume auto``."""
    words = [word for word in argv if not word.startswith("--resume=")]
    if "--resume" in words:
        at = words.index("--resume")
        del words[at : at + 2]
    return f"{command('train')} {shlex.join([*words, '--resume', 'auto'])}"


if __name__ == "__main__":
    run(main)
