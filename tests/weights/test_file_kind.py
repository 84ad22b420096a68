"""What a file is, told from its first bytes, and that the advice works."""

import bz2
import gzip
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from seresnext_jax.errors import UserError
from seresnext_jax.weights.file_kind import file_kind
from seresnext_jax.weights.read import open_source, read_weights
from tests.weights.conversion import StateDict, command, save_as, trained_like
from tests.weights.reading import read_torch_file


@pytest.fixture(scope="module")
def state() -> StateDict:
    """Not to be changed: tests share it."""
    return trained_like().state_dict()


def refusal(path: Path) -> str:
    """The line that says what a file or folder is."""
    with pytest.raises(UserError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert message.isprintable() and str(path) in message
    return message


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.pth.tar", "a.bin", "a", "a.html"])
def test_the_name_does_not_matter(tmp_path: Path, state: StateDict, name: str) -> None:
    file = tmp_path / name
    save_file(state, file)
    assert file_kind(file) == "safetensors"
    wanted = read_weights(file).variables["params"]["fc"]["bias"]
    for zip_format, kind in ((True, "zip"), (False, "pickle")):
        torch.save(state, file, _use_new_zipfile_serialization=zip_format)
        assert file_kind(file) == kind
        found = read_weights(file).variables["params"]["fc"]["bias"]
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("pack", "program"),
    [(gzip, "gunzip"), (bz2, "bunzip2"), (lzma, "unxz")],
    ids=["gz", "bz2", "xz"],
)
@pytest.mark.parametrize("name", ["a.pth.tar", "the file's.pth.gz"])
def test_a_compressed_file_is_unpacked_by_the_command(
    tmp_path: Path, state: StateDict, pack: object, program: str, name: str
) -> None:
    file = save_as(tmp_path / "plain", state)
    packed = tmp_path / name
    packed.write_bytes(pack.compress(file.read_bytes()))  # type: ignore[attr-defined]
    file.unlink()
    words = refusal(packed).partition(": run ")[2].removesuffix(" and give the new file")
    assert words.startswith(program)
    if not shutil.which(program):  # the message was checked; the command can't be run here
        pytest.skip(f"{program} is not installed")
    subprocess.run(words, shell=True, check=True)
    (unpacked,) = set(tmp_path.iterdir()) - {packed}
    assert read_weights(unpacked).info.num_classes == 7


def test_a_tar_archive_is_unpacked_by_the_command(
    tmp_path: Path, state: StateDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_as(tmp_path / "the base.pth", state)
    (tmp_path / "README").write_text("x")
    archive = tmp_path / "it's.pth.tar"
    with tarfile.open(archive, "w") as target:
        for name in ("README", "the base.pth"):
            target.add(tmp_path / name, f"runs/{name}")
    message = refusal(archive)
    assert "is a tar archive around runs/the base.pth" in message
    words = message.partition(": run ")[2].removesuffix(" and give that file")
    monkeypatch.chdir(tmp_path)
    subprocess.run(words, shell=True, check=True)
    assert read_weights(tmp_path / "runs" / "the base.pth").info.num_classes == 7


FOREIGN = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0d\nsize 9\n", "git lfs pull"),
    "page": (b"\xef\xbb\xbf\n <!doctype html>", "is a web page"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
    "json": (b'{"error": "not found"}', "is JSON text"),
    "index": (b'{\n  "metadata": {}, "weight_map": {}}', "is JSON text"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 99, "an HDF5 file, as Keras writes"),
    "npy": (b"\x93NUMPY\x01\0" + b"\0" * 99, "one numpy array"),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x052.1.0" + b"\0" * 99, "an ONNX model"),
    "saved model": (b"\x08\x01\x12\xd9\x0f\x0a" + b"\0" * 99, "a TensorFlow model"),
    "frozen graph": (
        b"\x0a\x31\x0a\x05input\x12\x0bPlaceholder" + b"\0" * 99,
        "a TensorFlow model",
    ),
    "tf index": (b"\0" * 40 + (0xDB4775248B80FB57).to_bytes(8, "little"), "TensorFlow checkpoint"),
    "tflite": (b"\x1c\0\0\0TFL3" + b"\0" * 99, "a TensorFlow Lite model"),
    "gguf": (b"GGUF\x03\0\0\0" + b"\0" * 99, "a GGUF file"),
    "zeros": (b"\0" * 4096, "an unfinished download"),
    "image": (b"\x89PNG\r\n\x1a\n" + b"\0" * 99, "an image"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + b"\0" * 99, "7-zip archive: unpack it"),
    "zstd": (b"\x28\xb5\x2f\xfd" + b"\0" * 99, "compressed with zstd: run unzstd -c"),
    "tar": (b"a" * 257 + b"ustar\x0000" + b"\0" * 248, "a damaged tar archive"),
    "text": (b"epoch,loss\n1,2.5\n", "is not a PyTorch file but text"),
    "noise": (bytes(range(255, 0, -1)), "is not a PyTorch file, or it is damaged"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_files_are_named_with_what_to_do(tmp_path: Path, kind: str, suffix: str) -> None:
    data, part = FOREIGN[kind]
    file = tmp_path / f"file{suffix}"
    file.write_bytes(data)
    message = refusal(file)
    assert part in message
    assert any(
        word in message for word in ("run ", "give ", "get ", "download ", "save ", "unpack")
    )


def test_archives_of_other_programs_are_named(tmp_path: Path, state: StateDict) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(2))
    assert "is a numpy .npz file" in refusal(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.keras", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", "x")
    assert "a Keras or TensorFlow model" in refusal(tmp_path / "b.keras")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    assert "without weights (a.txt, ...)" in refusal(tmp_path / "c.zip")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_weights_of_a_torchscript_program_are_saved_by_the_lines(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 3)).save(str(tmp_path / "a.pt"))
    message = refusal(tmp_path / "a.pt")
    assert "is a TorchScript program" in message
    lines = message[message.index("import torch;") :]
    subprocess.run([sys.executable, "-W", "ignore", "-c", lines], cwd=tmp_path, check=True)
    found = read_torch_file(tmp_path / "weights.pth").weights
    assert found is not None and list(found) == ["weight", "bias"]


def test_an_archive_whose_checksums_are_absent_is_read(tmp_path: Path, state: StateDict) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_weights(tmp_path / "a.pth").info.num_classes == 7


# ---- folders -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("with_config", [True, False])
def test_a_folder_of_the_hugging_face_hub(
    tmp_path: Path, state: StateDict, name: str, with_config: bool
) -> None:
    if with_config:
        (tmp_path / "config.json").write_text(json.dumps({"architecture": "x"}))
    (tmp_path / "README.md").write_text("x")
    if name == "model.safetensors":
        save_file(state, tmp_path / name)
        torch.save({}, tmp_path / "pytorch_model.bin")
    else:
        torch.save(state, tmp_path / name)
    info = read_weights(tmp_path).info
    assert (info.source, info.num_classes) == (name, 7)
    assert read_weights(tmp_path / name).info == info


def test_folders_that_are_not_clear(tmp_path: Path, state: StateDict) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("{}")
    assert "in several files: save them as one" in refusal(tmp_path)
    index.unlink()
    save_as(tmp_path / "b.pth", state)
    save_as(tmp_path / "a.bin", state)
    message = refusal(tmp_path)
    assert f"give the file inside ({tmp_path / 'a.bin'}, {tmp_path / 'b.pth'})" in message
    assert read_weights(tmp_path / "a.bin").info.num_classes == 7
    (tmp_path / "saved_model.pb").write_bytes(b"x")
    assert "it is a TensorFlow model" in refusal(tmp_path)


def test_a_part_of_a_weights_folder(tmp_path: Path, state: StateDict) -> None:
    command("to-flax", save_as(tmp_path / "a.pth", state), tmp_path / "weights")
    (tmp_path / "weights" / "model.safetensors").rename(tmp_path / "b.safetensors")
    assert "a part of a weights folder: give the folder" in refusal(tmp_path / "b.safetensors")


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="neither weights nor a checkpoint"):
        open_source(tmp_path / "pipe")


# ---- writing -----------------------------------------------------------------------------------


def test_to_torch_takes_the_format_from_the_name(tmp_path: Path, state: StateDict) -> None:
    file = save_as(tmp_path / "a.pth", state)
    words = ("to-torch", file, "--layout", "ngc")
    assert command(*words, tmp_path / "b.safetensors") == 0
    assert file_kind(tmp_path / "b.safetensors") == "safetensors"
    assert command(*words, tmp_path / "c.safetensors", "--safetensors") == 0
    assert command("verify", tmp_path / "b.safetensors", tmp_path / "c.safetensors") == 0
    for name in ("d.pth.tar", "d.pt", "d"):
        with pytest.raises(UserError, match="is not a name for safetensors") as caught:
            command(*words, tmp_path / name, "--safetensors")
        named = str(caught.value).partition("name it ")[2].partition(",")[0]
        assert command(*words, named, "--safetensors", "--force") == 0
        assert file_kind(Path(named)) == "safetensors"
    with pytest.raises(UserError, match="can't contain a training checkpoint: name it .*b.pth.tar"):
        command(*words, tmp_path / "b.safetensors", "--checkpoint")
    for option in ("--safetensors", "--ema"):
        with pytest.raises(UserError, match="goes with neither --safetensors nor --ema: leave"):
            command(*words, tmp_path / "e.pth", "--checkpoint", option)


def test_to_torch_replaces_a_file_only_by_force(tmp_path: Path, state: StateDict) -> None:
    file = save_as(tmp_path / "a.pth", state)
    words = ("to-torch", file, tmp_path / "b.pth", "--layout", "ngc")
    (tmp_path / "b.pth").write_text("precious")
    with pytest.raises(UserError, match="b.pth exists: give another name, or --force"):
        command(*words)
    assert (tmp_path / "b.pth").read_text() == "precious"
    assert command(*words, "--force") == 0
    assert command("verify", tmp_path / "b.pth", file) == 0
