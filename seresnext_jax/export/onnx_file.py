"""ONNX files, written node by node from the folded network.

Nothing is traced: blocks are inferred from the names of the parameters, groups from their shapes,
strides from the position.
"""

from typing import Any

import numpy as np
import onnx
from flax.traverse_util import flatten_dict
from onnx import TensorProto, helper, numpy_helper

from seresnext_jax import __version__
from seresnext_jax.data.normalize import IMAGENET_MEAN, IMAGENET_STD
from seresnext_jax.export.exported_network import (
    INPUT,
    OUTPUT,
    Array,
    ExportPrecision,
    portable_forward,
)
from seresnext_jax.weights.info import Weights

RUNTIME = "onnxruntime"
OPSET, IR_VERSION = 17, 8
"""The versions of ONNX 1.12 (2022), which TensorRT, Triton and older runtimes read."""
_TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}


def serialize_onnx(weights: Weights, precision: ExportPrecision) -> bytes:
    """The content of a file with the network and its weights; the batch size is dynamic."""
    _, variables = portable_forward(weights, precision)
    params = {name: np.asarray(x) for name, x in flatten_dict(variables["params"], sep="/").items()}
    graph = _Graph(params)
    x = graph.add("Cast", graph.normalized(INPUT), to=_TYPES[precision])
    x = graph.add("Transpose", x, perm=(0, 3, 1, 2))
    x = graph.add("Relu", graph.conv("conv1", "bn1", x, stride=2))
    x = graph.add("MaxPool", x, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))
    stage = 0
    while f"layers/{stage}/0/conv1/kernel" in params:
        block = 0
        while f"layers/{stage}/{block}/conv1/kernel" in params:
            x = graph.block(f"layers/{stage}/{block}", x, stride=2 if stage and not block else 1)
            block += 1
        stage += 1
    graph.add("Identity", graph.linear("fc", graph.pixel_mean(x)), output=OUTPUT)
    return bytes(_model(graph, weights).SerializeToString())


def run_onnx(content: bytes, pixels: Array) -> Array:
    """The logits (N, K) float32 that onnxruntime computes from a file's content, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (logits,) = session.run([OUTPUT], {INPUT: pixels})
    return np.asarray(logits)


def _model(graph: "_Graph", weights: Weights) -> Any:
    """The complete model, checked by `onnx.checker`."""
    size, classes = weights.info.image_size, weights.info.num_classes
    images = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", size, size, 3])
    logits = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", classes])
    model = helper.make_model(
        helper.make_graph(
            graph.nodes, weights.info.architecture, [images], [logits], graph.initializers
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="seresnext_jax",
        producer_version=__version__,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


class _Graph:
    """The nodes so far, and the parameters they use. Values are named by their node."""

    def __init__(self, params: dict[str, Array]) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._params = params
        self._channels = {INPUT: 3}

    def add(self, operation: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node; returns the name of its output."""
        output = output or f"{operation.lower()}_{len(self.nodes)}"
        node = helper.make_node(operation, inputs, [output], name=output, **attributes)
        self.nodes.append(node)
        self._channels[output] = self._channels[inputs[0]]
        return output

    def constant(self, name: str, value: Array) -> str:
        """Add an array as an initializer; returns its name."""
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def normalized(self, images: str) -> str:
        """Add the nodes of `data.normalize.normalize`; the output is (N, S, S, 3) float32."""
        mean = self.constant("mean", 255 * np.array(IMAGENET_MEAN, np.float32))
        std = self.constant("std", 255 * np.array(IMAGENET_STD, np.float32))
        pixels = self.add("Cast", images, to=TensorProto.FLOAT)
        return self.add("Div", self.add("Sub", pixels, mean), std)

    def block(self, at: str, x: str, stride: int) -> str:
        """A residual block; the first 3×3 convolution has the stride."""
        residual, out, remaining = x, x, stride
        last = 3 if f"{at}/conv3/kernel" in self._params else 2
        for i in range(1, last + 1):
            step = remaining if self._params[f"{at}/conv{i}/kernel"].shape[0] == 3 else 1
            remaining //= step
            out = self.conv(f"{at}/conv{i}", f"{at}/bn{i}", out, step)
            out = out if i == last else self.add("Relu", out)
        if f"{at}/downsample/0/kernel" in self._params:
            residual = self.conv(f"{at}/downsample/0", f"{at}/downsample/1", x, stride)
        if f"{at}/squeeze/squeeze/kernel" in self._params:
            out = self.add("Mul", out, self._gate(f"{at}/squeeze", out))
        return self.add("Relu", self.add("Add", out, residual))

    def _gate(self, at: str, x: str) -> str:
        """The gate of squeeze-and-excitation for x: (N, C, 1, 1), in the dtype of x."""
        hidden = self.add("Relu", self.linear(f"{at}/squeeze", self.pixel_mean(x)))
        gate = self.add("Sigmoid", self.linear(f"{at}/expand", hidden))
        axes = self.constant(f"{at}/axes", np.array([2, 3], np.int64))
        kind = helper.np_dtype_to_tensor_dtype(self._params["conv1/kernel"].dtype)
        return self.add("Cast", self.add("Unsqueeze", gate, axes), to=kind)

    def conv(self, at: str, norm: str, x: str, stride: int) -> str:
        """A convolution with the bias of its folded BatchNorm."""
        kernel = self._params[f"{at}/kernel"].transpose(3, 2, 0, 1)
        weight = self.constant(f"{at}/kernel", kernel)
        bias = self.constant(f"{norm}/bias", self._params[f"{norm}/bias"])
        channels, size = kernel.shape[1:3]
        out = self.add(
            "Conv",
            x,
            weight,
            bias,
            kernel_shape=(size, size),
            strides=(stride, stride),
            pads=4 * (size // 2,),
            group=self._channels[x] // channels,
        )
        self._channels[out] = len(kernel)
        return out

    def pixel_mean(self, x: str) -> str:
        """Global average pooling: (N, C) float32."""
        pooled = self.add("Flatten", self.add("GlobalAveragePool", x))
        return self.add("Cast", pooled, to=TensorProto.FLOAT)

    def linear(self, at: str, x: str) -> str:
        """A linear layer in float32."""
        kernel, bias = self._params[f"{at}/kernel"], self._params[f"{at}/bias"]
        return self.add(
            "Gemm",
            x,
            self.constant(f"{at}/kernel", kernel.astype(np.float32)),
            self.constant(f"{at}/bias", bias.astype(np.float32)),
        )
