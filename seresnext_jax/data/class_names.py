"""The names of the classes: those stored with the weights, or ImageNet's.

imagenet_classes.json is the original's list (NVIDIA: LOC_synset_mapping.json): the words of
ImageNet's 1,000 WordNet synsets, under WordNet's licence (NOTICE). It calls both class 134, the
bird, and class 517, the machine, crane.
"""

import json
from functools import cache
from importlib.resources import files


@cache
def imagenet_names() -> tuple[str, ...]:
    """The 1,000 classes of ImageNet-1k in the order of their sorted WordNet ids."""
    text = (files("seresnext_jax.data") / "imagenet_classes.json").read_text(encoding="utf-8")
    return tuple(json.loads(text))


def names_for(num_classes: int, stored: tuple[str, ...] | None) -> tuple[str, ...]:
    """The stored names; otherwise ImageNet's if there are 1,000 classes, or plain numbers.

    The WordNet ids that name ImageNet's class folders are replaced by ImageNet's names.
    """
    if stored and not (num_classes == 1000 and stored[0] == "n01440764"):
        return stored
    if num_classes == 1000:
        return imagenet_names()
    return tuple(f"class {index}" for index in range(num_classes))
