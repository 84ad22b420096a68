"""The original's network in PyTorch, run directly from the tensors of a file.

This is the reference for `convert verify`, so it shares neither the mapping of names and axes nor
the network with other code: it infers blocks from the keys, groups from the shapes, and strides
from the position. NVIDIA: image_classification/models/resnet.py.
"""

import re
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seresnext_jax.data.normalize import IMAGENET_MEAN, IMAGENET_STD

Array = np.ndarray[Any, Any]
State = dict[str, Tensor]


@torch.inference_mode()
def extract_features(state: dict[str, Array], pixels: Array) -> dict[str, Array]:
    """The outputs of the stages and the logits, in evaluation mode and float32.

    Args:
      state: a state dict of one of the architectures, in any accepted spelling.
      pixels: (N, H, W, 3) uint8.

    Returns:
      ``layer1`` ... ``layer4`` (N, h, w, C) and ``classifier`` (N, num_classes).
    """
    stems = [name for name in state if name.endswith("conv1.weight")]
    prefix = min(stems, key=len).removesuffix("conv1.weight")
    weights = {
        _plain(name.removeprefix(prefix)): torch.from_numpy(array).float()
        for name, array in state.items()
    }
    mean, std = (255 * torch.tensor(x) for x in (IMAGENET_MEAN, IMAGENET_STD))
    x = ((torch.from_numpy(pixels).float() - mean) / std).permute(0, 3, 1, 2)
    x = F.relu(_norm(weights, "bn1", _conv(weights, "conv1", x, stride=2)))
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    features = {}
    for stage in range(4):
        block = 0
        while f"layers.{stage}.{block}.conv1.weight" in weights:
            stride = 2 if stage > 0 and block == 0 else 1
            x = _block(weights, f"layers.{stage}.{block}", x, stride)
            block += 1
        features[f"layer{stage + 1}"] = x.permute(0, 2, 3, 1).numpy()
    features["classifier"] = _linear(weights, "fc", x.mean((2, 3))).numpy()
    return features


def _plain(name: str) -> str:
    """A key without wrapper prefixes, and with ``layers.0`` for ``layer1``."""
    name = re.sub(r"^(module\.|_orig_mod\.)+", "", name)
    return re.sub(r"^layer([1-4])\.", lambda found: f"layers.{int(found[1]) - 1}.", name)


def _block(weights: State, at: str, x: Tensor, stride: int) -> Tensor:
    """A residual block; the first 3x3 convolution has the stride."""
    out, remaining = x, stride
    last = 3 if f"{at}.conv3.weight" in weights else 2
    for i in range(1, last + 1):
        step = remaining if weights[f"{at}.conv{i}.weight"].shape[-1] == 3 else 1
        remaining //= step
        out = _norm(weights, f"{at}.bn{i}", _conv(weights, f"{at}.conv{i}", out, step))
        out = out if i == last else F.relu(out)
    if f"{at}.downsample.0.weight" in weights:
        x = _norm(weights, f"{at}.downsample.1", _conv(weights, f"{at}.downsample.0", x, stride))
    if f"{at}.squeeze.squeeze.weight" in weights:
        hidden = F.relu(_linear(weights, f"{at}.squeeze.squeeze", out.mean((2, 3))))
        gate = torch.sigmoid(_linear(weights, f"{at}.squeeze.expand", hidden))
        out = out * gate[:, :, None, None]
    return F.relu(x + out)


def _conv(weights: State, at: str, x: Tensor, stride: int) -> Tensor:
    weight = weights[f"{at}.weight"]
    groups = x.shape[1] // weight.shape[1]
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)


def _norm(weights: State, at: str, x: Tensor) -> Tensor:
    kinds = ("running_mean", "running_var", "weight", "bias")
    mean, var, weight, bias = (weights[f"{at}.{kind}"] for kind in kinds)
    return F.batch_norm(x, mean, var, weight, bias, eps=1e-5)


def _linear(weights: State, at: str, x: Tensor) -> Tensor:
    """A linear layer, even if it is stored as a 1x1 convolution."""
    return F.linear(x, weights[f"{at}.weight"].flatten(1), weights[f"{at}.bias"])
