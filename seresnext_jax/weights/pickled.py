"""Reads a pickle as data. Nothing in it is imported, called or executed.

This is an interpreter of pickle's opcodes. It knows plain values, and the classes that
pickled_names.py lists: a function there builds each from data alone. Any other class becomes a
`Record` with its name, and is noted in `refused`: the caller must then refuse the file.
"""

import pickletools
import warnings
from collections.abc import Callable
from typing import Any

from seresnext_jax.weights.numpy_pickled import DType, set_array, set_dtype
from seresnext_jax.weights.pickled_names import canonical_name, find_name
from seresnext_jax.weights.plain import Budget, Known, NotPlainError, Record, checked_key
from seresnext_jax.weights.stored import StoredArray, StoredTensor

_MARK = object()
_VALUES = {
    # The opcodes that push their argument.
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_NEW: dict[str, Callable[[], Any]] = {
    # The opcodes that push a constant or an empty container.
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set,
}  # fmt: skip
_BYTES_PER_STEP = 64


class DataUnpickler:
    """Reads the pickles of one file.

    Args:
      find_storage: returns the storage of a persistent id.
    """

    def __init__(self, find_storage: Callable[[Any], Any]) -> None:
        self._find_storage = find_storage
        self._budget = Budget()
        self.refused: dict[str, None] = {}
        """The names of objects that are not plain data, in file order."""

    def load(self, file: Any) -> Any:
        """The value of the pickle at the file's position, which moves past it.

        Args:
          file: a binary file; needs only ``read``, ``readline`` and ``tell``.

        Raises:
          ValueError, IndexError, KeyError, TypeError, ...: the file is damaged.
        """
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        with warnings.catch_warnings(action="ignore"):  # about odd escapes in old strings
            return self._run(file)

    def _run(self, file: Any) -> Any:
        for operation, argument, _ in pickletools.genops(file):
            self._budget.spend(1)
            name = operation.name
            if name == "STOP":
                if self._stack[-1] is _MARK:
                    raise ValueError("a pickle that ends too early")
                return self._stack.pop()
            if name in _VALUES:
                self._stack.append(argument)
            elif name in _NEW:
                self._stack.append(_NEW[name]())
            else:
                getattr(self, f"_{name.lower()}")(argument)
        raise ValueError("a pickle without an end")

    # ---- names and objects ---------------------------------------------------------------------

    def _find(self, module: str, name: str) -> Known | Record:
        canonical = canonical_name(module, name)
        return find_name(canonical) or self._refuse(canonical)

    def _refuse(self, name: str) -> Record:
        self.refused[name] = None
        return Record(name)

    def _make(self, function: Any, args: Any) -> Any:
        """Build the object that the call ``function(*args)`` would return, without calling it."""
        if not isinstance(args, tuple):
            raise ValueError("arguments that are not a tuple")
        if isinstance(function, Record):
            return Record(function.name)
        if not isinstance(function, Known):
            raise ValueError("a call of what is not a function")
        if function.build is None:
            return self._refuse(function.name)
        for value in args:
            # Builders copy their arguments.
            self._budget.spend(_size(value))
        try:
            return function.build(*args)
        except NotPlainError as error:
            return self._refuse(str(error))

    def _global(self, argument: str) -> None:
        self._stack.append(self._find(*argument.split(" ", 1)))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a name that is not text")
        self._stack.append(self._find(module, name))

    def _reduce(self, _: Any) -> None:
        args, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self._make(function, args))

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        if self._stack.pop():
            raise ValueError("an object with keywords")
        self._reduce(None)

    def _inst(self, argument: str) -> None:
        args = tuple(self._pop_to_mark())
        self._stack.append(self._make(self._find(*argument.split(" ", 1)), args))

    def _obj(self, _: Any) -> None:
        function, *args = self._pop_to_mark()
        self._stack.append(self._make(function, tuple(args)))

    def _build(self, _: Any) -> None:
        """Set the state of the object on the stack: only data is set, no method is called."""
        state, target = self._stack.pop(), self._stack[-1]
        self._budget.spend(_size(state))
        if isinstance(target, Record):
            parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
            for part in parts:
                if isinstance(part, dict):
                    target.state.update(part)
        elif isinstance(target, DType):
            set_dtype(target, state)
        elif isinstance(target, StoredArray):
            set_array(target, state)
        elif not isinstance(target, dict | StoredTensor):  # ignore attributes of these
            raise ValueError("a state for what has none")

    def _binpersid(self, _: Any) -> None:
        self._stack.append(self._find_storage(self._stack.pop()))

    # ---- plain values --------------------------------------------------------------------------

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def _tuple1(self, _: Any) -> None:
        self._last_as_tuple(1)

    def _tuple2(self, _: Any) -> None:
        self._last_as_tuple(2)

    def _tuple3(self, _: Any) -> None:
        self._last_as_tuple(3)

    def _last_as_tuple(self, count: int) -> None:
        items = [self._stack.pop() for _ in range(count)]
        self._stack.append(tuple(items[::-1]))

    def _list(self, _: Any) -> None:
        self._stack.append(self._pop_to_mark())

    def _dict(self, _: Any) -> None:
        items = self._pop_to_mark()
        self._stack.append({})
        self._set_items(items)

    def _frozenset(self, _: Any) -> None:
        self._stack.append(frozenset(map(checked_key, self._pop_to_mark())))

    def _append(self, _: Any) -> None:
        item = self._stack.pop()
        self._extend([item])

    def _appends(self, _: Any) -> None:
        self._extend(self._pop_to_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Record):
            raise ValueError("items for what is not a list")

    def _additems(self, _: Any) -> None:
        items, target = self._pop_to_mark(), self._stack[-1]
        if not isinstance(target, set):
            raise ValueError("items for what is not a set")
        target.update(map(checked_key, items))

    def _setitem(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def _setitems(self, _: Any) -> None:
        self._set_items(self._pop_to_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, dict):
            target.update(
                (checked_key(key), value)
                for key, value in zip(items[::2], items[1::2], strict=True)
            )
        elif not isinstance(target, Record):
            raise ValueError("entries for what is not a dictionary")

    # ---- the machine ---------------------------------------------------------------------------

    def _proto(self, _: Any) -> None:
        """Ignore the protocol version: the opcodes do not depend on it."""

    _frame = _proto

    def _mark(self, _: Any) -> None:
        self._stack.append(_MARK)

    def _pop_to_mark(self) -> list[Any]:
        items = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _pop(self, _: Any) -> None:
        self._stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._pop_to_mark()

    def _dup(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _put(self, argument: int) -> None:
        self._memo[argument] = self._stack[-1]

    def _get(self, argument: int) -> None:
        self._stack.append(self._memo[argument])

    _binput = _long_binput = _put
    _binget = _long_binget = _get


def _size(value: Any) -> int:
    """The cost of copying a value, in steps."""
    if isinstance(value, str | bytes | bytearray):
        return len(value) // _BYTES_PER_STEP
    return len(value) if isinstance(value, list | tuple | dict | set | frozenset) else 1
