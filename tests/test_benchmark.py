"""What benchmark.py counts and prints; how fast anything is, no test asks."""

import json
import math
import sys
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import jax
import pytest
from PIL import Image

import benchmark
from benchmarks import process, programs, suite
from benchmarks.flops import PEAK_TFLOPS, forward_macs
from benchmarks.input import PHOTOGRAPHS, open_loader, with_classes
from benchmarks.measure import against, waiting
from benchmarks.process import Facts, Process, Task
from benchmarks.profile import kind_rows
from benchmarks.table import Row
from seresnext_jax.config import Config, DataConfig, ModelConfig
from seresnext_jax.data.files import list_folder
from seresnext_jax.data.pack import pack_split
from seresnext_jax.errors import UserError
from seresnext_jax.mesh import make_mesh
from seresnext_jax.model.network import ARCHITECTURES
from tests import one_block
from tests.programs import done, error_line, run, shared


@pytest.mark.parametrize(
    ("arch", "giga_macs"),
    [
        ("resnet18", 1.814),
        ("resnet50", 4.089),
        ("resnet152", 11.514),
        ("resnext50-32x4d", 4.23),
        ("resnext101-32x8d", 16.414),
    ],
)
def test_the_arithmetic_is_what_torchvision_publishes(arch: str, giga_macs: float) -> None:
    macs = forward_macs(ARCHITECTURES[arch], num_classes=1000, image_size=224)
    assert macs / 1e9 == pytest.approx(giga_macs, rel=2e-3)


def test_only_known_devices_have_a_peak() -> None:
    assert PEAK_TFLOPS["NVIDIA H100 80GB HBM3"]["bf16"] == 989
    assert "bf16" not in PEAK_TFLOPS["Tesla V100-SXM2-16GB"]
    assert "cpu" not in PEAK_TFLOPS


def test_inference_beside_pytorch(tmp_path: Path) -> None:
    """The table and the JSON have the same row, with rates, latencies and the ratio."""
    words = "infer --model.arch se-resnext-tiny --data.image-size 32 --batch-sizes 2 --steps 3"
    more = [
        "--warmup",
        "0",
        "--against",
        "torch",
        "--json",
        str(tmp_path / "a.json"),
        "--compilation-cache",
        "",
    ]
    out = done(["benchmark.py", *words.split(), *more]).stdout
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["machine"]["jax"] in out.splitlines()[0]
    assert [row["batch"] for row in found["rows"]] == [2]
    for row in found["rows"]:
        assert 0 < row["p50 ms"] <= row["p90 ms"] <= row["p95 ms"] <= row["p99 ms"]
        assert row["img/s"] == pytest.approx(1e3 * row["batch"] / row["p50 ms"])
        assert row["jax / torch"] > 0 and row["torch img/s"] > 0
        assert row["TFLOP/s"] > 0 and row["GB/s"] > 0 and row["MFU"] is None
        assert f"{row['img/s']:.4g}" in out


def test_training_on_real_images_shows_what_waiting_for_them_costs(tmp_path: Path) -> None:
    words = "train --model.arch se-resnext-tiny --data.image-size 32 --batch-sizes 4 --steps 3"
    options = [
        "--warmup",
        "1",
        "--data.root",
        str(shared() / "digits"),
        "--json",
        str(tmp_path / "a.json"),
    ]
    done(["benchmark.py", *words.split(), *options, "--compilation-cache", str(shared() / "cache")])
    (row,) = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert row["compute img/s"] > row["img/s"] > 0
    assert 0 < row["waiting"] < 1


def test_the_training_step_is_that_of_the_whole_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The options that change the step reach the function that train.py compiles it with."""
    config = replace(one_block.get_config(), batch_size=2, use_ema=0.9, mixup=0.2)
    config = replace(config, optim=replace(config.optim, freeze_backbone=True))
    seen = []

    def lower(apply: object, config: Config, *rest: object, passes: int) -> None:
        seen.append((config, passes))
        raise UserError("seen")

    monkeypatch.setattr(programs, "lower_train_step", lower)
    with pytest.raises(UserError, match="seen"):
        programs.jax_training(Task("jax", "train", config))
    ((given, passes),) = seen
    assert passes == 1
    assert replace(given, data=config.data) == config
    assert replace(given.data, backend=config.data.backend) == config.data


def test_training_on_packed_images_has_their_classes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = list_folder(shared() / "digits" / "train", lambda line: None).files
    pack_split(
        files,
        tmp_path / "train",
        images_per_shard=100,
        shuffled=True,
        progress=lambda done, total: None,
    )
    config = replace(one_block.get_config(), batch_size=2)
    data = replace(config.data, backend="folder", root=str(tmp_path), image_size=32)
    seen = []

    def lower(apply: object, config: Config, *rest: object, passes: int) -> None:
        seen.append(config.model.num_classes)
        raise UserError("seen")

    monkeypatch.setattr(programs, "lower_train_step", lower)
    with pytest.raises(UserError, match="seen"):
        programs.jax_training(Task("jax", "train", replace(config, data=data)))
    assert seen == [len(files.class_names)]


def test_waiting_for_images_is_not_computing() -> None:
    row = waiting([1.0, 2.0, 1.0], [0.5, 1.5, 0.5], images=8)
    assert row == {"compute img/s": 16.0, "waiting": 0.625}
    # Turns of two steps, whose seconds are those of a step on average.
    row = waiting([1.0, 2.0], [0.25, 0.75, 1.0, 2.0], images=8)
    assert row == {"compute img/s": 16.0, "waiting": pytest.approx(2 / 3)}


def test_the_ratio_is_that_of_steps_side_by_side() -> None:
    """Here each step is twice as fast as PyTorch's, while the machine slows down threefold."""
    timings = {"jax": [1.0, 1.0, 3.0], "torch": [2.0, 6.0, 6.0]}
    assert against(timings, images=8) == {"torch img/s": 8 / 6, "jax / torch": 2.0}
    assert against({"jax": [1.0]}, images=8) == {}


def test_operations_of_a_profile_by_kind() -> None:
    operations = {
        "cudnn-conv": 4.0,
        "loop_convert_fusion": 2.0,
        "input_reduce_fusion": 1.0,
        "gemm_fusion_dot": 0.5,
        "cudnn-conv-bw-filter": 2.0,
        "all-reduce-start": 0.25,
        "what": 0.25,
    }
    rows = {row["kind"]: row for row in kind_rows(operations)}
    assert {kind: row["ms"] for kind, row in rows.items()} == {
        "convolutions": 6.0,
        "elementwise": 2.0,
        "reductions": 1.0,
        "matrix products": 0.5,
        "communication": 0.25,
        "other": 0.25,
    }
    assert rows["convolutions"]["largest"] == "cudnn-conv"
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)


def test_the_gpu_suite_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first round always runs; what there is no time for is named."""
    monkeypatch.setattr(suite, "ROUNDS", (("train", "fp32", 2), ("infer", "fp32", 1)))
    monkeypatch.setattr(suite, "TRAINING", replace(suite.TRAINING, rounds=1, steps=2, warmup=1))
    model, data = ModelConfig("se-resnext-tiny"), DataConfig(image_size=32)
    base = Config(model=model, data=data, compilation_cache="")
    *_, last = suite.run_suite(base, minutes=0.02)
    (row,) = last.rows
    assert (row["work"], row["precision"], row["batch"]) == ("train", "fp32", 2)
    assert row["img/s"] > 0 and row["jax / torch"] > 0
    assert sum(line["share"] for line in last.profiles) == pytest.approx(1)
    assert last.left_out == ["infer fp32 batch 1"] and last.failed == []


@pytest.mark.parametrize(
    ("option", "cause"),
    [("--devices 99", "--devices 99"), ("--data.root /nowhere", "/nowhere is not a folder")],
)
def test_a_program_that_cannot_start_gives_one_line(option: str, cause: str) -> None:
    words = f"train --model.arch se-resnext-tiny --data.image-size 32 --batch-sizes 2 {option}"
    line = error_line(run(["benchmark.py", *words.split()]))
    assert line.startswith("error: jax train fp32 batch 2: ") and cause in line


def test_a_broken_image_is_one_line_and_its_fix_works(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    for index in range(4):
        Image.new("RGB", (40, 40), (60 * index, 0, 0)).save(folder / f"{index}.png")
    (folder / "broken.jpg").write_text("no image")
    words = "data --data.image-size 32 --batch-sizes 2 --steps 3 --warmup 0 --data.workers 1"
    command = ["benchmark.py", *words.split(), "--data.root", str(tmp_path)]
    line = error_line(run(command))
    assert "broken.jpg: " in line and "--data.on-bad-image skip" in line
    done([*command, "--data.on-bad-image", "skip", "--against", "torch"])


@pytest.mark.parametrize("source", ["--files 40", ""])
def test_listing_and_feeding_are_measured_without_decoding(source: str, tmp_path: Path) -> None:
    words = f"data --no-decode {source} --batch-sizes 8 --steps 3 --json {tmp_path / 'rows.json'}"
    done(["benchmark.py", *words.split()])
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["images"] for row in rows] == [40 if source else PHOTOGRAPHS] * 2
    assert [row["start"] for row in rows] == ["listed", "from the index"]
    assert all(row["first time img/s"] > 0 and row["then img/s"] > 0 for row in rows)


def test_processes_of_one_host_are_measured_together(tmp_path: Path) -> None:
    words = "data --processes 1 2 --devices 2 --batch-sizes 4 --steps 2 --warmup 0"
    done(["benchmark.py", *words.split(), "--json", str(tmp_path / "rows.json")])
    one, two = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (one["processes"], one["devices of each"]) == (1, 2)
    assert (two["processes"], two["devices of each"]) == (2, 1)
    assert two["threads of each"] == -(-one["threads of each"] // 2)
    assert one["img/s of all"] > 0 and two["img/s of all"] > 0
    line = error_line(run(["benchmark.py", *words.replace("1 2", "3").split()]))
    assert "2 devices do not divide over 3 processes: give --devices 3" in line


def test_what_gpus_need_follows_from_the_rates(tmp_path: Path) -> None:
    words = "data --data.image-size 32 --batch-sizes 8 --steps 2 --warmup 0 --data.workers 2"
    more = f"--rate 100 --devices 1 8 --json {tmp_path / 'rows.json'}"
    done(["benchmark.py", *words.split(), *more.split()])
    found = json.loads((tmp_path / "rows.json").read_text())
    rates = {row["backend"]: row["img/s per worker"] for row in found["rows"]}
    one, eight = (row for row in found["needs"] if row["backend"] == "dali-cpu")
    assert (one["img/s"], eight["img/s"]) == (100, 800)
    assert eight["workers"] == math.ceil(800 / rates["dali-cpu"])
    assert eight["disk MB/s"] == pytest.approx(8 * one["disk MB/s"])
    assert 1 < one["disk MB/s"] < 30, "a photograph of 500 x 375 has 10 to 300 kB"


def never_ready(task: Task, pipe: Connection, share_gpu: bool) -> None:
    """A child that dies while it gets ready."""
    sys.exit(7)


def ready_once(task: Task, pipe: Connection, share_gpu: bool) -> None:
    """A child that dies between two requests."""
    pipe.send(Facts("cpu", 1.0))
    sys.exit(7)


def test_a_program_that_dies_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it gets ready, or between two requests."""
    monkeypatch.setattr(process, "serve", never_ready)
    with closing(Process(Task("jax", "train", Config()), share_gpu=False)) as program:
        with pytest.raises(UserError, match="jax train fp32 batch 128 ended with status 7"):
            program.ask("time_each", 1)
    monkeypatch.setattr(process, "serve", ready_once)
    with closing(Process(Task("jax", "train", Config()), share_gpu=False)) as program:
        assert program.facts().device == "cpu"
        with pytest.raises(UserError, match="ended with status 7"):
            program.ask("time_each", 1)


def test_a_round_that_fails_does_not_end_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(task: Task, effort: object) -> tuple[Row, list[Row]]:
        if task.work == "infer":
            raise UserError("out of memory")
        return {"device": "NVIDIA H100 80GB HBM3", "img/s": 1.0}, [{"kind": "other", "ms": 1.0}]

    monkeypatch.setattr(suite, "measure", measure)
    monkeypatch.setattr(suite, "gpu_tests_pass", lambda: False)
    rounds = (("train", "fp16", 128), ("infer", "fp16", 1), ("train", "bf16", 128))
    monkeypatch.setattr(suite, "ROUNDS", rounds)
    *_, last = suite.run_suite(Config(), minutes=1)
    assert len(last.rows) == 2 and last.left_out == []
    assert last.failed == ["the tests that need a GPU", "infer fp16 batch 1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("data --processes 0", "--processes and --data.workers must be at least 1"),
        ("data --data.workers 0", "--processes and --data.workers must be at least 1"),
        ("train --json absent/a.json", "--json absent/a.json: its folder does not exist"),
    ],
)
def test_a_wrong_option_is_refused_at_once(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        benchmark.main(words.split())


def test_too_few_images_are_refused_with_a_fix_that_works() -> None:
    data = DataConfig(root=str(shared() / "digits"), backend="folder", image_size=32, index="")
    mesh = make_mesh(jax.devices()[:1])
    config = with_classes(Config(batch_size=10**5), data)
    with pytest.raises(UserError, match="do not fill a batch of 100000: lower --batch-sizes"):
        open_loader(config, mesh)
    open_loader(replace(config, batch_size=8), mesh).close()
