"""The programs, run as a user runs them: what they print, write, compute and refuse."""

import json
import os
import re
import shlex
import shutil
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from seresnext_jax.config_files import load_config
from seresnext_jax.report.history import read_history
from seresnext_jax.report.metrics import find_metric
from seresnext_jax.report.sinks import read_report
from seresnext_jax.weights.read import read_weights
from tests.programs import (
    DIGITS,
    EPOCHS,
    STEPS,
    arrays,
    done,
    error_line,
    event,
    keep_until,
    records,
    run,
    same_bits,
    shared,
    simulated,
    tiny,
)

CACHE = str(shared() / "cache")


@cache
def demo() -> tuple[Path, str]:
    """A run of the demo's network and what it printed."""
    workspace = shared() / "demo"
    return workspace, done(tiny(workspace, "--report-to", "tensorboard", config=DIGITS)).stdout


@cache
def whole() -> Path:
    """An uninterrupted run of the smallest network."""
    workspace = shared() / "whole"
    done(tiny(workspace))
    return workspace


def test_run_prints_its_outcome_and_writes_every_file() -> None:
    workspace, out = demo()
    best = max(event(workspace, "epoch"), key=lambda record: record["metrics"]["val.top1"])
    table = out[out.index("Outcome") :]
    assert f"{best['metrics']['val.top1']:.2f} % (epoch {best['epoch'] + 1})" in table
    assert str(workspace / "checkpoints") in table
    assert str(workspace / "report.png") in table and str(workspace / "report.html") in table
    assert f"{EPOCHS} of {EPOCHS} epochs" in (workspace / "report.html").read_text()
    assert list(workspace.glob("tensorboard/events.*"))
    assert "configs/digits.py, except for" in table
    assert f"--epochs: {EPOCHS} (recipe: 20)" in table and "--optim.warmup: 1 (recipe: 2)" in table
    assert "--workspace" not in table and "--data.root" not in table
    start = read_history(workspace).start
    assert start.deviations == {
        "prof": {"recipe": -1, "run": STEPS},
        "optim.warmup": {"recipe": 2, "run": 1},
        "epochs": {"recipe": 20, "run": EPOCHS},
    }
    assert start.environment is not None and start.environment["devices"] == "1 x cpu"
    assert shlex.split(start.command)[:3] == ["python", "train.py", "--config"]

    config = json.loads((workspace / "config.json").read_text())
    assert (config["model"]["arch"], config["epochs"]) == ("se-resnext-tiny", EPOCHS)
    plan = json.loads((workspace / "plan.json").read_text())
    assert (plan["steps_per_epoch"], plan["total_steps"]) == (STEPS, STEPS * EPOCHS)
    assert plan["lr"] == pytest.approx(0.32 * 32 / 256)
    with Image.open(workspace / "report.png") as picture:
        assert picture.width > 100

    last, best_step = STEPS * EPOCHS, STEPS * (best["epoch"] + 1)
    kept = {path.name for path in (workspace / "checkpoints").iterdir()}
    assert kept == {str(last), str(best_step)}


def test_both_reports_have_each_step_once_with_equal_values() -> None:
    workspace = whole()
    plain = records(workspace)
    trained = [record["step"] for record in plain if record["event"] == "train"]
    assert trained == list(range(2, STEPS * EPOCHS + 1, 2))
    epochs = list(range(EPOCHS))
    assert [record["epoch"] for record in plain if record["event"] == "evaluation"] == epochs
    assert [record["epoch"] for record in plain if record["event"] == "epoch"] == epochs
    (summary,) = (record["metrics"] for record in plain if record["event"] == "summary")
    metrics = [record["metrics"] for record in plain if record["event"] == "epoch"]
    assert summary["val.top1"] == max(epoch["val.top1"] for epoch in metrics)
    assert summary["last.val.top1"] == metrics[-1]["val.top1"]

    reported = {name for record in plain for name in record["metrics"]}
    assert all(find_metric(name).meaning for name in reported), "each has a row in the table"
    dlll = read_report(workspace / "experiment_raport.json")
    losses = {
        tuple(record["step"]): record["data"]["train.loss"]
        for record in dlll
        if isinstance(record.get("step"), list) and "train.loss" in record["data"]
    }
    for record in plain:
        if record["event"] == "train":
            place = record["epoch"], record["iteration"]
            assert losses[place] == record["metrics"]["train.loss"]


def test_the_network_learns() -> None:
    losses = [record["metrics"]["train.loss"] for record in event(demo()[0], "epoch")]
    assert losses == sorted(losses, reverse=True)


def test_eval_of_the_best_checkpoint_gives_the_reports_numbers(tmp_path: Path) -> None:
    workspace, _ = demo()
    best = max(event(workspace, "epoch"), key=lambda record: record["metrics"]["val.top1"])
    out = done(
        [
            *("eval.py", "--config", "configs/digits.py", "--prof", str(STEPS)),
            *("--weights", str(workspace / "checkpoints/best"), "--json", str(tmp_path / "r.json")),
            *("--data.root", str(shared() / "digits")),
            *("--compilation-cache", str(shared() / "cache")),
        ]
    ).stdout
    result = json.loads((tmp_path / "r.json").read_text())
    for name in ("top1", "top5", "loss", "ce", "count"):
        assert result[name] == best["metrics"][f"val.{name}"]
    assert f"{result['top1']:.2f} %" in out


def test_classify_names_the_digits() -> None:
    workspace, _ = demo()
    image = min((shared() / "digits/val/7").iterdir())
    weights = str(workspace / "checkpoints/best")
    out = done(["classify.py", "--weights", weights, "--topk", "10", str(image)]).stdout
    assert image.name in out
    assert sum(float(share) for share in re.findall(r"([\d.]+) %", out)) == pytest.approx(
        100, abs=1
    )


def test_evaluate_of_a_finished_run_gives_its_last_numbers() -> None:
    workspace = whole()
    copy = shared() / "evaluated"
    shutil.copytree(workspace, copy)
    # A live run would still be writing these.
    (copy / "checkpoints/99.orbax-checkpoint-tmp").mkdir()
    (copy / "checkpoints/98.replaced").mkdir()
    before = sorted((copy / "checkpoints").rglob("*"))
    out = done(tiny(copy, "--resume", "auto", "--evaluate")).stdout
    last = event(workspace, "epoch")[-1]["metrics"]
    again = event(copy, "evaluation")[-1]["metrics"]
    assert again == {name: value for name, value in last.items() if name.startswith("val.")}
    assert records(copy)[:-1] == records(workspace), "an evaluation is only added"
    assert f"{last['val.loss']:.5g}" in out[out.index("Evaluation") :]
    assert sorted((copy / "checkpoints").rglob("*")) == before, "nothing is written there"
    for name in ("config.json", "plan.json"):
        assert (copy / name).read_text() == (workspace / name).read_text()
    same_bits(arrays(copy), arrays(workspace))


def test_one_epoch_at_a_time_equals_an_uninterrupted_run() -> None:
    workspace = whole()
    parts = shared() / "parts"
    done(tiny(parts, "--run-epochs", "1"))
    assert len(event(parts, "epoch")) == 1
    done(tiny(parts, "--resume", "auto"))
    same_bits(arrays(parts), arrays(workspace))
    assert records(parts) == records(workspace)


@pytest.mark.parametrize(("optimizer", "devices"), [("adamw", 1), ("lamb", 2)])
def test_a_run_with_every_augmentation_continues_within_an_epoch(
    optimizer: str, devices: int, tmp_path: Path
) -> None:
    """Bit for bit, with an optimizer that has a state of its own and accumulated gradients."""
    options = [
        *("--optim.optimizer", optimizer, "--optim.lr", "0.001", "--optim.clip-norm", "0.5"),
        *("--batch-size", "8", "--optimizer-batch-size", "32"),
        *("--mixup", "0.2", "--cutmix", "1"),
        *("--data.augmentation", "randaugment", "--data.random-erasing", "0.5"),
        *("--data.interpolation", "bicubic"),
        *("--epochs", "2", "--checkpoint.every-steps", "2", "--checkpoint.keep", "-1"),
    ]
    env = simulated(devices)
    done(tiny(tmp_path / "run", *options), env=env)
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    keep_until(tmp_path / "again", STEPS + 2)
    out = done(tiny(tmp_path / "again", *options, "--resume", "auto"), env=env).stdout
    assert f"continuing after step {STEPS + 2} " in out
    same_bits(arrays(tmp_path / "again"), arrays(tmp_path / "run"))
    assert read_weights(tmp_path / "run").info.interpolation == "bicubic", "evaluated alike"


def test_resuming_a_finished_run_only_writes_a_summary_that_is_missing() -> None:
    """It was killed between its last checkpoint and the summary."""
    workspace = whole()
    copy = shared() / "finished"
    shutil.copytree(workspace, copy)
    for name, summary in (("report.jsonl", '"summary"'), ("experiment_raport.json", '"step": []')):
        lines = (copy / name).read_text().splitlines(keepends=True)
        (copy / name).write_text("".join(line for line in lines if summary not in line))
    assert not event(copy, "summary")
    for _ in range(2):  # the second time it stands
        out = done(tiny(copy, "--resume", "auto")).stdout
        assert f"nothing to train: the run has already finished its {EPOCHS} epochs" in out
        assert "compiling the training step" not in out
        assert "best top-1" in out[out.index("Outcome") :]
        same_bits(arrays(copy), arrays(workspace))
        assert records(copy) == records(workspace)
    dlll = [r for r in read_report(copy / "experiment_raport.json") if r.get("step") == []]
    assert len(dlll) == 2  # the metrics for the console, the others


def test_without_files_evaluation_or_checkpoints(tmp_path: Path) -> None:
    workspace = tmp_path / "run"
    options = ("--data.backend", "synthetic", "--prof", "2", "--run-epochs", "1")
    out = done(tiny(workspace, *options, "--training-only", "--no-checkpoints")).stdout
    assert "top-1" not in out and "checkpoint" not in out
    (epoch,) = event(workspace, "epoch")
    assert not [name for name in epoch["metrics"] if name.startswith("val")]
    (summary,) = event(workspace, "summary")
    assert "best.top1" not in summary["metrics"]
    assert [record["step"] for record in event(workspace, "train")] == [2]
    assert not (workspace / "checkpoints").exists()


def test_bf16_average_and_early_stopping(tmp_path: Path) -> None:
    """Patience 0 ends a run after its first epoch: no later one can be better by then."""
    options = ("--precision", "bf16", "--use-ema", "0.5", "--early-stopping-patience", "0")
    out = done(tiny(tmp_path / "run", *options)).stdout
    (epoch,) = event(tmp_path / "run", "epoch")
    assert {"val.top1", "val.loss", "val_ema.top1", "val_ema.loss"} <= epoch["metrics"].keys()
    assert epoch["metrics"]["val_ema.loss"] != epoch["metrics"]["val.loss"]
    assert "no better top-1" in out
    assert "top-1 of the moving average" in out[out.index("Outcome") :]
    again = done(tiny(tmp_path / "run", *options, "--resume", "auto")).stdout
    assert "no better top-1" in again
    assert event(tmp_path / "run", "epoch") == [epoch], "stopped stays stopped"
    state = arrays(tmp_path / "run")
    assert {str(array.dtype) for name, array in state.items() if "params" in name} == {"float32"}


def test_other_number_of_classes_gets_a_new_classifier(tmp_path: Path) -> None:
    """Two classes with the default --topk 5: top-2 is reported. It is never made to evaluate."""
    data = tmp_path / "data"
    for split in ("train", "val"):
        for digit in ("0", "1"):
            source = shared() / "digits" / split / digit
            shutil.copytree(source, data / split / digit, copy_function=os.link)
    weights = str(demo()[0] / "checkpoints/best")
    options = ("--init-from", weights, "--model.num-classes", "2", "--data.root", str(data))
    line = error_line(run(tiny(tmp_path / "run", *options, "--evaluate", config=DIGITS)))
    assert "other classes (only the weights have 2, 3, 4, ...): train a new one without" in line
    assert f"python eval.py --weights {weights}" in line
    evaluation = ("eval.py", "--weights", weights, "--batch-size", "32", "--prof", "1")
    out = done([*evaluation, "--data.root", str(data), "--compilation-cache", CACHE]).stdout
    assert "top-1" in out
    out = done(tiny(tmp_path / "run", *options, "--run-epochs", "1", config=DIGITS)).stdout
    assert f"starting from {weights} (se-resnext-tiny)" in out
    assert "new classifier for 2 classes (the weights have 10)" in out
    (epoch,) = event(tmp_path / "run", "epoch")
    assert "val.top2" in epoch["metrics"] and "val.top5" not in epoch["metrics"]


def renamed(folder: Path) -> Path:
    """The digits with other names, in another order."""
    words = "zero one two three four five six seven eight nine".split()
    for split in ("train", "val"):
        for digit, word in enumerate(words):
            source = shared() / "digits" / split / str(digit)
            shutil.copytree(source, folder / split / word, copy_function=os.link)
    (folder / "names.txt").write_text("\n".join(words))
    return folder


def test_a_checkpoint_does_not_continue_on_classes_of_other_names(tmp_path: Path) -> None:
    data = renamed(tmp_path / "data")
    copy = tmp_path / "run"
    shutil.copytree(demo()[0], copy)
    root = ("--data.root", str(data))
    command = tiny(copy, *root, "--resume", "auto", config=DIGITS)
    line = error_line(run(command))
    assert "only the weights have 0, 1, 2, ..., only the data has eight, five, four, ..." in line
    line = line.partition("or fine-tune with ")[2]
    flag, weights, *_, place = line.split()
    assert (flag, place) == ("--init-from", "--workspace")
    new = (*root, "--init-from", weights, "--run-epochs", "1")
    out = done(tiny(tmp_path / "new", *new, config=DIGITS)).stdout
    assert "new classifier for 10 classes (the weights have other ones): only the weights" in out

    line = error_line(run([*command, "--evaluate"]))
    fix = line.partition("name them with python ")[2].replace("FILE", str(data / "names.txt"))
    words = [*root, "--batch-size", "32", "--prof", "6", "--compilation-cache", CACHE]
    done([*fix.split(), *words, "--json", str(tmp_path / "r.json")])
    assert json.loads((tmp_path / "r.json").read_text())["top1"] > 30, "not 10 %, by chance"


def test_nothing_is_evaluated_if_there_is_no_checkpoint(tmp_path: Path) -> None:
    line = error_line(run(tiny(tmp_path / "run", "--resume", "auto", "--evaluate")))
    assert "no checkpoint to evaluate: name one with --resume" in line


def test_a_recipe_reads_imagenet_and_names_the_option_if_it_is_missing(tmp_path: Path) -> None:
    recipe = "configs/dgxa100_amp_90e.py"
    assert load_config(recipe).data.root == "/imagenet"
    missing = str(tmp_path / "imagenet")  # the other one may be there
    line = error_line(run(["train.py", "--config", recipe, "--data.root", missing]))
    assert f"{missing} is not a folder: give --data.root" in line


COUNTING = """
import sys
import train
from seresnext_jax.data import index
from seresnext_jax.data.backends import dali
scan, graph, seen = index.list_folder, dali._graph, []
index.list_folder = lambda folder, show: seen.append("listed " + folder.name) or scan(folder, show)
def build(feed, crop, **options):
    seen.append("built " + type(crop).__name__)
    return graph(feed, crop, **options)
dali._graph = build
train.main(sys.argv[1:])
print("seen:", *sorted(seen), sep="|")
"""


def test_a_run_lists_each_split_and_builds_its_pipeline_once(tmp_path: Path) -> None:
    """In three epochs with two evaluations each."""
    _, *options = tiny(tmp_path / "run", "--use-ema", "0.5", "--no-checkpoints")
    out = done(["-c", COUNTING, *options]).stdout
    assert "seen:|built CentreCrop|built TrainCrop|listed train|listed val\n" in out


def _without_a_val_class(folder: Path) -> str:
    shutil.copytree(shared() / "digits", folder, copy_function=os.link)
    (folder / "val/9").rename(folder / "val/nine")
    return str(folder)


@pytest.mark.parametrize(
    ("options", "problem", "fix"),
    [
        (["--data.root", "/nowhere"], "/nowhere is not a folder", "give --data.root"),
        (["--model.num-classes", "12"], "10 class folders", "train with --model.num-classes 10"),
        (["--data.root", "RENAMED"], "only in train/ (9)", "must have the same"),
        (["--init-from", "WHOLE", "--model.arch", "resnet18"], "se-resnext-tiny", "--model.arch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_error_is_one_line_with_a_fix(
    options: list[str], problem: str, fix: str, tmp_path: Path
) -> None:
    if "RENAMED" in options:
        options = [options[0], _without_a_val_class(tmp_path / "data")]
    options = [str(demo()[0]) if word == "WHOLE" else word for word in options]
    line = error_line(run(tiny(tmp_path / "run", *options)))
    assert problem in line
    assert fix in line


@pytest.mark.parametrize(
    ("options", "problem", "fix"),
    [
        (["--init-from", "/nowhere"], "/nowhere", "check the path"),
        (["--workspace", "WHOLE"], "checkpoints of an earlier run", "--resume auto"),
        (["--raport-file", "."], "is a folder", "give a file's name"),
        (["--raport-file", "report.jsonl"], "taken by the run", "choose another name"),
        (["--resume", "~nouser/run"], "--resume ~nouser/run", "check the path"),
        (["--resume", "README.md"], "a file is not a checkpoint", "--init-from README.md"),
        (["--batch-size", "1"], "one value per channel", "--batch-size 2 or more"),
        (["--workspace", "/dev/null/run"], "/dev/null/run", "choose another --workspace"),
        (["--optim.warmpu", "3"], "--optim.warmpu", "did you mean --optim.warmup?"),
        (["--optimizer-batch-size", "100"], "not a multiple", "--batch-size 25"),
        (["--model.bn-group-size", "5"], "does not divide batch_size 32", "choose a divisor"),
        (["--data.backend", "dali-gpu"], "needs an NVIDIA GPU", "give --data.backend dali-cpu"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_needs_no_dataset_is_refused_before_it_is_listed(
    options: list[str], problem: str, fix: str, tmp_path: Path
) -> None:
    """Listing this dataset would be an error, too."""
    for split in ("train", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
    options = [str(demo()[0]) if word == "WHOLE" else word for word in options]
    command = tiny(tmp_path / "run", "--data.root", str(tmp_path / "data"), *options)
    line = error_line(run(command, env={"JAX_PLATFORMS": "cpu"}))
    assert problem in line
    assert fix in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("platform", ["cuda", "absent"])
def test_a_platform_that_jax_does_not_find_is_one_line(platform: str, tmp_path: Path) -> None:
    """The tests above unset or change it, which is the fix."""
    line = error_line(run(tiny(tmp_path / "run"), env={"JAX_PLATFORMS": platform}))
    assert f"JAX does not start with JAX_PLATFORMS={platform}" in line
    assert "unset it, or run doctor.py" in line
