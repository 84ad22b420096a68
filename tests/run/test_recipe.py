"""The deviations of a run from its recipe."""

from dataclasses import replace

from configs import dgxa100_amp_90e
from seresnext_jax.cli import load_recipe, parse_config
from seresnext_jax.config import Config
from seresnext_jax.report.history import RunStart
from seresnext_jax.run.recipe import find_deviations, recipe_rows


def deviations(*words: str) -> dict[str, object]:
    """The deviations of a command line from the 90-epoch recipe."""
    argv = ["--config", "dgxa100_amp_90e", *words]
    _, recipe = load_recipe(argv)
    return find_deviations(recipe, parse_config(argv, program="train.py", description=""))


def test_an_option_that_changes_the_weights_is_a_deviation() -> None:
    assert deviations("--batch-size", "64", "--data.backend", "synthetic", "--seed", "1") == {
        "data.backend": {"recipe": "dali-cpu", "run": "synthetic"},
        "batch_size": {"recipe": 128, "run": 64},
        "seed": {"recipe": 0, "run": 1},
    }


def test_where_a_run_is_and_what_it_saves_are_no_deviations() -> None:
    words = "--workspace w --data.root d --data.workers 3 --checkpoint.keep 2 --resume auto"
    more = "--data.index i --print-freq 7 --run-epochs 1"
    assert deviations(*words.split(), *more.split()) == {}


def test_without_a_config_the_defaults_are_the_recipe() -> None:
    assert load_recipe(["--seed", "3"]) == ("", Config())
    changed = replace(Config(), mixup=0.2)
    assert find_deviations(Config(), changed) == {"mixup": {"recipe": 0.0, "run": 0.2}}
    assert load_recipe(["--config=dgxa100_amp_90e"])[1] == dgxa100_amp_90e.get_config()


def test_the_table_at_the_end() -> None:
    start = RunStart(0, 1, {}, recipe="a.py", deviations={})
    assert recipe_rows(start) == [("recipe", "a.py, unchanged")]
    changed = {
        "optim.lr_per_256": {"recipe": 0.256, "run": 0.1},
        "use_ema": {"recipe": None, "run": 1},
    }
    assert recipe_rows(replace(start, recipe="", deviations=changed)) == [
        ("recipe", "the default options, except for"),
        ("", "--optim.lr-per-256: 0.1 (recipe: 0.256)"),
        ("", "--use-ema: 1 (recipe: none)"),
    ]
