"""Where training starts: random weights, --init-from, a new head, a frozen backbone, a resume."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from seresnext_jax.checkpoint.save import Checkpoints
from seresnext_jax.config import Config, DataConfig, ModelConfig, OptimConfig
from seresnext_jax.data.place import put_batch
from seresnext_jax.errors import UserError
from seresnext_jax.mesh import make_mesh, replicate
from seresnext_jax.model.initial import init_variables
from seresnext_jax.model.network import abstract_variables, make_network
from seresnext_jax.report.console import Console
from seresnext_jax.run.start import find_start, initial_variables
from seresnext_jax.training.state import create_train_state
from seresnext_jax.training.step import lower_train_step
from seresnext_jax.weights.folder import write_weights_folder
from seresnext_jax.weights.identify import network
from seresnext_jax.weights.info import Weights, WeightsInfo
from seresnext_jax.weights.state_dict import to_state_dict
from tests.checkpoint.metas import make_meta

TINY = "se-resnext-tiny"
CONFIG = Config(model=ModelConfig(TINY, num_classes=3), seed=1)


@pytest.fixture(scope="module")
def loaded() -> Any:
    """Weights in which no two tensors are alike."""
    shapes = abstract_variables(network(TINY, 3))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.uniform(0.01, 0.1, x.shape).astype(np.float32), shapes)


def initial(config: Config, class_names: tuple[str, ...] = ()) -> Any:
    model = make_network(config.model, jnp.dtype("float32"))
    start = find_start(config)
    return initial_variables(config, model, start, class_names, Console(enabled=True))


def same(a: Any, b: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def with_weights(folder: Path, variables: Any, names: tuple[str, ...] | None) -> Config:
    write_weights_folder(folder, Weights(variables, WeightsInfo(TINY, 3, names)))
    return replace(CONFIG, init_from=str(folder))


@pytest.mark.parametrize("arch", [TINY, "resnet18"])
@pytest.mark.parametrize(("conv_init", "zero"), [("fan_in", False), ("fan_out", True)])
def test_random_weights_are_distributed_as_flaxs(arch: str, conv_init: Any, zero: bool) -> None:
    """Constants are equal; draws have the same spread, sign and bound."""
    model = make_network(ModelConfig(arch, 10, conv_init, last_bn_0_init=zero), np.dtype("float32"))
    ours, theirs = init_variables(model, 0), abstract_variables(model)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 32, 32, 3)), train=False))
    wanted = jax.device_get(init(jax.random.key(0)))
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(wanted), strict=True
    ):
        assert x.dtype == np.float32 and x.shape == y.shape
        if np.ptp(y) == 0:
            np.testing.assert_array_equal(x, y, err_msg=str(path))
            continue
        # Five standard errors of a spread, and of a mean.
        noise = 5 / np.sqrt(x.size)
        assert np.std(x) == pytest.approx(np.std(y), rel=max(2 * noise, 0.01)), path
        assert abs(np.mean(x)) <= noise * np.std(y), path
        # The share beyond two deviations: 0 if truncated or uniform.
        tails = [np.mean(np.abs(a) > 2 * np.std(a)) for a in (x, y)]
        assert abs(tails[0] - tails[1]) <= 0.3 * noise, path
        if path[1].key == "fc":  # uniform
            assert np.abs(x).max() <= x.shape[0] ** -0.5 or path[-1].key == "bias"


def test_random_weights_depend_on_the_seed_and_on_nothing_else() -> None:
    model, head = network(TINY, 3), network(TINY, 5)
    first = init_variables(model, 0)
    assert same(first, init_variables(model, 0))
    other = init_variables(model, 1)
    assert not np.array_equal(
        first["params"]["conv1"]["kernel"], other["params"]["conv1"]["kernel"]
    )
    # Another classifier leaves the rest as it is.
    assert same(first["params"]["layers"], init_variables(head, 0)["params"]["layers"])
    kernels = [x for x in jax.tree.leaves(first["params"]) if x.ndim == 4]
    starts = [tuple(x.reshape(-1)[:2] / np.std(x)) for x in kernels]
    assert len(set(starts)) == len(starts), "no two kernels share their numbers"


@pytest.mark.parametrize(
    ("stored", "here", "kept"),
    [
        (("a", "b", "c"), ("a", "b", "c"), True),
        (None, ("a", "b", "c"), True),
        (("a", "b", "c"), (), True),
        (("a", "b", "c"), ("a", "b", "d"), False),
    ],
)
def test_the_head_is_kept_for_the_same_classes(
    tmp_path: Path,
    loaded: Any,
    capsys: pytest.CaptureFixture[str],
    stored: tuple[str, ...] | None,
    here: tuple[str, ...],
    kept: bool,
) -> None:
    found = initial(with_weights(tmp_path / "w", loaded, stored), here)
    assert same(found["params"]["fc"], loaded["params"]["fc"]) == kept
    assert same(found["params"]["layers"], loaded["params"]["layers"])
    out = " ".join(capsys.readouterr().out.split())
    assert ("new classifier for 3 classes (the weights have other ones)" in out) == (not kept)


def test_an_evaluation_never_gets_a_new_classifier(tmp_path: Path, loaded: Any) -> None:
    config = replace(with_weights(tmp_path / "w", loaded, ("a", "b", "c")), evaluate=True)
    with pytest.raises(UserError, match=r"only the weights have c, only the data has d.*: train"):
        initial(config, ("a", "b", "d"))
    with pytest.raises(UserError, match=r"\(3, not 4\): train a new one without --evaluate"):
        initial(replace(config, model=ModelConfig(TINY, num_classes=4)))
    assert same(initial(config, ("a", "b", "c"))["params"], loaded["params"])


def test_labels_by_the_rank_of_numbers_are_said(
    tmp_path: Path, loaded: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    initial(with_weights(tmp_path / "w", loaded, None), ("1", "10", "2"))
    assert "labels follow the string order" in capsys.readouterr().err
    initial(with_weights(tmp_path / "w", loaded, ("1", "10", "2")), ("1", "10", "2"))
    assert not capsys.readouterr().err


def test_a_run_that_is_continued_needs_no_weights_to_start_from(tmp_path: Path) -> None:
    config = replace(CONFIG, init_from=str(tmp_path / "gone"), workspace=str(tmp_path / "run"))
    with pytest.raises(UserError, match="gone"):
        initial(replace(config, resume="auto"))
    fresh = initial(replace(config, init_from=""))
    state = create_train_state(config, fresh)
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        checkpoints.save(state, make_meta(config=config))
    assert same(initial(replace(config, resume="auto")), fresh)


def test_a_frozen_backbone_is_that_of_the_torch_file_and_stays(tmp_path: Path, loaded: Any) -> None:
    state = to_state_dict(loaded, layout="ngc", prefix="module.")
    torch.save({k: torch.from_numpy(x) for k, x in state.items()}, tmp_path / "a.pth")
    config = replace(
        CONFIG,
        model=ModelConfig(TINY, num_classes=5),
        optim=OptimConfig(freeze_backbone=True),
        init_from=str(tmp_path / "a.pth"),
    )
    variables = initial(config)
    assert variables["params"]["fc"]["kernel"].shape == (512, 5)
    head = np.array(variables["params"]["fc"]["kernel"])

    config = replace(config, batch_size=4, data=DataConfig(image_size=32))
    mesh, model = make_mesh(jax.devices()[:1]), network(TINY, 5)
    begun = replicate(mesh, create_train_state(config, variables))
    step = lower_train_step(model.apply, config, mesh, begun, passes=1).compile()
    pixels = np.random.default_rng(1).integers(0, 256, (1, 4, 32, 32, 3), np.uint8)
    batch = put_batch(mesh, pixels, np.arange(4, dtype=np.int32)[None], np.ones((1, 4), bool))
    stepped = step(begun, batch, np.float32(0.1))[0]
    assert not np.array_equal(stepped.params["fc"]["kernel"], head)
    for name in ("conv1", "bn1", "layers"):
        assert same(stepped.params[name], loaded["params"][name]), name
    assert same(stepped.batch_stats, loaded["batch_stats"])
