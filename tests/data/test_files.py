"""Class folders that do not fit: what the message says, and that its fix works."""

import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from seresnext_jax.config import Config, DataConfig, ModelConfig
from seresnext_jax.data.check import check_data
from seresnext_jax.data.classes import check_train, label_val
from seresnext_jax.data.files import FileList, class_folders
from seresnext_jax.data.open import open_splits
from seresnext_jax.errors import UserError
from seresnext_jax.mesh import make_mesh
from tests.data.loaders import list_images

NAMES = ("a", "b", "c")


def put_images(folder: Path, names: tuple[str, ...] = NAMES, number: int = 2) -> Path:
    """Class folders with small images; returns `folder`."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for index in range(number):
            colour = tuple(np.random.default_rng(index + ord(name[0])).integers(0, 256, 3).tolist())
            Image.new("RGB", (12, 10), colour).save(folder / name / f"{name}{index}.png")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        put_images(tmp_path / "data" / split)
    return tmp_path / "data"


def val_split(folder: Path, num_classes: int, names: tuple[str, ...] | None) -> FileList:
    """A validation split with its labels."""
    return label_val(list_images(folder), num_classes, names)


def open_run(root: Path, num_classes: int = 3) -> None:
    """Open both splits as train.py does."""
    config = Config(
        model=ModelConfig(num_classes=num_classes),
        data=DataConfig(root=str(root), backend="folder", image_size=8),
        batch_size=2,
    )
    for loader in open_splits(config, make_mesh(jax.devices()[:1])):
        assert loader is not None
        loader.close()


def refused(root: Path, num_classes: int = 3) -> str:
    """The message with which train.py refuses a data set."""
    with pytest.raises(UserError) as error:
        open_run(root, num_classes)
    return str(error.value)


# ---- labels by name ----------------------------------------------------------------------------


def test_labels_by_name(tmp_path: Path) -> None:
    files = val_split(put_images(tmp_path / "val", ("1", "10", "2"), 1), 3, ("1", "2", "10"))
    assert tuple(files.paths) == ("1/10.png", "10/100.png", "2/20.png")
    assert files.labels.tolist() == [0, 2, 1] and files.labels.dtype == np.int32
    assert files.class_names == ("1", "2", "10")


def test_a_class_may_be_missing_or_empty_if_the_names_are_known(tmp_path: Path) -> None:
    folder = put_images(tmp_path / "val", ("c", "a"), 1)
    (folder / "b").mkdir()
    assert val_split(folder, 4, ("a", "b", "c", "d")).labels.tolist() == [0, 2]
    assert val_split(folder, 3, None).labels.tolist() == [0, 2], "b has its rank, without images"


def test_an_unknown_folder_is_refused(tmp_path: Path) -> None:
    folder = put_images(tmp_path / "val", ("a", "x"))
    with pytest.raises(UserError, match=r"not classes of the weights \(x; the classes are a, b\)"):
        val_split(folder, 2, ("a", "b"))
    assert val_split(folder, 2, ("x", "a")).labels.tolist() == [1, 1, 0, 0]


def test_a_name_of_two_classes_is_refused(tmp_path: Path) -> None:
    folder = put_images(tmp_path / "val", ("a", "b"))
    with pytest.raises(UserError, match="several classes are called a: give --class-names"):
        val_split(folder, 3, ("a", "b", "a"))
    assert val_split(folder, 3, ("c", "b", "a")).labels.tolist() == [2, 2, 1, 1]


def test_too_few_and_too_many_folders_for_weights_without_names(tmp_path: Path) -> None:
    folder = put_images(tmp_path / "val")
    with pytest.raises(UserError, match="has 3 class folders, .* 4 classes: give --class-names"):
        val_split(folder, 4, None)
    assert set(val_split(folder, 4, ("z", "a", "b", "c")).labels.tolist()) == {1, 2, 3}
    with pytest.raises(UserError, match="has 3 class folders, .* 2 classes: remove the folders"):
        val_split(folder, 2, None)
    shutil.rmtree(folder / "c")
    assert set(val_split(folder, 2, None).labels.tolist()) == {0, 1}


def test_no_image_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images in its class folders: add images"):
        val_split(put_images(tmp_path / "val", number=0), 3, None)


# ---- training ----------------------------------------------------------------------------------


def test_val_without_a_class_needs_its_folder(root: Path) -> None:
    shutil.rmtree(root / "val/b")
    message = refused(root)
    assert "1 class folder(s) only in train/ (b)" in message
    assert "add them to val/ (they may be empty there) or remove them from train/" in message
    (root / "val/b").mkdir()
    with pytest.warns(UserWarning, match=r"no images of 1 of 3 classes \(b\)"):
        open_run(root)
    config = DataConfig(root=str(root), backend="folder")
    found = check_data(config, 3, lambda *_: None).problems
    assert not [problem for problem in found if "no images" in problem]


def test_the_other_fix_for_val_without_a_class(root: Path) -> None:
    for split in ("train", "val"):
        shutil.rmtree(root / split / "b")
    assert "train with --model.num-classes 2" in refused(root)
    open_run(root, num_classes=2)


def test_an_empty_class_of_train(root: Path) -> None:
    shutil.rmtree(root / "train/b")
    (root / "train/b").mkdir()
    assert "train/b has no images: add images or remove the folder" in refused(root)
    put_images(root / "train" / "b" / "deep", ("x",))
    open_run(root)


def test_a_class_only_in_val(root: Path) -> None:
    put_images(root / "val", ("d",))
    assert "only in val/ (d)" in refused(root)
    shutil.rmtree(root / "val/d")
    open_run(root)


# ---- a level too many --------------------------------------------------------------------------


def nest(root: Path, *levels: str) -> None:
    """Move the class folders of both splits into folders below, in turn."""
    for split in ("train", "val"):
        for index, name in enumerate(NAMES):
            target = root / split / levels[index % len(levels)]
            target.mkdir(exist_ok=True)
            (root / split / name).rename(target / name)


@pytest.mark.parametrize("num_classes", [3, 1000])
def test_one_folder_around_the_classes(root: Path, tmp_path: Path, num_classes: int) -> None:
    nest(root, "images")
    message = refused(root, num_classes)
    assert f"train has 1 class folder, but the network has {num_classes} classes" in message
    assert "the folders in images are 3 (a, b, c): move them into" in message
    link = re.search(r"folder in which train is a link to (\S+), and the other split", message)
    assert link
    new = tmp_path / "new"
    new.mkdir()
    (new / "train").symlink_to(link[1])
    (new / "val").symlink_to(root / "val/images")
    open_run(new)
    with pytest.raises(UserError, match="val has 1 class folder.* the folders in images are 3"):
        val_split(root / "val", num_classes, None)
    for split in ("train", "val"):
        for name in NAMES:
            (root / split / "images" / name).rename(root / split / name)
        (root / split / "images").rmdir()
    open_run(root)


def test_groups_of_classes(root: Path) -> None:
    nest(root, "animals", "plants")
    message = refused(root)
    assert "the folders in animals, plants are 3 (a, c, b): move them into" in message
    assert "and remove the empty folders" in message
    for split in ("train", "val"):
        for group in ("animals", "plants"):
            for name in (root / split / group).iterdir():
                name.rename(root / split / name.name)
            (root / split / group).rmdir()
    open_run(root)


def test_folders_inside_classes_are_not_classes(root: Path) -> None:
    """Each class has one folder with images, and there is one class too few."""
    for split in ("train", "val"):
        for name in NAMES:
            (root / split / name).rename(root / split / "part")
            (root / split / name).mkdir()
            (root / split / "part").rename(root / split / name / "part")
    open_run(root)
    assert "has 3 class folders, but the network has 4 classes: train with" in refused(root, 4)


@pytest.mark.parametrize("given", ["..", "train", "val"])
def test_data_root_one_level_off(root: Path, given: str) -> None:
    message = refused((root / given).resolve())
    found = re.search(r"is not a folder: give --data.root (\S+)$", message)
    assert found and Path(found[1]) == root
    open_run(Path(found[1]))


def test_a_split_of_another_name(root: Path) -> None:
    (root / "val").rename(root / "validation")
    message = refused(root)
    assert "val is not a folder" in message and "has train, validation" in message
    with pytest.raises(UserError, match="is not a folder"):
        class_folders(root / "gone" / "train")
    assert check_train(list_images(root / "train"), 3).class_names == NAMES
