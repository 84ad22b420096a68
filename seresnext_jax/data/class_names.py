"""What the classes are called: the names stored with the weights, or ImageNet's.

imagenet_classes.json is the list of the original (NVIDIA: LOC_synset_mapping.json): the words of
ImageNet's 1,000 WordNet synsets, under WordNet's licence (NOTICE). Both classes 134, the bird, and
517, the machine, are called crane in it.
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
    """The stored names; else ImageNet's where there are 1,000 classes; else plain numbers.

    WordNet ids, which an ImageNet folder's classes are named by, count as no names.
    """
    if stored and not (num_classes == 1000 and stored[0] == "n01440764"):
        return stored
    if num_classes == 1000:
        return imagenet_names()
    return tuple(f"class {index}" for index in range(num_classes))
