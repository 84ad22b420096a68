"""Checks whether a split's labels fit the network, the weights and the other split."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from seresnext_jax.data.class_names import listed
from seresnext_jax.data.files import FileList, subfolders
from seresnext_jax.data.formats import has_image_suffix
from seresnext_jax.errors import UserError, printable


def check_train(files: FileList, num_classes: int) -> FileList:
    """Check a training split for a network of `num_classes` classes; returns it unchanged.

    Raises:
      UserError: a class has no images, or the number of classes differs.
    """
    for problem in class_problems(files, num_classes):
        raise UserError(problem)
    return files


def label_val(files: FileList, num_classes: int, names: tuple[str, ...] | None) -> FileList:
    """A validation split with the labels of the network's classes; a class may have no images.

    Args:
      num_classes: the number of the network's classes.
      names: the class names in label order, if they are known; a class then needs no folder.

    Raises:
      UserError: there are no images, or the class folders or labels do not match the classes.
    """
    folder = files.folder
    if not files.class_names:  # shards with the labels themselves
        for problem in _label_problems(files, num_classes):
            raise UserError(problem)
    elif names is not None:
        files = _label_by_name(files, names)
    elif problem := _wrong_number(files.class_names, folder, num_classes):
        fix = "give --class-names FILE with the names of all classes in the order of the labels"
        if len(files.class_names) > num_classes:
            fix = "remove the folders that are not classes, or name other weights"
        raise UserError(_nested(folder, num_classes) or f"{problem}: {fix}")
    if not files.paths:
        raise UserError(f"{folder} has no images in its class folders: add images")
    return files


def empty_classes(files: FileList) -> list[str]:
    """The names of the classes that have no images; none if the classes have no names."""
    if not files.class_names:
        return []
    counts = np.bincount(files.labels, minlength=len(files.class_names))
    return [name for name, count in zip(files.class_names, counts, strict=True) if not count]


def _label_by_name(files: FileList, names: tuple[str, ...]) -> FileList:
    """The same images with the labels that `names` give to the class folders."""
    labels = {name: label for label, name in enumerate(names)}
    unknown = [name for name in files.class_names if name not in labels]
    if unknown:
        raise UserError(
            _nested(files.folder, len(names))
            or f"{files.folder} has class folders that are not classes of the weights "
            f"({listed(unknown)}; the classes are {listed(names)}): rename or remove them, or give "
            "--class-names FILE with the folders' names in the order of the labels"
        )
    twice = [name for name in files.class_names if names.count(name) > 1]
    if twice:
        raise UserError(
            f"several classes are called {listed(twice)}: give --class-names FILE with a different "
            "name for each class"
        )
    new = np.array([labels[name] for name in files.class_names], np.int32)
    return replace(files, labels=new[files.labels], class_names=names)


def _label_problems(files: FileList, num_classes: int) -> list[str]:
    """One line if the labels have no class names and the highest is too high for the network."""
    highest = int(files.labels.max(initial=-1))
    if highest < num_classes:
        return []
    return [
        f"{printable(files.folder)} has labels from 0 to {highest}, but the network has "
        f"{num_classes} classes: give --model.num-classes {highest + 1}, or name other weights"
    ]


def class_problems(files: FileList, num_classes: int) -> list[str]:
    """One line for each class folder without images, and those of `class_count_problems`."""
    problems = [
        f"class folder {printable(files.folder / name)} has no images: add images or remove "
        "the folder"
        for name in empty_classes(files)
    ]
    return problems + class_count_problems(files, num_classes)


def class_count_problems(files: FileList, num_classes: int) -> list[str]:
    """One line if the number of classes, or the highest label without names, does not fit."""
    if not files.class_names:
        return _label_problems(files, num_classes)
    return number_problems(files.class_names, files.folder, num_classes)


def number_problems(names: tuple[str, ...], folder: Path, num_classes: int) -> list[str]:
    """One line if a split for training has more or fewer classes than the network."""
    problem = _wrong_number(names, folder, num_classes)
    if not problem:
        return []
    fix = f"train with --model.num-classes {len(names)}, or fix the folder"
    return [_nested(folder, num_classes) or f"{problem}: {fix}"]


def _wrong_number(names: tuple[str, ...], folder: Path, num_classes: int) -> str:
    """What is wrong with the number of class folders; "" if nothing is."""
    if len(names) == num_classes:
        return ""
    folders = "1 class folder" if len(names) == 1 else f"{len(names)} class folders"
    return f"{printable(folder)} has {folders}, but the network has {num_classes} classes"


def _nested(folder: Path, num_classes: int) -> str:
    """A line on class folders that are one level too deep; "" if there are none."""
    outer = subfolders(folder)
    inner = [(name, found) for name in outer for found in subfolders(folder / name)]
    if len(inner) != num_classes and not (len(outer) == 1 and len(inner) > 1):
        return ""
    if any(has_image_suffix(name) for above in outer for name in os.listdir(folder / above)):
        return ""
    problem = _wrong_number(outer, folder, num_classes)
    here = printable(folder)
    below = f"the folders in {listed(outer)} are {len(inner)} ({listed(n for _, n in inner)})"
    if len(outer) > 1:
        return f"{problem}; {below}: move them into {here}, and remove the empty folders"
    one = printable(folder / outer[0])
    return (
        f"{problem}; {below}: move them into {here} and remove {one}, or give --data.root a new "
        f"folder in which {folder.name} is a link to {one}, and the other split likewise"
    )


def differing_classes(train: tuple[str, ...], val: tuple[str, ...]) -> list[str]:
    """Reasons why a label would mean different classes in the two splits; [] if there are none.

    One line on each split with class folders that the other one lacks, or one line if only one
    split has class names.
    """
    if bool(train) != bool(val):
        named, numbered = ("train", "val") if train else ("val", "train")
        return [
            f"{named}/ has class folders ({listed(train or val)}), but {numbered}/ has shards with "
            "numbers as labels (.cls), which may mean other classes: give both splits class "
            "folders, or both .cls files"
        ]
    train_only, val_only = (
        [name for name in a if name not in set(b)] for a, b in ((train, val), (val, train))
    )
    sides = (
        (train_only, "train/", "val/ (they may be empty there)"),
        (val_only, "val/", "train/"),
    )
    return [
        f"{len(names)} class folder(s) only in {here} ({listed(names)}): train/ and val/ must have "
        f"the same ones, so add them to {there} or remove them from {here}"
        for names, here, there in sides
        if names
    ]
