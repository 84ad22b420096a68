"""Train an image classifier, evaluate each epoch, keep the last and the best checkpoint.

Read `main` from top to bottom: data, network, state, where to continue, then one visible loop.
"""

import shlex
from typing import Any

import jax
import numpy as np

from seresnext_jax.cli import parse_config, run
from seresnext_jax.config import Config, divide_batch, resolve
from seresnext_jax.data.batch import Loader
from seresnext_jax.data.check import check_data
from seresnext_jax.data.files import differing_classes
from seresnext_jax.data.open import open_train, open_val
from seresnext_jax.errors import UserError
from seresnext_jax.mesh import make_mesh, replicate
from seresnext_jax.model.network import make_network
from seresnext_jax.processes import fails_alone
from seresnext_jax.report.console import Console
from seresnext_jax.report.metrics import metric_rows
from seresnext_jax.run import runtime
from seresnext_jax.run.log import TrainLog
from seresnext_jax.run.outcome import epoch_line, list_bad_images, open_report, report_outcome
from seresnext_jax.run.saver import Saver
from seresnext_jax.run.start import Start, find_start, initial_variables
from seresnext_jax.run.stop import EXIT_STOPPED, StopRequest
from seresnext_jax.training.evaluate import evaluate
from seresnext_jax.training.optimizer import learning_rate
from seresnext_jax.training.precision import POLICIES
from seresnext_jax.training.state import TrainState, create_train_state
from seresnext_jax.training.step import lower_eval_step, lower_train_step


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
    divide_batch(config, mesh.size)
    start = find_start(config)

    # ---- data; the small split first, as it is refused sooner ----------------------------------
    val_loader = None
    if not config.training_only:
        val_loader = open_val(config, mesh, num_classes=config.model.num_classes)
    train_loader = open_train(config, mesh)
    if val_loader is not None:
        for problem in differing_classes(train_loader.class_names, val_loader.class_names):
            raise UserError(problem)
    plan = resolve(config, num_images=train_loader.num_images, num_devices=mesh.size)

    # ---- network, optimizer, state -------------------------------------------------------------
    network = make_network(config.model, POLICIES[config.precision].compute_dtype)
    variables = initial_variables(config, network, start, train_loader.class_names, console)
    state = replicate(mesh, create_train_state(config, variables))

    # ---- where to continue ---------------------------------------------------------------------
    saver = Saver(config, plan, train_loader, console)
    state, progress = saver.resume(start, state)
    step = int(state.step)
    report = open_report(config, plan, console, resumed_step=step if config.resume else 0)

    # ---- the steps, compiled -------------------------------------------------------------------
    if val_loader is not None:
        with console.compiling("the evaluation step"):
            eval_step = lower_eval_step(network.apply, config, mesh, state.variables).compile()
    if config.evaluate:
        assert val_loader is not None  # config.check: --evaluate excludes --training-only
        if start == Start():
            console.warn("the weights are random: load some with --resume or --init-from")
        results = validate(config, eval_step, state, val_loader, stop)
        if results is None:
            return stopped(argv, config, saver, console)
        report.evaluation(step // plan.steps_per_epoch, 0, val_loader.num_steps, results)
        console.table("Evaluation", metric_rows(results))
        list_bad_images([val_loader])
        val_loader.close()
        return 0
    with console.compiling("the training step"):
        lowered = lower_train_step(network.apply, config, mesh, state, passes=plan.accumulation)
        train_step = lowered.compile()

    # ---- train ---------------------------------------------------------------------------------
    epochs = epochs_to_run(config, progress.finished_epochs)
    log = TrainLog(config, plan, progress, report, console, last_epoch=epochs.stop)
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
    report_outcome(config, progress, report, console)
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


if __name__ == "__main__":
    run(main)
