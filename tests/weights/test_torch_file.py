"""Torch files: what is read, what is refused in one line, and that nothing in them runs."""

import os
import random
import re
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from seresnext_jax.errors import UserError
from seresnext_jax.weights.read import inspect_weights
from seresnext_jax.weights.torch_write import write_safetensors, write_torch_file
from tests.weights.reading import read_torch_file

STATE = OrderedDict(
    [
        ("bn1.weight", torch.tensor([1.0, -2.0])),
        ("bn1.num_batches_tracked", torch.tensor(7)),
        ("fc.weight", torch.arange(6.0).reshape(3, 2)),
    ]
)


def numpy_state() -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in STATE.items()}


def sgd_state() -> dict[str, Any]:
    """An optimizer state as the original leaves it after warm-up, its rate a numpy scalar."""
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = np.float64(0.5)
    return dict(optimizer.state_dict())


def assert_state(found: dict[str, Any] | None) -> None:
    assert found is not None
    assert list(found) == list(STATE)
    for name, array in numpy_state().items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


# ---- what is accepted --------------------------------------------------------------------------


@pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "before torch 1.6"])
def test_a_flat_state_dict(tmp_path: Path, zip_format: bool) -> None:
    torch.save(STATE, tmp_path / "a.pth.tar", _use_new_zipfile_serialization=zip_format)
    found = read_torch_file(tmp_path / "a.pth.tar")
    assert (found.kind, found.ema, found.dtypes) == ("state dict", None, ("float32",))
    assert_state(found.weights)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "before torch 1.6"])
def test_every_protocol_of_pickle(tmp_path: Path, zip_format: bool, protocol: int) -> None:
    content = {"state_dict": STATE, "epoch": np.int32(4), "table": np.arange(3)}
    file = tmp_path / "a.pth"
    torch.save(content, file, pickle_protocol=protocol, _use_new_zipfile_serialization=zip_format)
    found = read_torch_file(file)
    assert_state(found.weights)
    assert found.epoch == 4


@pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "before torch 1.6"])
def test_a_file_of_a_big_endian_machine(tmp_path: Path, zip_format: bool) -> None:
    numbers, file = torch.arange(6.0).reshape(2, 3), tmp_path / "a.pth"
    torch.save({"a": numbers}, file, _use_new_zipfile_serialization=zip_format)
    swapped = numbers.numpy().astype(">f4").tobytes()
    if zip_format:
        with zipfile.ZipFile(file) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in entries.items():
                data = b"big" if name.endswith("/byteorder") else data
                archive.writestr(name, swapped if "/data/" in name else data)
    else:
        head = file.read_bytes()[: -8 - len(swapped)]  # the number of elements and the elements
        head = re.sub(rb"(little_endianq.)\x88", b"\\1\x89", head)
        file.write_bytes(head + (6).to_bytes(8, "big") + swapped)
    weights = read_torch_file(file).weights
    assert weights is not None
    np.testing.assert_array_equal(weights["a"], numbers.numpy())


def test_a_safetensors_file_is_read(tmp_path: Path) -> None:
    save_file(dict(STATE), tmp_path / "a.safetensors")
    found = read_torch_file(tmp_path / "a.safetensors")
    assert found.weights is not None
    np.testing.assert_array_equal(found.weights["fc.weight"], STATE["fc.weight"].numpy())


def test_a_checkpoint_with_all_the_original_stores(tmp_path: Path) -> None:
    content = {
        "epoch": 90,
        "arch": ("se-resnext101-32x4d", "fanin", 1000),
        "state_dict": STATE,
        "best_prec1": 80.5,
        "optimizer": sgd_state(),
        "state_dict_ema": STATE,
    }
    torch.save(content, tmp_path / "a.pth.tar")
    found = read_torch_file(tmp_path / "a.pth.tar")
    assert (found.kind, found.epoch, found.best_prec1) == ("checkpoint", 90, 80.5)
    assert found.arch == ("se-resnext101-32x4d", "fanin", 1000)
    assert_state(found.weights)
    assert_state(found.ema)
    assert found.optimizer is not None
    assert found.optimizer["param_groups"][0]["lr"] == 0.5
    np.testing.assert_array_equal(found.optimizer["state"][0]["momentum_buffer"], [[1, 1]])


def test_a_numpy_1_scalar_is_read(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "best_prec1": np.float64(3)}, tmp_path / "new.pth")
    # The module's name is stored with its length in one byte: both must be changed.
    old, new = b"numpy.core.multiarray", b"numpy._core.multiarray"
    with zipfile.ZipFile(tmp_path / "new.pth") as source:
        parts = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(tmp_path / "old.pth", "w") as target:
        for name, data in parts.items():
            if name.endswith("data.pkl"):
                assert b"c" + new + b"\n" in data
                data = data.replace(b"c" + new + b"\n", b"c" + old + b"\n")
            target.writestr(name, data)
    assert read_torch_file(tmp_path / "old.pth").best_prec1 == 3


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_weights_under_a_usual_key_are_read(tmp_path: Path, key: str) -> None:
    torch.save({key: STATE}, tmp_path / "a.pt")
    assert_state(read_torch_file(tmp_path / "a.pt").weights)


@pytest.mark.parametrize("key", ["state_dict_ema", "ema_state_dict"])
def test_a_file_of_the_moving_average_only(tmp_path: Path, key: str) -> None:
    torch.save({key: STATE}, tmp_path / "a.pt")
    found = read_torch_file(tmp_path / "a.pt")
    assert found.weights is None
    assert_state(found.ema)


def test_bfloat16_is_widened_and_reported(tmp_path: Path) -> None:
    torch.save({"fc.bias": torch.tensor([1.5], dtype=torch.bfloat16)}, tmp_path / "a.pt")
    found = read_torch_file(tmp_path / "a.pt")
    assert found.dtypes == ("bfloat16",)
    assert found.weights is not None
    assert found.weights["fc.bias"].dtype == np.float32
    assert found.weights["fc.bias"] == 1.5


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [(3, 3), (3.0, 3), (torch.tensor(3), 3), (float("nan"), None), (torch.ones(2), None)],
)
def test_an_epoch_is_a_number_or_unknown(tmp_path: Path, stored: Any, wanted: int | None) -> None:
    torch.save({"state_dict": STATE, "epoch": stored, "best_prec1": stored}, tmp_path / "a.pt")
    found = read_torch_file(tmp_path / "a.pt")
    assert (found.epoch, found.best_prec1) == (wanted, wanted)


# ---- what is refused ---------------------------------------------------------------------------


def refusal(path: Path) -> str:
    """The one line that says why a file can't be read."""
    with pytest.raises(UserError) as caught:
        read_torch_file(path)
    message = str(caught.value)
    assert message.isprintable()
    assert str(path) in message
    return message


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zip_format", [True, False])
def test_a_malicious_file_runs_nothing(tmp_path: Path, zip_format: bool) -> None:
    trace = tmp_path / "trace"
    file = tmp_path / "evil.pth.tar"
    content = {**STATE, "x": Evil(trace)}
    torch.save(content, file, _use_new_zipfile_serialization=zip_format)
    with pytest.raises(UserError, match="would call posix.system when loaded"):
        read_torch_file(file)
    assert not trace.exists()
    torch.load(file, weights_only=False)
    assert trace.exists(), "the file is not malicious: the test proves nothing"


def test_a_refusal_names_the_object_and_lines_that_work(tmp_path: Path) -> None:
    file = tmp_path / "it's.pth"
    average = {name: tensor + 1 for name, tensor in STATE.items()}
    torch.save({"ema": average, "net": STATE, "head": torch.nn.Linear(1, 1)}, file)
    message = refusal(file)
    assert "would call torch.nn.modules.linear.Linear when loaded" in message
    run_lines(message, tmp_path)
    assert_state(read_torch_file(tmp_path / "weights.pth").weights)


@pytest.mark.parametrize("key", [None, "model"])
def test_a_whole_module_is_refused_with_lines_that_work(tmp_path: Path, key: str | None) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1, 2))
    torch.save({key: model, "epoch": 1} if key else model, tmp_path / "a.pth")
    message = refusal(tmp_path / "a.pth")
    assert "would call torch.nn.modules.container.Sequential" in message
    run_lines(message, tmp_path)
    found = read_torch_file(tmp_path / "weights.pth").weights
    assert found is not None and list(found) == ["0.weight", "0.bias"]


def run_lines(message: str, folder: Path) -> None:
    """Run the lines of Python that a refusal names."""
    lines = message[message.index("import torch;") :]
    subprocess.run([sys.executable, "-c", lines], cwd=folder, check=True)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.zeros(2, dtype=torch.float8_e4m3fn), "strided float8_e4m3fn"),
        (torch.zeros(2, dtype=torch.complex64), "strided complex64"),
        (torch.eye(2).to_sparse(), "sparse_coo float32"),
        (torch.zeros(2, device="meta"), "tensor on meta"),
    ],
    ids=["float8", "complex", "sparse", "meta"],
)
@pytest.mark.parametrize("where", ["weights", "optimizer"])
def test_tensors_that_numpy_lacks(
    tmp_path: Path, tensor: torch.Tensor, kind: str, where: str
) -> None:
    optimizer = {"state": {0: {"momentum_buffer": tensor}}, "param_groups": []}
    in_optimizer = {"state_dict": STATE, "optimizer": optimizer}
    torch.save({"fc.bias": tensor} if where == "weights" else in_optimizer, tmp_path / "a.pth")
    assert kind in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[2J", "layers.\N{SUPERSCRIPT TWO}.x", 5])
def test_names_that_can_not_be_printed(tmp_path: Path, name: Any) -> None:
    torch.save({name: torch.zeros(1)}, tmp_path / "a.pth")
    assert f"{name!a} is not the name of a tensor" in refusal(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "before torch 1.6"])
def test_changed_bytes_are_read_or_refused_in_one_line(tmp_path: Path, zip_format: bool) -> None:
    file = tmp_path / "a.pth"
    content = {"epoch": 3, "state_dict": STATE, "optimizer": sgd_state()}
    torch.save(content, file, _use_new_zipfile_serialization=zip_format)
    whole = file.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 2, 5))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        file.write_bytes(data)
        try:
            read_torch_file(file)
        except UserError as error:
            assert str(error).isprintable()
            refused += 1
    assert refused > 50


def bad_files(folder: Path) -> dict[str, str]:
    """Names of files below `folder` that can't be read, and a part of the message."""
    torch.save(STATE, folder / "whole.pth.tar")
    whole = (folder / "whole.pth.tar").read_bytes()
    torch.save(STATE, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    legacy = (folder / "legacy.pth").read_bytes()
    save_file(dict(STATE), folder / "whole.safetensors")
    tensors = (folder / "whole.safetensors").read_bytes()
    (folder / "folder").mkdir()
    contents = {
        "cut.pth.tar": (whole[: len(whole) // 2], "is truncated"),
        "cut_legacy.pth": (legacy[: len(legacy) // 2], "damaged"),
        "empty.pth.tar": (b"", "is empty"),
        "page.pth.tar": (b"\n<!DOCTYPE html><html>Sign in</html>", "is a web page"),
        "text.pth.tar": (b"hello world", "is not a PyTorch file"),
        "noise.pth.tar": (np.random.default_rng(0).bytes(5000), "is not a PyTorch file"),
        "cut.safetensors": (tensors[:-4], "is not a complete safetensors file"),
        "short.safetensors": (tensors[:4], "is not a complete safetensors file"),
    }
    for name, (data, _) in contents.items():
        (folder / name).write_bytes(data)
    with zipfile.ZipFile(folder / "download.zip", "w") as archive:
        archive.writestr("nvidia.pth.tar", whole)
    torch.save([1, 2], folder / "list.pth")
    torch.save({"epoch": 3}, folder / "numbers.pth")
    torch.save({"state_dict": {}}, folder / "nothing.pth")
    torch.jit.script(torch.nn.ReLU()).save(str(folder / "script.pt"))
    return {name: part for name, (_, part) in contents.items()} | {
        "folder": "is a folder",
        "missing.pth.tar": "No such file",
        "download.zip": "zip archive around nvidia.pth.tar: unpack it",
        "list.pth": "contains a list",
        "numbers.pth": "'epoch' is not the name of a tensor",
        "nothing.pth": "is empty",
        "script.pt": "TorchScript",
    }


def test_a_file_that_was_packed_again_is_refused(tmp_path: Path) -> None:
    """torch would take the compressed bytes for the numbers."""
    torch.save({"fc.weight": torch.zeros(100, 100)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as source,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert "packed again, with compression" in refusal(tmp_path / "b.pth")


@pytest.mark.parametrize(
    "epoch", [-1, 10**400, 10**9, True, torch.zeros((), device="meta"), torch.tensor(float("inf"))]
)
def test_an_epoch_that_can_not_be(tmp_path: Path, epoch: Any) -> None:
    torch.save({"state_dict": STATE, "epoch": epoch, "best_prec1": epoch}, tmp_path / "a.pth")
    found = read_torch_file(tmp_path / "a.pth")
    assert found.epoch in (None, 1)
    assert_state(found.weights)


def test_a_table_with_impossible_shapes_is_described(tmp_path: Path) -> None:
    huge = torch.zeros(1).expand(10**15, 2)
    tables = {"a": {"fc.weight": huge, "fc.bias": huge[:, 0]}, "b": {5: torch.ones(2, 2)}}
    torch.save(tables | {str(i): i for i in range(99)}, tmp_path / "a.pth")
    facts = inspect_weights(tmp_path / "a.pth")
    assert [table["name"] for table in facts["tables"]] == ["a", "b"]
    assert "contains several tables" in facts["problem"]
    assert f"python -m convert to-flax {tmp_path / 'a.pth'} weights --table a" in facts["problem"]
    assert facts["content"]["..."] == "59 more"


def test_a_tensor_that_is_larger_than_its_file(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1).expand(10**9, 2048)}, tmp_path / "a.pth")
    assert "(1000000000, 2048) that repeats fewer numbers" in refusal(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_every_bad_file_is_one_clear_line(tmp_path: Path) -> None:
    for name, part in bad_files(tmp_path).items():
        message = refusal(tmp_path / name)
        assert part in message, name
        assert len(message.replace(str(tmp_path), "")) < 200


# ---- writing -----------------------------------------------------------------------------------


def test_writing_and_reading_a_state_dict(tmp_path: Path) -> None:
    write_torch_file(tmp_path / "a.pth.tar", numpy_state())
    loaded = torch.load(tmp_path / "a.pth.tar", weights_only=True)
    assert list(loaded) == list(STATE)
    assert all(torch.equal(loaded[name], STATE[name]) for name in STATE)
    write_safetensors(tmp_path / "a.safetensors", numpy_state())
    found = read_torch_file(tmp_path / "a.safetensors").weights
    assert found is not None
    assert found.keys() == STATE.keys()


def test_nothing_is_left_where_writing_fails(tmp_path: Path) -> None:
    file = tmp_path / "a.pth.tar"
    file.write_bytes(b"earlier")
    with pytest.raises(AttributeError):
        write_torch_file(file, {"x": lambda: None})  # torch.save fails half-way
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth.tar"]
    assert file.read_bytes() == b"earlier"


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be written") as caught:
        write_torch_file(tmp_path / "absent" / "a.pth.tar", numpy_state())
    assert "\n" not in str(caught.value)
