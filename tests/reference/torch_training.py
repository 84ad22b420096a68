"""The original's training step in PyTorch: losses, mixup, accumulation, SGD, EMA, checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

StateDict = dict[str, Tensor]
Decay = Literal["nvidia-names", "no-bn", "all"]


def label_smoothing_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean of (1 - s)(-log p[label]) + s mean_c(-log p[c]); logits (N, C), labels (N,) integer."""
    nll = -F.log_softmax(logits, dim=1)
    true = nll.gather(1, labels[:, None])[:, 0]
    return ((1 - smoothing) * true + smoothing * nll.mean(1)).mean()


def multi_label_smoothing_loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """The same for targets that are distributions, (N, C) float32 (NLLMultiLabelSmooth)."""
    nll = -F.log_softmax(logits.float(), dim=1)
    return ((1 - smoothing) * (nll * targets).sum(1) + smoothing * nll.mean(1)).mean()


@dataclass(frozen=True)
class Mixup:
    """One draw for a batch: image i is mixed with image permutation[i]."""

    coefficient: float
    """Share of image i."""
    permutation: Tensor
    """(N,) int64."""

    def mix(self, x: Tensor) -> Tensor:
        """Mix the rows of (N, ...): images, or one-hot labels."""
        return self.coefficient * x + (1 - self.coefficient) * x[self.permutation]


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the network at once."""

    images: Tensor
    """(N, 3, H, W) float32, normalised."""
    labels: Tensor
    """(N,) int64."""
    mixup: Mixup | None = None


def training_loss(model: nn.Module, batch: MicroBatch, smoothing: float) -> Tensor:
    """The loss of a micro-batch, a scalar; the model's mode decides how BatchNorm normalises."""
    if batch.mixup is None:
        return label_smoothing_loss(model(batch.images), batch.labels, smoothing)
    logits = model(batch.mixup.mix(batch.images))
    targets = batch.mixup.mix(F.one_hot(batch.labels, logits.shape[1]).float())
    return multi_label_smoothing_loss(logits, targets, smoothing)


def sgd(
    model: nn.Module,
    lr: float,
    momentum: float = 0.875,
    weight_decay: float = 1 / 16384,
    decay: Decay = "nvidia-names",
    nesterov: bool = False,
) -> torch.optim.SGD:
    """SGD over two groups, first the undecayed tensors; over a single one if all are decayed.

    nvidia-names, the original's default, spares the names with "bn" in them, so decays the
    BatchNorms of the shortcuts; no-bn spares every BatchNorm.
    """
    named = dict(model.named_parameters())
    if decay == "all":
        spared = set()
    elif decay == "nvidia-names":
        spared = {name for name in named if "bn" in name}
    else:
        norms = [n for n, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
        spared = {f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")}
    undecayed = [value for name, value in named.items() if name in spared]
    decayed = [value for name, value in named.items() if name not in spared]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": weight_decay}]
    if undecayed:
        groups.insert(0, {"params": undecayed, "weight_decay": 0.0})
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)


def loss_and_gradients(
    model: nn.Module, batches: Sequence[MicroBatch], smoothing: float
) -> tuple[float, StateDict]:
    """Loss and gradients by name, both the mean over the micro-batches; also left in ``.grad``.

    Every micro-batch moves the running statistics.
    """
    model.train()
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = training_loss(model, batch, smoothing) / len(batches)
        loss.backward()
        total += loss.item()
    named = model.named_parameters()
    return total, {name: value.grad.clone() for name, value in named if value.grad is not None}


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[MicroBatch],
    smoothing: float,
) -> tuple[float, StateDict]:
    """One update from accumulated micro-batches; returns what `loss_and_gradients` does."""
    result = loss_and_gradients(model, batches, smoothing)
    optimizer.step()
    return result


def updated_ema(
    ema: Mapping[str, Tensor], state: Mapping[str, Tensor], decay: float, step: int
) -> StateDict:
    """The moving average after a step (from 0): parameters and running statistics, no counters."""
    mu = min(decay, (1 + step) / (10 + step))
    return {
        name: old if name.endswith("num_batches_tracked") else mu * old + (1 - mu) * state[name]
        for name, old in ema.items()
    }


def save_training_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    best_prec1: float,
    ema: Mapping[str, Tensor] | None = None,
    distributed: bool = True,
) -> None:
    """Write a file as the original does after ``epoch`` epochs; best_prec1 in percent.

    The learning rate is a NumPy scalar, as the original's schedule makes it, and a param_group has
    the entries of the PyTorch that the original ran on.
    """
    prefix = "module." if distributed else ""
    optimizer_state = optimizer.state_dict()
    kept = ("momentum", "dampening", "weight_decay", "nesterov", "params")
    groups = [
        {"lr": np.float64(group["lr"])} | {key: group[key] for key in kept}
        for group in optimizer_state["param_groups"]
    ]
    checkpoint: dict[str, Any] = {
        "epoch": epoch,
        "state_dict": {prefix + name: value for name, value in model.state_dict().items()},
        "best_prec1": best_prec1,
        "optimizer": {"state": optimizer_state["state"], "param_groups": groups},
    }
    if ema is not None:
        checkpoint["state_dict_ema"] = {prefix + name: value for name, value in ema.items()}
    torch.save(checkpoint, path)
