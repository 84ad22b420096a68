"""The classes and functions that a pickle may name, and how each is built from data alone."""

from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from seresnext_jax.weights.numpy_pickled import (
    make_array,
    make_dtype,
    make_empty_array,
    make_scalar,
)
from seresnext_jax.weights.plain import Known, NotPlainError, Record, checked_key, to_bytes
from seresnext_jax.weights.stored import ITEM_SIZES, StoredTensor, axes, stored_tensor

_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg", "UserDict": "collections"}
_RENAMED = {"numpy._core": "numpy.core", "pathlib._local": "pathlib"}

_TYPES = (
    # These may be named as the type of an option or as a default.
    "builtins.object", "builtins.str", "builtins.bool", "builtins.bytes", "builtins.NoneType",
    "typing.Any", "typing.Union", "typing.Optional", "typing.Dict", "typing.List",
    "typing.Tuple", "numpy.ndarray", "torch.Tensor", "torch.nn.parameter.Parameter",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "numpy.random._pcg64.PCG64", "numpy.random._mt19937.MT19937", "numpy.random._philox.Philox",
    "numpy.random._sfc64.SFC64", "numpy.random._pcg64.PCG64DXSM",
)  # fmt: skip
_RECORDS = (
    # Objects that consist of their attributes or their arguments.
    "argparse.Namespace", "types.SimpleNamespace", "builtins.slice", "builtins.range",
    "datetime.datetime", "datetime.date", "datetime.time", "datetime.timedelta",
    "datetime.timezone", "decimal.Decimal", "fractions.Fraction", "uuid.UUID",
    "numpy.random._pickle.__generator_ctor", "numpy.random._pickle.__bit_generator_ctor",
    "numpy.random._pickle.__randomstate_ctor", "numpy.random.bit_generator.SeedSequence",
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
    "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata",
    *(f"omegaconf.nodes.{kind}Node" for kind in (
        "Any", "String", "Integer", "Float", "Boolean", "Bytes", "Path")),
)  # fmt: skip
_DICTIONARIES = (
    "builtins.dict", "collections.OrderedDict", "collections.Counter", "collections.UserDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "easydict.EasyDict", "addict.addict.Dict", "munch.Munch", "attrdict.dictionary.AttrDict",
    "yacs.config.CfgNode", "fvcore.common.config.CfgNode", "detectron2.config.config.CfgNode",
    "mmcv.utils.config.ConfigDict", "mmengine.config.config.ConfigDict",
)  # fmt: skip
_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16",
    "Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8",
    "Bool": "bool", "ComplexFloat": "complex64", "ComplexDouble": "complex128",
    "QInt8": "int8", "QUInt8": "uint8", "QInt32": "int32", "Untyped": "uint8", "Typed": "uint8",
}  # fmt: skip
_OTHER_DTYPES = ("qint8", "quint8", "qint32", "quint4x2", "quint2x4", "bits8", "bits16")


def canonical_name(module: str, name: str) -> str:
    """``module.name`` as Python 3 and numpy 1 spell it."""
    module = _PYTHON_2.get(module, module)
    for new, old in _RENAMED.items():
        if module == new or module.startswith(new + "."):
            module = old + module[len(new) :]
    return f"{module}.{name}"


def find_name(canonical: str) -> Known | None:
    """How a canonical name in a pickle is read; None: it is not listed."""
    return _NAMES.get(canonical)


# ---- builders ----------------------------------------------------------------------------------


def _record(name: str) -> Known:
    return Known(name, lambda *args: Record(name, args, _attributes(args)))


def _attributes(args: tuple[Any, ...]) -> dict[Any, Any]:
    return dict(args[0]) if len(args) == 1 and isinstance(args[0], dict) else {}


def _dict(*args: Any) -> dict[Any, Any]:
    """A dictionary, from pairs or from another one."""
    if not args or args[0] is None:
        return {}
    pairs = list(args[0].items()) if isinstance(args[0], dict) else args[0]
    if not isinstance(pairs, list | tuple) or len(args) > 1:
        raise ValueError("a dictionary of something else")
    return {checked_key(key): value for key, value in pairs}


def _default_dict(factory: Any = None, *args: Any) -> dict[Any, Any]:
    """A plain dictionary; the default factory is dropped."""
    if not (factory is None or isinstance(factory, Known)):
        raise ValueError("a default of another kind")
    return _dict(*args)


def _list(items: Any = (), *_: Any) -> list[Any]:
    if not isinstance(items, list | tuple | set | frozenset):
        raise ValueError("items that are not a list")
    return list(items)


def _encode(text: Any, encoding: Any = "latin1", *_: Any) -> bytes:
    """``_codecs.encode``: how Python 3 saves bytes in protocols 0 to 2."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise NotPlainError("_codecs.encode")
    return text.encode(encoding)


def _complex(real: Any = 0, imaginary: Any = 0) -> complex:
    return complex(real, imaginary)


def _rebuilt(kind: Any, base: Any = None, state: Any = None) -> Any:
    """``copyreg._reconstructor``: an object in protocols 0 and 1."""
    if isinstance(kind, Record):
        return kind
    if not isinstance(kind, Known) or kind.build is None:
        raise NotPlainError(getattr(kind, "name", "copyreg._reconstructor"))
    return kind.build() if state is None else kind.build(state)


def _none_type(value: Any = 0, *_: Any) -> Known:
    if value is not None:
        raise NotPlainError("builtins.type")
    return Known("builtins.NoneType")


def _generic(kind: Any, items: Any) -> Record:
    """``typing.Optional[int]`` and the like."""
    if not (isinstance(kind, Known) and kind.name.startswith("typing.")):
        raise NotPlainError("operator.getitem")
    return Record(kind.name, (items,))


# ---- builders of PyTorch -----------------------------------------------------------------------


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> StoredTensor:
    """``_rebuild_tensor`` and ``_rebuild_tensor_v2``."""
    if len(rest) > 2 and isinstance(rest[2], dict) and any(rest[2].values()):
        return StoredTensor(axes(shape), storage.dtype, "conjugate or negative")
    return stored_tensor(storage, offset, shape, strides)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, _: Any, hooks: Any, kind: Any, *more: Any
) -> StoredTensor:
    if any(more) or not (isinstance(kind, Known) and kind.dtype in ITEM_SIZES):
        return StoredTensor(axes(shape), getattr(kind, "name", "unknown").split(".")[-1])
    return stored_tensor(storage, offset, shape, strides, kind.dtype)


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _sparse(layout: Any, parts: Any) -> StoredTensor:
    values, shape = parts[1:3] if layout == "torch.sparse_coo" else parts[2:4]
    return StoredTensor(axes(shape), values.dtype, layout.removeprefix("torch."))


def _meta(dtype: Any, shape: Any, *_: Any) -> StoredTensor:
    return StoredTensor(axes(shape), dtype.dtype, device="meta")


def _quantized(storage: Any, offset: Any, shape: Any, *_: Any) -> StoredTensor:
    return StoredTensor(axes(shape), f"quantized {storage.dtype}")


def _nested(*_: Any) -> StoredTensor:
    return StoredTensor((), "float32", "nested")


def _subclass(dtype: Any, shape: Any, *_: Any) -> StoredTensor:
    return StoredTensor(axes(shape), dtype.dtype, "subclassed")


def _with_attributes(function: Any, kind: Any, args: Any, *_: Any) -> Any:
    """``_rebuild_from_type_v2``: a tensor with attributes, which are dropped."""
    if not (isinstance(function, Known) and function.name.startswith("torch._utils._rebuild_")):
        raise NotPlainError(getattr(function, "name", "torch._tensor._rebuild_from_type_v2"))
    assert function.build is not None
    return function.build(*args)


def _device(kind: Any, index: Any = None) -> str:
    if not isinstance(kind, str):
        raise ValueError("a device that is not text")
    return kind if index is None else f"{kind}:{int(index)}"


def _layout(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError("a layout that is not text")
    return name


# ---- the table ---------------------------------------------------------------------------------


def _names() -> dict[str, Known]:
    rebuild = {
        "tensor": _tensor, "tensor_v2": _tensor, "tensor_v3": _tensor_v3,
        "parameter": _parameter, "parameter_with_state": _parameter,
        "device_tensor_from_numpy": _parameter, "device_tensor_from_cpu_tensor": _parameter,
        "xla_tensor": _parameter, "sparse_tensor": _sparse, "meta_tensor_no_storage": _meta,
        "qtensor": _quantized,
        "nested_tensor": _nested, "wrapper_subclass": _subclass,
    }  # fmt: skip
    builders: dict[str, Any] = {
        "collections.defaultdict": _default_dict,
        "collections.deque": _list,
        "builtins.list": _list,
        "builtins.tuple": lambda *args: tuple(_list(*args)),
        "builtins.set": lambda *args: set(map(checked_key, _list(*args))),
        "builtins.frozenset": lambda *args: frozenset(map(checked_key, _list(*args))),
        "builtins.complex": _complex,
        "builtins.bytearray": to_bytes,
        "builtins.bytes": to_bytes,  # how protocol 2 saves empty bytes
        "builtins.type": _none_type,
        "builtins.int": None,
        "builtins.float": None,
        "operator.getitem": _generic,
        "_codecs.encode": _encode,
        "copyreg._reconstructor": _rebuilt,
        "pathlib.PosixPath": lambda *parts: str(PurePosixPath(*parts)),
        "pathlib.PurePosixPath": lambda *parts: str(PurePosixPath(*parts)),
        "pathlib.WindowsPath": lambda *parts: str(PureWindowsPath(*parts)),
        "pathlib.PureWindowsPath": lambda *parts: str(PureWindowsPath(*parts)),
        "numpy.dtype": make_dtype,
        "numpy.core.multiarray.scalar": make_scalar,
        "numpy.core.multiarray._reconstruct": make_empty_array,
        "numpy.core.numeric._frombuffer": make_array,
        "torch.Size": lambda *args: tuple(_list(*args)),
        "torch.device": _device,
        "torch.serialization._get_layout": _layout,
        "torch._tensor._rebuild_from_type_v2": _with_attributes,
        **{f"torch._utils._rebuild_{name}": build for name, build in rebuild.items()},
        **{name: _dict for name in _DICTIONARIES},
    }
    names = {name: Known(name) for name in _TYPES}
    names |= {name: _record(name) for name in _RECORDS}
    names |= {name: Known(name, build) for name, build in builders.items()}
    for dtype in (*ITEM_SIZES, *_OTHER_DTYPES):
        names[f"torch.{dtype}"] = Known(f"torch.{dtype}", dtype=dtype)
    for kind, dtype in _STORAGES.items():
        for module in ("torch", "torch.cuda", "torch.storage"):
            name = f"{module}.{kind}Storage"
            names[name] = Known(name, dtype=dtype)
    for kind in ("bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32",
                 "uint64", "float16", "float32", "float64", "str_", "bytes_"):  # fmt: skip
        names[f"numpy.{kind}"] = Known(f"numpy.{kind}")
    return names


_NAMES = _names()
