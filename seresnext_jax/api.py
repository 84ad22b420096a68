"""The library: a network with its weights, the right preprocessing, predictions and features."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from seresnext_jax.config import Interpolation, ModelConfig, Precision
from seresnext_jax.data.class_names import Names, names_for
from seresnext_jax.data.images import BadImage, decode_rgb
from seresnext_jax.data.normalize import normalize
from seresnext_jax.data.pixels import orientation, to_rgb, turned
from seresnext_jax.data.transform import CentreCrop
from seresnext_jax.errors import UserError, printable
from seresnext_jax.model.initial import init_variables
from seresnext_jax.model.network import FEATURES, ResNet, make_network
from seresnext_jax.ops.pooling import global_mean
from seresnext_jax.training.precision import POLICIES
from seresnext_jax.weights.folder import write_weights_folder
from seresnext_jax.weights.info import Weights, WeightsInfo, check_info
from seresnext_jax.weights.read import read_weights

__all__ = ["Model", "Prediction", "create_model", "load_weights", "normalize", "preprocess"]

Tree = Any
ImageLike = str | Path | Image.Image | np.ndarray | jax.Array
"""An image file, a Pillow image, or a uint8 array (H, W), (H, W, 3) or (H, W, 4)."""

STAGES = FEATURES[:-1]


@dataclass(frozen=True)
class Prediction:
    """A class that a network predicts for an image, and its probability."""

    index: int
    """The class's label."""
    name: str
    probability: float


@dataclass(frozen=True)
class Model:
    """A network with its weights.

    `network` is a Flax Linen module and `variables` a plain pytree, so a training loop of your own
    can use ``model.network.apply`` and put its result back with ``dataclasses.replace``.
    """

    network: ResNet
    variables: Tree
    """``{"params": ..., "batch_stats": ...}``: float32 arrays on JAX's default device."""
    info: WeightsInfo
    """Architecture, image size, class names, and where the weights come from."""
    precision: Precision = "fp32"
    """The precision of the computation."""

    def __repr__(self) -> str:
        """One line, without the arrays."""
        info = self.info
        size = f"{info.num_classes} classes, {info.image_size} pixels"
        return f"Model({info.architecture}, {size}, {self.precision})"

    @property
    def class_names(self) -> Names:
        """The names of the classes in label order.

        If they are unknown: ImageNet's for 1,000 classes, otherwise ``class 0``, ``class 1``, …
        """
        return names_for(self.info.num_classes, self.info.class_names)

    @property
    def image_size(self) -> int:
        """Width and height of the images that the network was made for, in pixels."""
        return self.info.image_size

    def preprocess(self, *images: ImageLike, exif_orientation: bool = False) -> np.ndarray:
        """Call the function `preprocess` with this model's image size, margin and interpolation."""
        return preprocess(
            *images,
            image_size=self.info.image_size,
            eval_margin=self.info.eval_margin,
            interpolation=self.info.interpolation,
            exif_orientation=exif_orientation,
        )

    def logits(self, pixels: np.ndarray | jax.Array) -> jax.Array:
        """The network's output before the softmax.

        Args:
          pixels: uint8 RGB (N, H, W, 3), such as `preprocess` returns.

        Returns:
          (N, classes) float32.

        Raises:
          UserError: the pixels have another dtype or shape. All methods that take pixels raise it.
        """
        return self._outputs(pixels, ("classifier",))["classifier"]

    def probabilities(self, pixels: np.ndarray | jax.Array) -> jax.Array:
        """The softmax of the logits, the probability of each class: (N, classes) float32."""
        return jax.nn.softmax(self.logits(pixels))

    def classify(self, pixels: np.ndarray | jax.Array, topk: int = 5) -> list[list[Prediction]]:
        """The `topk` most probable classes of each image, the most probable first."""
        names = self.class_names
        found = []
        for row in np.asarray(self.probabilities(pixels)):
            best = np.argsort(-row, kind="stable")[:topk].tolist()
            found.append([Prediction(i, names[i], float(row[i])) for i in best])
        return found

    def features(
        self, pixels: np.ndarray | jax.Array, layers: Sequence[str] = STAGES
    ) -> dict[str, jax.Array]:
        """The outputs of the named stages; nothing after the last of them is computed.

        Args:
          pixels: uint8 RGB (N, H, W, 3) of any height and width.
          layers: one or more of ``layer1``, …, ``layer4`` and ``classifier``.

        Returns:
          The outputs by name: ``layer1`` is (N, ⌈H/4⌉, ⌈W/4⌉, C), and each later stage halves
          height and width; ``classifier`` is the logits.

        Raises:
          UserError: no name or an unknown one, or wrong pixels.
        """
        if not layers:
            raise UserError(f"features() has nothing to return: choose from {FEATURES}")
        if unknown := sorted(set(layers) - set(FEATURES)):
            raise UserError(f"unknown features {', '.join(unknown)}: choose from {FEATURES}")
        return self._outputs(pixels, tuple(layers))

    def embed(self, pixels: np.ndarray | jax.Array) -> jax.Array:
        """The input of the classifier, the mean of ``layer4`` over each image: (N, C) float32."""
        return global_mean(self._outputs(pixels, ("layer4",))["layer4"]).astype(jnp.float32)

    def with_classes(self, class_names: Sequence[str], seed: int = 0) -> Self:
        """The same network with a random classifier for other classes, to fine-tune.

        Raises:
          UserError: `class_names` is empty, or a string.
        """
        if isinstance(class_names, str) or not len(class_names):
            raise UserError(f"with_classes({class_names!r}): give names such as ['cat', 'dog']")
        info = _new_info(self.info, num_classes=len(class_names), class_names=tuple(class_names))
        network = self.network.clone(num_classes=info.num_classes)
        params = dict(self.variables["params"])
        params["fc"] = _on_device(init_variables(network, seed)["params"]["fc"])
        variables = {**self.variables, "params": params}
        return replace(self, network=network, variables=variables, info=info)

    def save(self, folder: str | Path) -> None:
        """Write a weights folder, which `load_weights` and every program can read.

        Raises:
          UserError: the folder contains other files or can't be written.
        """
        variables = jax.tree.map(np.asarray, self.variables)
        # Facts such as the accuracy may no longer be true, because the weights may have changed.
        write_weights_folder(Path(folder), Weights(variables, _new_info(self.info)))

    def _outputs(
        self, pixels: np.ndarray | jax.Array, layers: tuple[str, ...]
    ) -> dict[str, jax.Array]:
        if not (_is_array(pixels) and pixels.dtype == np.uint8 and pixels.shape[3:] == (3,)):
            raise UserError(
                f"the pixels are {_kind(pixels)}: give uint8 (N, height, width, 3), such as "
                "model.preprocess(image) returns"
            )
        return _outputs(self.network, self.precision, layers, self.variables, pixels)


def load_weights(
    path: str | Path,
    *,
    ema: bool = False,
    table: str = "",
    class_names: str | Path = "",
    precision: Precision = "fp32",
) -> Model:
    """Load weights from any source, and make the network that they fit.

    Args:
      path: a weights folder, a checkpoint or a folder of them, a PyTorch file (.pth.tar, .pt,
        .safetensors), or a folder from the Hugging Face hub that contains one.
      ema: load the moving average of the weights.
      table: the name of the state dict in a PyTorch file that has several.
      class_names: a file with one name per line, or JSON, in the order of the labels. Only needed
        for weights without class names, such as PyTorch files.
      precision: fp32, tf32, bf16 or fp16; the weights are float32 in any case.

    Raises:
      UserError: the source can't be read, has no known architecture or no moving average, contains
        NaN, or the names do not fit; or an unknown precision.
    """
    weights = read_weights(path, ema=ema, table=table)
    info = weights.info.with_class_names(str(class_names))
    return Model(_network(info, precision), _on_device(weights.variables), info, precision)


def create_model(
    architecture: str,
    num_classes: int = 1000,
    *,
    image_size: int = 224,
    eval_margin: int = 32,
    seed: int = 0,
    precision: Precision = "fp32",
) -> Model:
    """A network with random weights.

    Args:
      architecture: such as ``se-resnext101-32x4d`` or ``resnet50``.
      num_classes: the number of classes; `Model.with_classes` gives them names.
      image_size: width and height of the images, in pixels.
      eval_margin: `preprocess` resizes the shorter side to image_size + eval_margin pixels.
      seed: the seed of the random weights.
      precision: fp32, tf32, bf16 or fp16; the weights are float32 in any case.

    Raises:
      UserError: an unknown architecture or precision, or a number out of range.
    """
    info = WeightsInfo(architecture, num_classes, image_size=image_size, eval_margin=eval_margin)
    try:
        check_info(info)
    except ValueError as error:
        raise UserError(f"create_model: {error}; give a whole number in range") from error
    network = _network(info, precision)
    return Model(network, _on_device(init_variables(network, seed)), info, precision)


def preprocess(
    *images: ImageLike,
    image_size: int = 224,
    eval_margin: int = 32,
    interpolation: Interpolation = "bilinear",
    exif_orientation: bool = False,
) -> np.ndarray:
    """Prepare images as in evaluation: RGB, shorter side resized, centre cropped.

    Args:
      images: files, Pillow images, or arrays of pixels.
      image_size: width and height of the result, in pixels.
      eval_margin: the shorter side is resized to image_size + eval_margin pixels.
      interpolation: bilinear or bicubic, for the resizing.
      exif_orientation: turn photos upright by their EXIF orientation.

    Returns:
      (N, image_size, image_size, 3) uint8. The methods of `Model` take these pixels and normalise
      them; your own loop calls `normalize`.

    Raises:
      UserError: an image can't be decoded, or is neither a file nor a picture.
    """
    crop = CentreCrop(image_size, eval_margin, interpolation)
    squares = [_square(image, crop, exif_orientation) for image in images]
    return np.array(squares, np.uint8).reshape(-1, image_size, image_size, 3)


def _square(image: ImageLike, crop: CentreCrop, upright: bool) -> np.ndarray:
    if isinstance(image, str | Path):
        try:
            return decode_rgb(image, crop, upright=upright)
        except BadImage as error:
            raise UserError(
                f"can't decode {printable(image)}: {printable(error)}; check the file"
            ) from error
    try:
        opened = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
        return crop(turned(to_rgb(opened), orientation(opened) if upright else 1))
    except (BadImage, TypeError, ValueError) as error:
        raise UserError(
            f"can't use an image ({_kind(image)}: {printable(error)}): give uint8 RGB (height, "
            "width, 3), a Pillow image, or a file; several as several arguments"
        ) from error


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | jax.Array)


def _kind(value: Any) -> str:
    """Describe an argument for a message: dtype and shape of an array, otherwise its type."""
    return f"{value.dtype} {value.shape}" if _is_array(value) else f"a {type(value).__name__}"


def _network(info: WeightsInfo, precision: Precision) -> ResNet:
    if precision not in POLICIES:
        raise UserError(f"precision {precision!r} is unknown: choose from {', '.join(POLICIES)}")
    config = ModelConfig(arch=info.architecture, num_classes=info.num_classes)
    return make_network(config, POLICIES[precision].compute_dtype)


def _on_device(variables: Tree) -> Tree:
    """Convert NumPy arrays to JAX arrays, so that they are copied to a GPU once, not per call."""
    return jax.tree.map(jnp.asarray, variables)


def _new_info(info: WeightsInfo, **changes: Any) -> WeightsInfo:
    """The facts that stay true if the weights change, with `changes` applied."""
    kept = ["architecture", "num_classes", "class_names", "source"]
    kept += ["image_size", "eval_margin", "interpolation"]
    return WeightsInfo(**{**{name: getattr(info, name) for name in kept}, **changes})


@partial(jax.jit, static_argnames=("network", "precision", "layers"))
def _outputs(
    network: ResNet, precision: Precision, layers: tuple[str, ...], variables: Tree, pixels: Any
) -> dict[str, jax.Array]:
    with jax.default_matmul_precision(POLICIES[precision].matmul_precision):
        outputs: Any = network.apply(
            variables, normalize(pixels), layers, method="extract_features"
        )
    return outputs
