"""Pickles read as data: what is built from data alone, what is refused, and limits."""

import argparse
import collections
import datetime
import io
import os
import pathlib
import pickle
import struct
import time
import tracemalloc
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seresnext_jax.errors import UserError
from seresnext_jax.weights.describe import describe
from seresnext_jax.weights.numpy_pickled import DType, make_scalar
from seresnext_jax.weights.pickled import DataUnpickler
from seresnext_jax.weights.pickled_names import _NAMES
from seresnext_jax.weights.plain import Known, Record
from seresnext_jax.weights.stored import StoredArray, StoredTensor
from seresnext_jax.weights.torch_file import open_torch_file

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def read(data: bytes) -> tuple[Any, list[str]]:
    """The value in a pickle, and the names that were refused."""
    unpickler = DataUnpickler(lambda _: None)
    return unpickler.load(io.BytesIO(data)), list(unpickler.refused)


def reread(value: Any, protocol: int) -> Any:
    found, refused = read(pickle.dumps(value, protocol))
    assert not refused
    return found


# ---- what is plain data ------------------------------------------------------------------------

PLAIN: list[Any] = [
    None, True, 3, -(2**70), 1.5, "text \N{SNOWMAN}", b"", b"bytes\xff", (), (1,), (1, 2, 3, 4), [],
    [1, [2]], {}, {"a": {1: None}}, {1, 2}, frozenset({"x"}), 1 + 2j, bytearray(b"ab"),
]  # fmt: skip


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_plain_values_come_back(value: Any, protocol: int) -> None:
    assert reread(value, protocol) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (argparse.Namespace(lr=0.1, model="resnet50"), {"lr": 0.1, "model": "resnet50"}),
        (types.SimpleNamespace(a=[1]), {"a": [1]}),
        (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (collections.defaultdict(list, a=[1]), {"a": [1]}),
        (collections.defaultdict(float), {}),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.deque([1, 2], maxlen=3), [1, 2]),
        (pathlib.PurePosixPath("/data/imagenet"), "/data/imagenet"),
        (pathlib.Path("runs/a"), "runs/a"),
        (pathlib.PureWindowsPath("C:/data"), "C:\\data"),
        (torch.Size([2, 3]), [2, 3]),
        (torch.device("cuda:1"), "cuda:1"),
        (torch.device("cpu"), "cpu"),
        (torch.bfloat16, "torch.bfloat16"),
        (np.float32, "numpy.float32"),
        (float, "builtins.float"),
        (datetime.timedelta(days=1), {"datetime.timedelta": [1, 0, 0]}),
        (slice(1, 2), {"builtins.slice": [1, 2, None]}),
        (np.str_("ab"), "ab"),
        (np.datetime64("2020-01-02"), "2020-01-02"),
        (np.arange(6, dtype=np.int16).reshape(2, 3), "int16 [2, 3]"),
        (np.array(["a"]), "an array"),
        (np.array([1, "x"], dtype=object), "an array"),
    ],
    ids=lambda x: str(x)[:40],
)  # fmt: skip
def test_objects_that_are_plain_data(value: Any, wanted: Any, protocol: int) -> None:
    assert describe(reread(value, protocol)) == wanted


@pytest.mark.parametrize("protocol", [p for p in PROTOCOLS if p >= 2])  # PyTorch's oldest for it
def test_a_layout_is_plain_data(protocol: int) -> None:
    assert describe(reread(torch.strided, protocol)) == "torch.strided"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", "? b h i q B H I Q e f d g".split())
def test_numpy_scalars_and_types(kind: str, protocol: int) -> None:
    value = np.ones((), kind)[()]
    found = reread(value, protocol)
    assert found == 1
    assert isinstance(found, bool if kind == "?" else int | float | np.longdouble)
    big_endian = np.array([1, 2], np.dtype(kind).newbyteorder(">"))
    array = reread(np.asfortranarray(big_endian), protocol)
    assert isinstance(array, StoredArray)
    np.testing.assert_array_equal(array.array, [True, True] if kind == "?" else [1, 2])
    dtype = reread(np.dtype(kind), protocol)
    assert dtype.numpy() == np.dtype(kind)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [np.random.RandomState(0), np.random.default_rng(0), np.random.RandomState(0).get_state()],
    ids=["RandomState", "Generator", "state"],
)
def test_states_of_numpys_random_numbers(value: Any, protocol: int) -> None:
    reread(value, protocol)


def test_text_of_a_big_endian_machine() -> None:
    assert make_scalar(DType("U2", ">"), "é犬".encode("utf-32-be")) == "é犬"


def test_an_array_keeps_its_axes() -> None:
    value = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    for protocol in PROTOCOLS:
        np.testing.assert_array_equal(reread(value, protocol).array, value)


class Fake:
    """Pickles as an object of a class that isn't installed here."""

    def __init__(self, name: str, state: dict[str, Any], *, is_dict: bool = False) -> None:
        self.data = b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n)\x81"
        inner = pickle.dumps(state, 2)[2:-1]
        items = b"(" + b"".join(pickle.dumps(x, 2)[2:-1] for kv in state.items() for x in kv)
        self.data += (items + b"u." if is_dict else inner + b"b.") if state else b"."


@pytest.mark.parametrize(
    ("name", "is_dict"),
    [
        ("pytorch_lightning.utilities.parsing AttributeDict", True),
        ("lightning.fabric.utilities.data AttributeDict", True),
        ("yacs.config CfgNode", True),
        ("argparse Namespace", False),
    ],
)
def test_types_of_other_packages(name: str, is_dict: bool) -> None:
    found, refused = read(Fake(name, {"lr": 0.5, "name": "x"}, is_dict=is_dict).data)
    assert (describe(found), refused) == ({"lr": 0.5, "name": "x"}, [])


def test_omegaconfs_objects_are_read_as_their_content() -> None:
    """As OmegaConf 2 saves ``{"lr": 0.5, "steps": [1]}``, its nodes linked to their parents."""
    text = (
        b"\x80\x02comegaconf.dictconfig\nDictConfig\n)\x81q\x00}(X\x09\x00\x00\x00_metadata"
        b"comegaconf.base\nContainerMetadata\n)\x81}(X\x08\x00\x00\x00ref_typectyping\nAny\n"
        b"X\x0b\x00\x00\x00object_typec__builtin__\ndict\nubX\x08\x00\x00\x00_content}"
        b"X\x02\x00\x00\x00lrcomegaconf.nodes\nAnyNode\n)\x81}(X\x07\x00\x00\x00_parenth\x00"
        b"X\x04\x00\x00\x00_valG?\xe0\x00\x00\x00\x00\x00\x00ubsX\x07\x00\x00\x00_parentNub."
    )
    found, refused = read(text)
    assert (describe(found), refused) == ({"lr": 0.5}, [])


def test_every_listed_name_is_of_this_project_or_inert() -> None:
    """No class or function outside the project is called for a name in a file."""
    for known in _NAMES.values():
        module = getattr(known.build, "__module__", "seresnext_jax.weights.")
        assert module.startswith("seresnext_jax.weights."), known.name
    assert not {"builtins.getattr", "builtins.eval", "os.system", "torch.load"} & _NAMES.keys()


# ---- what is refused ---------------------------------------------------------------------------


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.parts = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.parts


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: {"args": argparse.Namespace(a=x)},
        lambda x: collections.OrderedDict(a=x),
        lambda x: [np.float32(1), (x,)],
        lambda x: collections.defaultdict(list, a=x),
        lambda x: types.SimpleNamespace(a=[x]),
        lambda x: np.array([x, 1], dtype=object),
    ],
)
def test_harm_beside_plain_data_is_refused(tmp_path: Path, wrap: Any, protocol: int) -> None:
    trace = tmp_path / "trace"
    data = pickle.dumps(wrap(Call(os.mkdir, str(trace))), protocol)
    _, refused = read(data)
    assert refused == ["posix.mkdir"]
    assert not trace.exists()
    pickle.loads(data)
    assert trace.exists(), "the pickle is harmless: the test proves nothing"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"cos\nsystem\n(X\x02\x00\x00\x00lstR.", "os.system"),
        (b"(X\x02\x00\x00\x00lsios\nsystem\n.", "os.system"),
        (b"(cos\nsystem\nX\x02\x00\x00\x00lso.", "os.system"),
        (b"\x80\x02cos\nsystem\n)\x81.", "os.system"),
        (b"\x8c\x02os\x8c\x06system\x93)R.", "os.system"),
        (b"c__builtin__\neval\n(X\x01\x00\x00\x001tR.", "builtins.eval"),
        (b"cbuiltins\ngetattr\n(cbuiltins\nstr\nX\x05\x00\x00\x00uppertR.", "builtins.getattr"),
        # A listed name that may not be called, or not so.
        (b"cbuiltins\nobject\n)R.", "builtins.object"),
        (b"cbuiltins\ntype\n(X\x01\x00\x00\x00a)}tR.", "builtins.type"),
        (b"coperator\ngetitem\n(}K\x01tR.", "operator.getitem"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00hextR.", "_codecs.encode"),
        (b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nN)NtR.", "os.system"),
        (b"ccopyreg\n_reconstructor\n(ctyping\nAny\ncbuiltins\nobject\nNtR.", "typing.Any"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cbuiltins\ndict\n)tR.", "builtins.dict"),
    ],
)  # fmt: skip
def test_calls_that_are_not_plain_data(data: bytes, name: str) -> None:
    found, refused = read(data)
    assert refused == [name]
    assert isinstance(found, Record)


@pytest.mark.parametrize(
    "data",
    [
        # BUILD on a class, a function, a list or a number changes nothing here.
        b"cargparse\nNamespace\n}X\x08\x00\x00\x00__init__K\x01sb.",
        b"ctorch._utils\n_rebuild_tensor_v2\n}X\x0c\x00\x00\x00__defaults__)sb.",
        b"]}X\x01\x00\x00\x00aK\x01sb.",
        b"K\x01K\x01R.",
        b"\x82\x01.",  # an extension
        b"Pos.system\n.",  # a persistent id as text
        b"\x97.",  # a buffer outside the pickle
    ],
)
def test_operations_that_no_plain_data_needs(data: bytes) -> None:
    with pytest.raises((ValueError, TypeError, AttributeError, LookupError)):
        read(data)


def test_attributes_of_an_object_are_only_data() -> None:
    state = {"__class__": "x", "__init__": 1, "build": 2}
    found, _ = read(Fake("argparse Namespace", state).data)
    assert isinstance(found, Record)
    assert type(found) is Record and found.name == "argparse.Namespace"
    assert describe(found) == state


# ---- limits ------------------------------------------------------------------------------------

SMALL_AND_LARGE = {
    "nested tuples": b"K\x01" + b"2\x86" * 480 + b".",
    "nested tuples as a key": b"}K\x01" + b"2\x86" * 480 + b"K\x01s.",
    "nested tuples in a set": b"\x8fK\x01(" + b"2\x86" * 100 + b"\x90.",
    "a list in itself": b"]2a.",
    "deep lists": b"]" * 900 + b"a" * 899 + b".",
    "a large memo": b"K\x01r\xff\xff\xff\xff.",
    "text of 4 GB": b"X\xff\xff\xff\xffa.",
    "text of 8 EB": b"\x8d" + struct.pack("<Q", 2**62) + b"a.",
    "bytes of 8 EB": b"\x8e" + struct.pack("<Q", 2**62) + b"a.",
    "a bytearray of 8 EB": b"\x96" + struct.pack("<Q", 2**62) + b"a.",
    "a frame of 8 EB": b"\x95" + struct.pack("<Q", 2**62) + b"K\x01.",
    "a bytearray of a number": b"c__builtin__\nbytearray\n(J\xff\xff\xff\x7ftR.",
    "a range": b"cbuiltins\nrange\n(J\xff\xff\xff\x7ftR.",
    "a list of a range": b"cbuiltins\nlist\n(cbuiltins\nrange\n(J\xff\xff\xff\x7ftRtR.",
    "a tuple of a number": b"ctorch\nSize\n(J\xff\xff\xff\x7ftR.",
    "a type of 1 GB": b"cnumpy\ndtype\n(X\x0a\x00\x00\x00S999999999tR.",
    "an empty array of many": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n)tR(K\x01(J\xff\xff\xff\x7f"
        b"J\xff\xff\xff\x7ftcnumpy\ndtype\n(X\x02\x00\x00\x00f4tRNC\x00tb."
    ),
    "copies of copies": (
        b"(" + b"K\x01" * 200 + b"lq\x01" + b"c__builtin__\nlist\nq\x02h\x01\x85R"
        + b"h\x02h\x01\x85R" * 100 + b"."
    ),
    "a long integer": b"\x8b\x80\x03\x00\x00" + b"\x7f" * 896 + b".",
    "an integer in digits": b"L" + b"9" * 990 + b"L\n.",
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL_AND_LARGE)
def test_a_small_pickle_takes_little(name: str, tmp_path: Path) -> None:
    data = SMALL_AND_LARGE[name]
    assert len(data) < 2000
    (tmp_path / "a.pth").write_bytes(b"\x80\x02" + data)
    tracemalloc.start()
    started = time.thread_time()
    try:
        describe(read(data)[0])
    except (ValueError, TypeError, LookupError, AttributeError, MemoryError):
        pass
    try:
        open_torch_file(tmp_path / "a.pth").tables  # noqa: B018
    except UserError as error:
        assert str(error).isprintable()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20, f"{peak} bytes"
    assert time.thread_time() - started < 2


def test_a_pickle_of_too_many_operations() -> None:
    with pytest.raises(ValueError, match="too many operations"):
        read(b"N0" * 1_600_000 + b".")
    wide = b"(" + b"K\x01" * 10_000 + b"lq\x00c__builtin__\nlist\nq\x01" + b"h\x01h\x00\x85R" * 500
    with pytest.raises(ValueError, match="too many operations"):
        read(wide + b".")


# ---- fuzz --------------------------------------------------------------------------------------

OPERATIONS = [
    bytes([code])
    for code in b"().0125NI)]}abdelorstu\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94Q"
]
ATOMS = [
    b"K\x01", b"K\x00", b"M\x10\x27", b"X\x01\x00\x00\x00a", b"C\x02ab", b"h\x00", b"q\x00",
    b"G?\xf0\x00\x00\x00\x00\x00\x00", b"\x8a\x01\x05",
    *(f"c{k.name.rpartition('.')[0]}\n{k.name.rpartition('.')[2]}\n".encode()
      for k in _NAMES.values()),
    b"cos\nsystem\n", b"X\x02\x00\x00\x00f4", b"X\x05\x00\x00\x00stora",
]  # fmt: skip


def accept(data: bytes) -> None:
    """Read bytes: a value, or an error that the reader of files turns into a line."""
    try:
        value, _ = read(data)
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, EOFError,
            MemoryError, OverflowError, RuntimeError, struct.error):  # fmt: skip
        return
    describe(value)
    inert = (Record, Known, StoredArray, StoredTensor, np.ndarray)
    plain = (str, bytes, bytearray, int, float, complex, bool, type(None), list, tuple, dict, set,
             frozenset)  # fmt: skip
    own = type(value).__module__.startswith("seresnext_jax.weights.")
    assert isinstance(value, inert + plain) or own or isinstance(value, np.longdouble)


@settings(max_examples=300)
@given(st.lists(st.sampled_from(OPERATIONS + ATOMS), max_size=60))
def test_random_operations(parts: list[bytes]) -> None:
    accept(b"".join(parts) + b".")


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    accept(data)


SAMPLE = pickle.dumps(
    {"a": argparse.Namespace(a=1), "x": np.float32(1), "y": np.arange(3), "p": Path("a")}, 2
)


@settings(max_examples=200)
@given(st.integers(0, len(SAMPLE)), st.binary(max_size=4))
def test_truncated_and_changed_pickles(at: int, inserted: bytes) -> None:
    accept(SAMPLE[:at])
    accept(SAMPLE[:at] + inserted + SAMPLE[at:])
    accept(SAMPLE[:at] + inserted + SAMPLE[at + len(inserted) :])


nested = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=30,
)


@settings(max_examples=100)
@given(nested, st.sampled_from(list(PROTOCOLS)))
def test_nested_containers_come_back(value: Any, protocol: int) -> None:
    assert reread(value, protocol) == value
