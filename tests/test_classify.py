"""classify.py in this process: which images, which names, what it prints and returns."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

import classify
from seresnext_jax.data.class_names import imagenet_names, names_for
from seresnext_jax.data.normalize import normalize
from seresnext_jax.errors import UserError
from seresnext_jax.weights.folder import write_weights_folder
from seresnext_jax.weights.identify import network
from seresnext_jax.weights.info import Weights, WeightsInfo
from seresnext_jax.weights.state_dict import to_state_dict

NAMES = ("red", "green", "blue\x1b[2J")
SIZE = 32


@pytest.fixture(scope="module")
def variables() -> dict[str, Any]:
    """Random, and such that the logits stay small."""
    model = network("se-resnext-tiny", 3)
    image = jnp.zeros((1, 32, 32, 3))
    shapes: Any = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
    rng = np.random.default_rng(0)

    def draw(x: Any) -> np.ndarray:
        inputs = np.prod(x.shape[:-1])
        low, high = (0.5, 1.0) if x.ndim == 1 else (-(inputs**-0.5), inputs**-0.5)
        return rng.uniform(low, high, x.shape).astype(np.float32)

    return jax.tree.map(draw, shapes)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, variables: dict[str, Any]) -> Path:
    folder = tmp_path_factory.mktemp("classify") / "weights"
    info = WeightsInfo("se-resnext-tiny", 3, NAMES, image_size=SIZE, eval_margin=0)
    write_weights_folder(folder, Weights(variables, info))
    return folder


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compilation cache of the tests' process stays as it is."""
    monkeypatch.setattr(classify.runtime, "use_compilation_cache", lambda folder: None)


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the network's place: the share of each channel in the pixels."""

    def make_predict(*_: Any) -> Callable[[np.ndarray], np.ndarray]:
        return lambda images: (
            images.mean((1, 2)) / np.maximum(images.mean((1, 2)).sum(1), 1)[:, None]
        )

    monkeypatch.setattr(classify, "make_predict", make_predict)


def picture(path: Path, colour: Any, mode: str = "RGB") -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.new(mode, (40, 30), colour).save(path)
    return path


def run(weights: Path, *words: object) -> int:
    return classify.main(["--weights", str(weights), *(str(word) for word in words)])


@pytest.mark.usefixtures("colours")
def test_names_and_order(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = picture(tmp_path / "a.png", (30, 0, 90)), picture(tmp_path / "b.png", (200, 40, 0))
    assert run(weights, "--topk", "2", b, a) == 0
    assert capsys.readouterr().out.splitlines() == [
        *(str(b), "   83.3 %  red", "   16.7 %  green"),
        *(str(a), r"   75.0 %  blue\x1b[2J", "   25.0 %  red"),
    ]


@pytest.mark.usefixtures("colours")
def test_names_from_a_file(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, names = picture(tmp_path / "a.png", (200, 40, 0)), tmp_path / "names.json"
    names.write_text('{"0": "rouge", "1": "vert", "2": "bleu"}')
    assert run(weights, "--topk", "1", "--class-names", names, image) == 0
    assert capsys.readouterr().out.splitlines()[1] == "   83.3 %  rouge"
    names.write_text('["one", "two"]')
    with pytest.raises(UserError, match="has 2 names, but the weights have 3 classes"):
        run(weights, "--class-names", names, image)


@pytest.mark.usefixtures("colours")
def test_the_size_for_a_torch_file_is_said(
    tmp_path: Path, variables: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    info = WeightsInfo("se-resnext-tiny", 3, kind="torch state dict")
    write_weights_folder(tmp_path / "w", Weights(variables, info))
    image = picture(tmp_path / "a.png", (200, 40, 0))
    assert run(tmp_path / "w", image) == 0
    assert "resized to 256 and cropped to 224 pixels" in capsys.readouterr().err
    assert run(tmp_path / "w", "--data.image-size", "32", "--data.eval-margin", "0", image) == 0
    assert not capsys.readouterr().err


@pytest.mark.usefixtures("colours")
def test_json_of_several_batches(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [picture(tmp_path / f"{i}.png", (10 + i, 0, 0)) for i in range(5)]
    out = tmp_path / "out.jsonl"
    assert run(weights, "--json", out, "--batch-size", "2", *files) == 0
    assert "100.0 %  red" in capsys.readouterr().out
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [result["image"] for result in results] == [str(file) for file in files]
    for result in results:
        assert result["classes"][0] == {"index": 0, "name": "red", "probability": 1.0}
        assert len(result["classes"]) == 3


@pytest.mark.usefixtures("colours")
def test_a_folder_is_searched_for_what_pillow_opens(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "holiday"
    wanted = [
        picture(folder / "a.GIF", 0, "L"),
        picture(folder / "b.png", (1, 2, 3)),
        picture(folder / "c.jfif", (1, 2, 3)),
        picture(folder / "deeper" / "d.tga", (1, 2, 3)),
    ]
    picture(folder / ".hidden.png", 0)
    picture(folder / ".thumbnails" / "e.png", 0)
    (folder / "folder.png").mkdir()
    (folder / "notes.txt").write_text("no picture")
    assert run(weights, "--topk", "1", folder) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert shown == [str(path) for path in wanted]
    with pytest.raises(UserError, match="has no images"):
        run(weights, folder / "folder.png")


@pytest.mark.usefixtures("colours")
@pytest.mark.parametrize(
    ("mode", "colour", "name"),
    [
        ("L", 100, "red"),
        ("LA", (100, 0), "red"),
        ("CMYK", (255, 0, 255, 0), "green"),
        ("RGBA", (0, 200, 0, 3), "green"),
        ("P", 0, "red"),
        ("I;16", 40_000, "red"),
    ],
)
def test_every_mode_becomes_rgb(
    tmp_path: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    mode: str,
    colour: Any,
    name: str,
) -> None:
    file = picture(tmp_path / "a.tif", colour, mode)
    assert run(weights, "--topk", "1", file) == 0
    assert capsys.readouterr().out.endswith(f"{name}\n")


@pytest.mark.usefixtures("colours")
def test_an_undecodable_image_leaves_the_others_and_status_1(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    good = picture(tmp_path / "b.png", (9, 0, 0))
    assert run(weights, "--topk", "1", tmp_path) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [str(good), "  100.0 %  red"]
    (line,) = captured.err.splitlines()
    assert line.startswith(f"error: can't decode {tmp_path / 'a.jpg'}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no image was named"),
        (["absent.png"], "absent.png does not exist"),
        (["--topk", "0", "x"], "--topk"),
    ],
)
def test_a_wrong_command_is_one_line(weights: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(weights, *words)


def test_probabilities_are_the_networks_and_a_torch_file_is_taken(
    tmp_path: Path,
    weights: Path,
    variables: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    file = tmp_path / "a.png"
    Image.fromarray(pixels).save(file)
    logits: Any = jax.jit(network("se-resnext-tiny", 3).apply, static_argnames="train")(
        variables, normalize(jnp.asarray(pixels[None])), train=False
    )
    wanted = np.asarray(jax.nn.softmax(logits[0]))

    state = to_state_dict(variables, layout="ngc", prefix="module.")
    torch.save({k: torch.from_numpy(x) for k, x in state.items()}, tmp_path / "a.pth")
    sizes = ("--data.image-size", SIZE, "--data.eval-margin", 0)
    for words in ([weights], [tmp_path / "a.pth", *sizes]):
        assert run(*words, "--json", tmp_path / "out.jsonl", file) == 0
        classes = json.loads((tmp_path / "out.jsonl").read_text())["classes"]
        assert [c["index"] for c in classes] == np.argsort(-wanted).tolist()
        for c in classes:
            assert c["probability"] == pytest.approx(float(wanted[c["index"]]), rel=1e-5)


# ---- names -------------------------------------------------------------------------------------


def test_imagenets_names() -> None:
    names = imagenet_names()
    assert len(names) == 1000
    assert (names[0], names[999]) == (
        "tench, Tinca tinca",
        "toilet tissue, toilet paper, bathroom tissue",
    )
    assert len(set(names)) == 999, "the original's list has crane twice: the bird, and the machine"
    assert names[134] == names[517] == "crane"


def test_which_names_are_used() -> None:
    info = WeightsInfo("resnet18", 1000)
    assert names_for(info.num_classes, info.class_names) == imagenet_names()
    ids = ("n01440764", *(f"n{i:08}" for i in range(2_000_000, 2_000_999)))
    assert names_for(1000, replace(info, class_names=ids).class_names) == imagenet_names()
    assert names_for(2, ("cat", "dog")) == ("cat", "dog")
    assert names_for(2, None) == ("class 0", "class 1")


# ---- files that people bring -------------------------------------------------------------------

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)


@pytest.mark.usefixtures("colours")
def test_what_is_skipped_in_a_folder_is_one_line(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "a.png", (9, 0, 0))
    (tmp_path / "b.HEIC").write_bytes(HEIC)
    picture(tmp_path / "c.png", (9, 0, 0)).rename(tmp_path / "c")
    (tmp_path / "notes.txt").write_text("")
    assert run(weights, tmp_path) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "note: skipped 3 files without the suffix of an image that Pillow can read (.heic 1, .txt "
        "1, no suffix 1): convert HEIC and other formats to JPEG; name a file without suffix itself"
    ]
    # the fixes
    assert run(weights, tmp_path / "c") == 0
    (tmp_path / "b.HEIC").unlink()
    picture(tmp_path / "b.jpg", (9, 0, 0))
    (tmp_path / "c").unlink()
    assert run(weights, tmp_path) == 0, "a text was hardly meant as an image"


@pytest.mark.usefixtures("colours")
def test_an_image_in_a_format_that_is_not_read_is_named(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b.HEIC").write_bytes(HEIC)
    (tmp_path / "c.jpg").write_bytes(HEIC)
    with pytest.raises(UserError, match=r"has no images, only other files \(.heic 1\)"):
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "b.HEIC").write_bytes(HEIC)
        run(weights, tmp_path / "d")
    assert run(weights, tmp_path / "b.HEIC", tmp_path / "c.jpg") == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": its ")[2] for line in lines] == [
        "format (HEIF) is not supported: convert it to JPEG or PNG"
    ] * 2


@pytest.mark.usefixtures("colours")
def test_linked_folders_are_searched(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "a" / "x.png", (9, 0, 0))
    picture(tmp_path / "b" / "y.png", (9, 0, 0))
    (tmp_path / "a" / "more").symlink_to(tmp_path / "b")
    (tmp_path / "a" / "cycle").symlink_to(tmp_path)
    assert run(weights, "--topk", "1", tmp_path / "a") == 0
    assert capsys.readouterr().out.splitlines()[::2] == [
        str(tmp_path / "a" / name) for name in ("more/y.png", "x.png")
    ]


@pytest.mark.usefixtures("colours")
def test_photos_are_turned_upright_unless_told_otherwise(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (800, 400)).save(tmp_path / "a.jpg", exif=exif)
    seen: list[tuple[int, int]] = []

    def crop(self: Any, image: Image.Image) -> np.ndarray:
        seen.append(image.size)
        return np.zeros((SIZE, SIZE, 3), np.uint8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classify.CentreCrop, "__call__", crop)
        assert run(weights, tmp_path / "a.jpg") == 0
        assert run(weights, "--data.no-exif-orientation", tmp_path / "a.jpg") == 0
    assert seen == [(400, 800), (800, 400)]
    with pytest.raises(SystemExit):
        classify.main(["--help"])
    assert "upright" in capsys.readouterr().out


@pytest.mark.usefixtures("colours")
def test_a_name_that_is_not_utf8_is_escaped_and_the_rest_goes_on(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / os.fsdecode(b"caf\xe9.png"), (9, 0, 0))
    picture(tmp_path / "line\nbreak.png", (9, 0, 0))
    picture(tmp_path / "z.png", (9, 0, 0))
    (tmp_path / os.fsdecode(b"bad\xe9.png")).write_bytes(b"")
    out = tmp_path / "out.jsonl"
    assert run(weights, "--topk", "1", "--json", out, tmp_path) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[::2] == [
        rf"{tmp_path}/caf\udce9.png",
        rf"{tmp_path}/line\nbreak.png",
        f"{tmp_path}/z.png",
    ]
    assert captured.err.startswith(rf"error: can't decode {tmp_path}/bad\udce9.png: ")
    assert len(out.read_text(encoding="ascii").splitlines()) == 3
