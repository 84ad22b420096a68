"""The PyTorch reference itself: sizes, names and arithmetic, against the original's numbers."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.reference.torch_model import (
    ARCHITECTURES,
    Architecture,
    Bottleneck,
    ResNet,
    randomize_like_trained,
    se_as_conv,
    to_old_names,
    with_prefix,
)
from tests.reference.torch_training import (
    Decay,
    MicroBatch,
    Mixup,
    label_smoothing_loss,
    loss_and_gradients,
    multi_label_smoothing_loss,
    save_training_checkpoint,
    sgd,
    train_step,
    training_loss,
    updated_ema,
)

SMALL = Architecture("bottleneck", (1, 2, 1, 1), (8, 16, 16, 32), 2, 4, stem_width=8, squeeze=4)
SMALL_BASIC = Architecture("basic", (1, 1, 1, 1), (8, 16, 16, 32), 1, 4, stem_width=8)


def meta(name: str) -> ResNet:
    """A named network without memory."""
    with torch.device("meta"):
        return ResNet(ARCHITECTURES[name])


def small(seed: int = 0, arch: Architecture = SMALL) -> ResNet:
    """A tiny network of 5 classes with trained-like weights."""
    model = ResNet(arch, num_classes=5)
    randomize_like_trained(model, seed, image_size=32)
    return model


def batch(seed: int, mixup: Mixup | None = None) -> MicroBatch:
    """Four images of 32 x 32."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 3, 32, 32, generator=rng)
    return MicroBatch(images, torch.randint(5, (4,), generator=rng), mixup)


def multiply_adds(model: nn.Module, image_size: int) -> int:
    """Multiply-adds of convolutions and linear layers for one image."""
    counts: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module.weight, Tensor)
        counts.append(output.numel() * module.weight[0].numel())

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    model(torch.empty(1, 3, image_size, image_size, device="meta"))
    return sum(counts)


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        ("se-resnext101-32x4d", 45_251_128, 7_971_037_184),
        ("resnext101-32x4d", 44_177_704, 7_969_996_800),
        ("resnet50", 25_557_032, 4_089_184_256),
    ],
)
def test_size(name: str, parameters: int, macs: int) -> None:
    model = meta(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert multiply_adds(model, 224) == macs


@pytest.mark.parametrize(
    ("name", "parameters", "giga_macs"),
    [
        ("resnet18", 11_689_512, 1.814),
        ("resnet34", 21_797_672, 3.664),
        ("resnet101", 44_549_160, 7.801),
        ("resnet152", 60_192_808, 11.514),
        ("resnext50-32x4d", 25_028_904, 4.23),
        ("resnext101-32x8d", 88_791_336, 16.414),
    ],
)
def test_size_is_the_one_torchvision_publishes(
    name: str, parameters: int, giga_macs: float
) -> None:
    model = meta(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert round(multiply_adds(model, 224) / 1e9, 3) == giga_macs


def test_basic_blocks_of_32_groups() -> None:
    state = meta("resnext101-32x8d-basic").state_dict()
    assert state["layers.0.0.conv1.weight"].shape == (256, 64 // 32, 3, 3)
    assert state["layers.3.2.conv2.weight"].shape == (2048, 2048 // 32, 3, 3)
    assert "layers.0.0.conv3.weight" not in state


def test_state_dict_of_the_recipes_network() -> None:
    names = list(meta("se-resnext101-32x4d").state_dict())
    assert len(names) == 758
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert names[:6] == ["conv1.weight", *(f"bn1.{kind}" for kind in norm)]
    assert names[-2:] == ["fc.weight", "fc.bias"]
    block = [name.removeprefix("layers.3.0.") for name in names if name.startswith("layers.3.0.")]
    order = []
    for number in (1, 2, 3):
        order += [f"conv{number}.weight", *(f"bn{number}.{kind}" for kind in norm)]
    order += ["downsample.0.weight", *(f"downsample.1.{kind}" for kind in norm)]
    order += [f"squeeze.{layer}.{kind}" for layer in ("squeeze", "expand") for kind in norm[:2]]
    assert block == order
    assert {name.split(".")[1] for name in names if "downsample" in name} == set("0123")


def test_features_have_the_stages_shapes() -> None:
    with torch.device("meta"):
        features = meta("se-resnext101-32x4d").forward_features(torch.empty(1, 3, 224, 224))
    assert {name: tuple(value.shape[1:]) for name, value in features.items()} == {
        "layer1": (256, 56, 56),
        "layer2": (512, 28, 28),
        "layer3": (1024, 14, 14),
        "layer4": (2048, 7, 7),
        "classifier": (1000,),
    }


def test_stem_is_convolution_batchnorm_relu_and_the_largest_of_3x3() -> None:
    model, images = small(), batch(1).images
    inputs: list[Tensor] = []
    model.layers[0].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    model(images)
    norm, channel = model.state_dict(), (slice(None), None, None)
    y = F.conv2d(images, norm["conv1.weight"], stride=2, padding=3)
    y = (y - norm["bn1.running_mean"][channel]) / (norm["bn1.running_var"][channel] + 1e-5).sqrt()
    y = (y * norm["bn1.weight"][channel] + norm["bn1.bias"][channel]).relu()
    windows = F.pad(y, (1, 1, 1, 1), value=-torch.inf).unfold(2, 3, 2).unfold(3, 3, 2)
    torch.testing.assert_close(inputs[0], windows.amax((-1, -2)))


def test_squeeze_and_excitation_gates_the_branch_before_the_addition() -> None:
    block = small().get_submodule("layers.1.1")
    assert isinstance(block, Bottleneck) and block.squeeze is not None
    x = torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(1))
    out = block.branch(x)
    hidden = (out.mean((2, 3)) @ block.squeeze.squeeze.weight.T + block.squeeze.squeeze.bias).relu()
    gate = (hidden @ block.squeeze.expand.weight.T + block.squeeze.expand.bias).sigmoid()
    assert hidden.shape == (2, 4)
    torch.testing.assert_close(block(x), (x + out * gate[:, :, None, None]).relu())


@pytest.mark.parametrize("arch", [SMALL, SMALL_BASIC], ids=["bottleneck", "basic"])
def test_random_weights_are_like_trained_ones(arch: Architecture) -> None:
    model = small(3, arch)
    features = model.forward_features(batch(5).images)
    assert all(0.1 < features[f"layer{n}"].std() < 10 for n in (1, 2, 3, 4))
    assert 2 < features["classifier"].max() - features["classifier"].min() < 20
    again, other = small(3, arch), small(4, arch)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        if not name.endswith("num_batches_tracked"):
            assert not torch.equal(value, other.state_dict()[name])
            assert value.unique().numel() == value.numel()
    assert model.bn1.momentum == 0.1


def test_names_of_other_files() -> None:
    state = small().state_dict()
    old = with_prefix(se_as_conv(to_old_names(state)))
    assert len(old) == len(state)
    assert old["module.layer2.1.squeeze.expand.weight"].shape == (32, 4, 1, 1)
    assert old["module.layer2.1.squeeze.expand.bias"].shape == (32,)
    assert old["module.layer4.0.conv1.weight"] is state["layers.3.0.conv1.weight"]
    assert old["module.fc.weight"].shape == (5, 64)


@pytest.mark.parametrize(
    ("decay", "tensors", "elements"),
    [
        ("nvidia-names", [200, 246], [130_176, 45_120_952]),
        ("no-bn", [208, 238], [137_856, 45_113_272]),
        ("all", [446], [45_251_128]),
    ],
)
def test_weight_decay_groups(decay: Decay, tensors: list[int], elements: list[int]) -> None:
    groups = sgd(meta("se-resnext101-32x4d"), 0.1, decay=decay).param_groups
    assert [len(group["params"]) for group in groups] == tensors
    assert [sum(p.numel() for p in group["params"]) for group in groups] == elements
    assert [group["weight_decay"] for group in groups] == [0, 1 / 16384][-len(groups) :]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_agree_with_pytorch(smoothing: float) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, 7, generator=rng)
    labels = torch.randint(7, (6,), generator=rng)
    expected = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(label_smoothing_loss(logits, labels, smoothing), expected)
    targets = torch.rand(6, 7, generator=rng).softmax(1)
    expected = F.cross_entropy(logits, targets, label_smoothing=smoothing)
    torch.testing.assert_close(multi_label_smoothing_loss(logits, targets, smoothing), expected)


def test_mixup_loss_is_the_mix_of_the_losses_on_mixed_images() -> None:
    model, plain = small(), batch(1)
    permutation = torch.tensor([2, 0, 3, 1])
    mixed = plain.images * 0.3 + plain.images[permutation] * 0.7
    expected = 0.3 * label_smoothing_loss(model(mixed), plain.labels, 0.1)
    expected += 0.7 * label_smoothing_loss(model(mixed), plain.labels[permutation], 0.1)
    loss = training_loss(model, batch(1, Mixup(0.3, permutation)), 0.1)
    torch.testing.assert_close(loss, expected)


def test_accumulation_averages_gradients_and_updates_statistics_per_batch() -> None:
    model, batches = small(), [batch(1), batch(2)]
    (loss1, grads1), (loss2, grads2) = (
        loss_and_gradients(copy.deepcopy(model), [one], 0.1) for one in batches
    )
    loss, grads = loss_and_gradients(model, batches, 0.1)
    assert loss == pytest.approx((loss1 + loss2) / 2)
    assert list(grads) == [name for name, _ in model.named_parameters()]
    for name, gradient in grads.items():
        torch.testing.assert_close(gradient, (grads1[name] + grads2[name]) / 2)
    assert model.bn1.num_batches_tracked == 1 + len(batches)


def test_step_decays_then_gathers_momentum_then_scales() -> None:
    model = small()
    optimizer = sgd(model, lr=0.5, momentum=0.875, weight_decay=0.01)
    expected = {name: value.detach().clone() for name, value in model.named_parameters()}
    buffers = {name: torch.zeros_like(value) for name, value in expected.items()}
    for seed in (1, 2):
        _, grads = train_step(model, optimizer, [batch(seed)], 0.1)
        for name, gradient in grads.items():
            decay = 0 if "bn" in name else 0.01
            buffers[name] = 0.875 * buffers[name] + gradient + decay * expected[name]
            expected[name] -= 0.5 * buffers[name]
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.detach(), expected[name])


def test_ema_warms_up_and_leaves_the_counters() -> None:
    old = {"w": torch.tensor([1.0]), "bn1.num_batches_tracked": torch.tensor(1)}
    new = {"w": torch.tensor([2.0]), "bn1.num_batches_tracked": torch.tensor(5)}
    assert updated_ema(old, new, 0.5, step=0)["w"].item() == pytest.approx(1.9)  # mu = 1 / 10
    averaged = updated_ema(old, new, 0.5, step=1000)
    assert averaged["w"].item() == pytest.approx(1.5)
    assert averaged["bn1.num_batches_tracked"] == 1


def test_checkpoint_has_the_originals_content(tmp_path: Path) -> None:
    model = small()
    optimizer = sgd(model, 0.1)
    train_step(model, optimizer, [batch(1)], 0.1)
    path = tmp_path / "checkpoint.pth.tar"
    save_training_checkpoint(path, model, optimizer, 3, 71.5, ema=model.state_dict())
    saved = torch.load(path, weights_only=False)
    assert set(saved) == {"epoch", "best_prec1", "state_dict", "state_dict_ema", "optimizer"}
    assert (saved["epoch"], saved["best_prec1"]) == (3, 71.5)
    assert list(saved["state_dict"]) == ["module." + name for name in model.state_dict()]
    assert list(saved["state_dict_ema"]) == list(saved["state_dict"])
    groups = saved["optimizer"]["param_groups"]
    assert all(type(group["lr"]) is np.float64 for group in groups)
    undecayed = [name for name, _ in model.named_parameters() if "bn" in name]
    assert groups[0]["params"] == list(range(len(undecayed)))
    first = dict(model.named_parameters())[undecayed[0]]
    assert first.grad is not None
    assert torch.equal(saved["optimizer"]["state"][0]["momentum_buffer"], first.grad)

    save_training_checkpoint(path, model, optimizer, 3, 71.5, distributed=False)
    saved = torch.load(path, weights_only=False)
    assert list(saved["state_dict"]) == list(model.state_dict())
    assert "state_dict_ema" not in saved
