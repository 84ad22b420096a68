"""Compiling for a GPU that is not there: what is read of a program, and what a failure looks like.

XLA's GPU compiler itself runs in `make gpu-compile`; here its place is taken by small scripts.
"""

import json
import re
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import jax
import pytest

import benchmark
from benchmarks.flops import PEAK_TFLOPS
from benchmarks.gpu import compile as gpu_compile
from benchmarks.gpu import matrix
from benchmarks.gpu.compile import (
    Job,
    child_environment,
    compile_job,
    compiler_versions,
    last_words,
)
from benchmarks.gpu.targets import GPUS, target_config
from benchmarks.gpu.traffic import Kernel, by_kind, describe_collectives, read_kernels
from benchmarks.gpu.worker import lower
from seresnext_jax.cli import parse
from seresnext_jax.config import Config, ModelConfig
from seresnext_jax.config_files import load_config
from seresnext_jax.errors import UserError
from seresnext_jax.model.network import ARCHITECTURES
from seresnext_jax.training.precision import POLICIES
from tests import one_block

HLO = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f16[8,4]{1,0})->f16[8,4]{1,0}}

%fused_sum (p: f16[8,4]) -> f32[4] {
  %p = f16[8,4]{1,0} parameter(0)
  %wide = f32[8,4]{1,0} convert(%p)
  ROOT %sum = f32[4]{0} reduce(%wide, %zero), dimensions={0}, to_apply=%add
}

%fused_product (p.1: f16[8,4], q.1: f16[4,4]) -> f16[8,4] {
  %p.1 = f16[8,4]{1,0} parameter(0)
  %q.1 = f16[4,4]{1,0} parameter(1)
  ROOT %d = f16[8,4]{1,0} dot(%p.1, %q.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (t: (s32[], f32[4])) -> (s32[], f32[4]) {
  %t = (s32[], f32[4]{0}) parameter(0)
  %x = f32[4]{0} get-tuple-element(%t), index=1
  %next = f32[4]{0} fusion(%x), kind=kLoop, calls=%fused_next
  ROOT %out = (s32[], f32[4]{0}) tuple(%i, %next)
}

%called (c: f32[4]) -> f32[4] {
  %c = f32[4]{0} parameter(0)
  ROOT %copied = f32[4]{0} copy(%c)
}

ENTRY %main (a: f16[8,4], w: f16[4,4]) -> f16[8,4] {
  %a = f16[8,4]{1,0} parameter(0), metadata={op_name="a"}
  %w = f16[4,4]{1,0} parameter(1)
  %conv = (f16[8,4]{1,0}, u8[100]{0}) custom-call(%a, %w), custom_call_target="__cudnn$convForward", metadata={op_name="conv(1)"}
  %y = f16[8,4]{1,0} get-tuple-element(%conv), index=0
  %flat = f16[32]{0} bitcast(%y)
  %sums = f32[4]{0} fusion(%y), kind=kInput, calls=%fused_sum
  %product = f16[8,4]{1,0} fusion(%y, /*index=1*/%w), kind=kCustom, calls=%fused_product
  %wrapped_slice.1 = f16[2]{0} fusion(%flat), kind=kLoop, calls=%wrapped_slice_computation
  %start = (s32[], f32[4]{0}) tuple(%zero, %sums)
  %loop = (s32[], f32[4]{0}) while(%start), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %call = f32[4]{0} call(%sums), to_apply=%called
  ROOT %last = f16[8,4]{1,0} copy(%product)
}
"""  # noqa: E501
KERNELS = [
    Kernel("__cudnn$convForward", read=64 + 32, written=64 + 100),
    Kernel("reducing fusion", read=64, written=16),
    Kernel("gemm fusion", read=64 + 32, written=64),
    Kernel("fusion", read=4, written=4),  # a slice reads only what it takes
    *3 * [Kernel("fusion", read=16, written=16)],  # three iterations of the loop
    Kernel("copy", read=16, written=16),
    Kernel("copy", read=64, written=64),
]
DOCS = gpu_compile.ROOT / "docs" / "gpu-compile.md"
CHECK = "Check failed: size == dim_size (784 vs. 56)"


def test_traffic_is_what_each_kernel_reads_and_writes() -> None:
    assert read_kernels(HLO) == KERNELS


def test_kinds_are_summed_the_largest_first() -> None:
    assert by_kind(KERNELS) == {
        "__cudnn$convForward": (1, 260),
        "gemm fusion": (1, 160),
        "copy": (2, 160),
        "fusion": (4, 104),
        "reducing fusion": (1, 80),
    }


def test_collectives_that_run_beside_other_kernels_are_told_apart() -> None:
    """Newer XLA wraps an asynchronous operation; a pair of start and done may be synchronous."""
    hlo = """
%async_computation (p: f32[4]) -> f32[8] {
  %p = f32[4]{0} parameter(0)
  ROOT %g = f32[8]{0} all-gather(%p), dimensions={0}, backend_config={"is_sync":false}
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %r = f32[4]{0} all-reduce-start(%x), to_apply=%add, backend_config={"is_sync":false}
  %r.1 = f32[4]{0} all-reduce-done(%r)
  %s = f32[4]{0} all-reduce-start(%r.1), to_apply=%add, backend_config={"is_sync":true}
  %s.1 = f32[4]{0} all-reduce-done(%s)
  %g = ((f32[4]{0}), f32[8]{0}, s32[]) async-start(%s.1), calls=%async_computation
  %g.1 = f32[8]{0} async-done(%g)
  ROOT %t = f32[4]{0} all-reduce(%s.1), to_apply=%add, backend_config={"is_sync":true}
}
"""
    kernels = read_kernels(hlo)
    expected = "1 all-reduce (async), 2 all-reduce, 1 all-gather (async)"
    assert describe_collectives(kernels) == expected
    assert [kernel.bytes for kernel in kernels] == [32, 32, 48, 32]
    assert describe_collectives(KERNELS) == "-"


def test_a_text_that_is_not_a_program_is_refused() -> None:
    with pytest.raises(ValueError, match="no entry computation"):
        read_kernels("HloModule empty")


def test_targets_are_named_as_jax_names_the_device() -> None:
    for gpu in GPUS.values():
        assert gpu.name in PEAK_TFLOPS
        assert f'name: "{gpu.name}"' in target_config(gpu)
    assert "major: 9 minor: 0 feature_extension" in target_config(GPUS["h100"])


# ---- the child process -------------------------------------------------------------------------

WORKER = f"""
import json, os, pickle, resource, sys
sys.path.insert(0, os.getcwd())
job = pickle.load(sys.stdin.buffer)
if job.config.precision == "bf16":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("E1126 15:24:09.2  98 first.cc:1] not the last", file=sys.stderr)
    print("F1126 15:24:09.2  98 tiling.cc:703] {CHECK} ", file=sys.stderr, flush=True)
    os.abort()
if job.config.precision == "tf32":
    print(json.dumps(dict(seconds=0, temporary_bytes=0, error="XlaRuntimeError: INTERNAL: no")))
    sys.exit(1)
open(sys.argv[1], "w").write({HLO!r})
print(json.dumps(dict(seconds=1.5, temporary_bytes=2**21, error="")))
"""


def install(folder: Path, **versions: str) -> None:
    """Write the metadata of packages into a folder of the import path."""
    for name, number in versions.items():
        info = folder / f"{name}-{number}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Name: {name.replace('_', '-')}\nVersion: {number}\n")


@pytest.fixture
def fake_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler's packages, and in the worker's place one that fails as the precision says."""
    number = version("jaxlib")
    packages = {"jax_cuda12_plugin": number, "jax_cuda12_pjrt": number}
    install(tmp_path / "packages", **packages, nvidia_cuda_nvcc_cu12="12.9.86")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    monkeypatch.setattr(gpu_compile, "WORKER", (str(script),))


@pytest.mark.usefixtures("fake_worker")
def test_an_aborted_compiler_is_one_row_and_the_others_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "compile --model.arch se-resnext-tiny --gpu a100 --precisions fp16 bf16 tf32 fp32 --kinds"
    )
    files = ["--json", str(tmp_path / "a.json"), "--hlo", str(tmp_path / "new" / "hlo")]
    assert benchmark.main([*words.split(), "--programs", "train", *files]) == 1
    content = json.loads((tmp_path / "a.json").read_text())
    results = {row["precision"]: row["result"] for row in content["rows"]}
    assert results == {
        "fp16": "ok",
        "bf16": f"the compiler ended with SIGABRT: {CHECK} (tiling.cc:703)",
        "tf32": "XlaRuntimeError: INTERNAL: no",
        "fp32": "ok",
    }
    row = content["rows"][0]
    total = sum(kernel.bytes for kernel in KERNELS)
    assert (row["seconds"], row["temporary MiB"], row["kernels"]) == (1.5, 2.0, len(KERNELS))
    assert row["GB"] == total / 1e9
    assert row["least ms"] == pytest.approx(1e3 * total / (0.9 * 2.039e12), rel=1e-4)
    assert content["rows"][1]["GB"] is None
    assert {kind["kind"] for kind in content["kinds"]} == {k.kind for k in KERNELS}
    assert len(list((tmp_path / "new" / "hlo").glob("a100-train-se-resnext-tiny-*.hlo"))) == 2

    out = capsys.readouterr().out
    assert "2 of 4 programs compiled" in out
    for result in results.values():
        assert f"| {result} |" in out


@pytest.mark.usefixtures("fake_worker")
def test_where_everything_compiles_the_status_is_0() -> None:
    words = "compile --model.arch se-resnext-tiny --gpu t4"
    assert benchmark.main(words.split()) == 0


@pytest.mark.usefixtures("fake_worker")
def test_a_file_in_place_of_the_hlo_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "hlo").write_text("")
    with pytest.raises(UserError, match=r"^--hlo .*/hlo: File exists; give a folder$"):
        benchmark.main(["compile", "--hlo", str(tmp_path / "hlo")])


def jobs_of(words: str) -> list[Job]:
    """What `benchmark.py compile` would compile."""
    options = parse(benchmark.BenchmarkConfig(), words.split(), program="", description="")
    return benchmark.jobs(options)


@pytest.mark.parametrize(
    "line", re.findall(r"^python benchmark.py (compile.*)", DOCS.read_text("utf-8"), re.MULTILINE)
)
def test_a_command_of_the_docs_is_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(gpu_compile.ROOT)
    assert all(job.passes for job in jobs_of(line))


def test_passes_are_those_of_the_training_step() -> None:
    words = "--gpu t4 h100 --devices 1 8 --passes 1 2 --batch-sizes 4"
    found = [(j.gpu, j.program, j.devices, j.passes) for j in jobs_of(words)]
    assert found == [
        (gpu, program, devices, passes)
        for gpu in ("t4", "h100")
        for devices in (1, 8)
        for program, passes in (("train", 1), ("train", 2), ("eval", 1))
    ]


@pytest.mark.usefixtures("fake_worker")
def test_the_users_flags_reach_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_triton_gemm=false")
    environment = child_environment()
    assert environment["XLA_FLAGS"].startswith("--xla_gpu_autotune_level=0 --xla_gpu_cuda_data")
    assert environment["XLA_FLAGS"].endswith(" --xla_gpu_enable_triton_gemm=false")
    assert environment["JAX_PLATFORMS"] == "cpu"


@pytest.mark.parametrize(
    ("status", "output", "line"),
    [
        (-11, "W1126 1.2 3 a.cc:1] only a warning", "SIGSEGV: it logged no error"),
        (-9, "", "SIGKILL: it logged no error"),
        (3, "E0000 00:00:17.4 9 b.cc:2] bad\nTraceback", "exit status 3: bad (b.cc:2)"),
    ],
)
def test_an_end_without_a_result_is_one_line(status: int, output: str, line: str) -> None:
    assert last_words(status, output) == f"the compiler ended with {line}"


def test_a_plugin_of_another_version_is_one_line_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"jax_cuda{cuda}_{part}" for cuda in (12, 13) for part in ("plugin", "pjrt")]
    install(tmp_path, **dict.fromkeys(names, "0.1"))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as error:
        benchmark.main(["compile"])
    assert version("jaxlib") in str(error.value)
    assert "pip install -e '.[compile]'" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("fake_worker")
def test_the_worker_reports_an_exception_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real worker, with a job that fails before XLA."""
    monkeypatch.setattr(gpu_compile, "WORKER", ("-m", "benchmarks.gpu.worker"))
    job = Job("h100", "eval", Config(model=ModelConfig(arch="vgg16")), devices=1)
    outcome = compile_job(job, tmp_path / "a.hlo")
    assert "Error: " in outcome.error and "\n" not in outcome.error
    assert "Traceback" in outcome.output


@pytest.mark.usefixtures("fake_worker")
def test_the_versions_of_the_compiler_are_told() -> None:
    assert compiler_versions()["jax-cuda12-plugin"] == version("jaxlib")


# ---- the programs ------------------------------------------------------------------------------


def test_the_step_is_lowered_for_the_devices_and_passes_of_the_job() -> None:
    config = one_block.get_config()
    config = replace(config, batch_size=2, optimizer_batch_size=8, use_ema=0.9)
    job = Job("h100", "train", config, devices=2)
    lowered = lower(job, jax.devices()[:2])
    state, batch, _ = lowered.in_avals[0]
    assert batch.images.shape == (2, 4, 32, 32, 3)
    assert state.ema is not None
    lowered = lower(Job("h100", "eval", config, devices=2), jax.devices()[:2])
    assert lowered.in_avals[0][1].images.shape == (1, 4, 32, 32, 3)


def test_the_matrix_covers_all_that_it_promises() -> None:
    jobs = matrix.everything()
    configs = [job.config for job in jobs]
    archs = set(ARCHITECTURES) - {"one-block"}  # that of the tests
    assert {config.model.arch for config in configs} == archs
    assert {job.gpu for job in jobs} == set(GPUS)
    for gpu in ("h100", "a100"):
        here = [job for job in jobs if job.gpu == gpu]
        assert {job.config.precision for job in here} == set(POLICIES)
        assert {job.devices for job in here} == {1, 8}
        assert {job.passes for job in here} == {1, 2}
        assert {job.program for job in here} == {"train", "eval"}
    assert {config.mixup > 0 for config in configs} == {True, False}


def test_every_recipe_is_in_the_matrix_up_to_its_length_and_mixup() -> None:
    def program(config: Config) -> tuple[object, ...]:
        return (config.precision, config.batch_size, config.optimizer_batch_size)

    compiled = {program(job.config) for job in matrix.everything() if job.devices == 8}
    recipes = sorted((gpu_compile.ROOT / "configs").glob("*_*0e.py"))
    assert len(recipes) == 12
    for path in recipes:
        assert program(load_config(str(path))) in compiled, path.stem


def test_the_short_matrix_has_the_full_network_and_every_precision() -> None:
    jobs = matrix.short()
    full = [j.config.precision for j in jobs if j.config.model.arch == "se-resnext101-32x4d"]
    assert full == ["fp16", "tf32"]
    assert {job.config.precision for job in jobs} == set(POLICIES)
    assert {job.gpu for job in jobs} == set(GPUS)
