"""The kernels of a compiled GPU program and their memory traffic, read from its optimized HLO text.

A kernel's traffic is the size of its operands and results: what it has to read from and write to
the device's memory if each is touched once. It ignores caches and repeated reads.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_ITEM_SIZES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2}
_ITEM_SIZES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_NOT_A_KERNEL = ("parameter", "get-tuple-element", "tuple", "constant", "bitcast")
_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "reduce-scatter",
)

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(, .*)?$")
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


class Kernel(NamedTuple):
    """One kernel launch, or one call of a library."""

    kind: str
    """The library's function, ``gemm fusion``, ``reducing fusion``, or the HLO operation."""
    read: int
    """Bytes of its operands; for a slice, only the bytes that it reads."""
    written: int
    """Bytes of its results."""
    overlaps: bool = False
    """Whether it is a collective that runs at the same time as other kernels."""

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return self.read + self.written


class _Instruction(NamedTuple):
    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    attributes: str

    def attribute(self, pattern: str) -> str:
        """The text that a pattern's first group matches in the attributes; "" if it isn't found."""
        match = re.search(pattern, self.attributes)
        return match.group(1) if match else ""


_Bodies = dict[str, list[_Instruction]]
"""The instructions of each computation."""


def read_kernels(hlo: str) -> list[Kernel]:
    """The kernels of a program in text order; the kernels of a loop once per iteration.

    If the number of iterations is unknown, a loop's kernels count once.

    Raises:
      ValueError: the text has no entry computation.
    """
    return list(_kernels_of(*_parse(hlo)))


def by_kind(kernels: Iterable[Kernel]) -> dict[str, tuple[int, int]]:
    """For each kind, its number of kernels and their bytes, largest traffic first."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for kernel in kernels:
        counts[kernel.kind] += 1
        sizes[kernel.kind] += kernel.bytes
    return {kind: (counts[kind], size) for kind, size in sizes.most_common()}


def describe_collectives(kernels: Iterable[Kernel]) -> str:
    """Number and kind of the collectives: ``7 all-reduce (async), 1 all-gather``; "-": none."""
    found = Counter(
        f"{kernel.kind} (async)" if kernel.overlaps else kernel.kind
        for kernel in kernels
        if kernel.kind in _COLLECTIVES
    )
    return ", ".join(f"{count} {kind}" for kind, count in found.items()) or "-"


def _parse(hlo: str) -> tuple[_Bodies, str]:
    """Every computation, and the name of the entry computation."""
    bodies: _Bodies = {}
    entry = ""
    body: list[_Instruction] = []
    for line in hlo.splitlines():
        if line.endswith("{") and (start := _COMPUTATION.match(line)):
            is_entry, name = start.groups()
            body = bodies[name] = []
            entry = name if is_entry else entry
        elif match := _INSTRUCTION.match(line.strip()):
            name, shape, op, operands, attributes = match.groups()
            names = tuple(re.findall(r"%([\w.\-]+)", operands))
            body.append(_Instruction(name, shape, op, names, attributes or ""))
    if not entry:
        raise ValueError("the HLO text has no entry computation")
    return bodies, entry


def _kernels_of(bodies: _Bodies, name: str) -> Iterator[Kernel]:
    """The kernels of one computation and of the computations that it calls."""
    shapes: dict[str, str] = {}
    for instruction in bodies[name]:
        shapes[instruction.name] = instruction.shape
        op = instruction.op
        if op in _NOT_A_KERNEL or op.endswith("-done"):
            continue
        if op == "call":
            yield from _kernels_of(bodies, instruction.attribute(r"to_apply=%([\w.\-]+)"))
        elif op == "while":
            iterations = instruction.attribute(r'"known_trip_count":\{"n":"(\d+)"') or "1"
            for _ in range(int(iterations)):
                yield from _kernels_of(bodies, instruction.attribute(r"body=%([\w.\-]+)"))
        else:
            yield _kernel(bodies, instruction, shapes)


def _kernel(bodies: _Bodies, instruction: _Instruction, shapes: dict[str, str]) -> Kernel:
    body = bodies.get(instruction.attribute(r"calls=%([\w.\-]+)"), [])
    if instruction.op == "async-start":
        # A wrapper: the operation itself is the root of the computation that it calls.
        instruction = body[-1]._replace(operands=instruction.operands)
    written = _size(instruction.shape)
    takes_a_part = instruction.op == "slice" or instruction.name.startswith("wrapped_slice")
    read = sum(_size(shapes.get(operand, "")) for operand in instruction.operands)
    return Kernel(
        kind=_kind(instruction, {inner.op for inner in body}),
        read=written if takes_a_part else read,
        written=written,
        overlaps='"is_sync":false' in instruction.attributes,
    )


def _kind(instruction: _Instruction, inner_ops: set[str]) -> str:
    if target := instruction.attribute(r'custom_call_target="([^"]+)"'):
        return target
    if "dot" in inner_ops:
        return "gemm fusion"
    if "reduce" in inner_ops:
        return "reducing fusion"
    return instruction.op.removesuffix("-start")


def _size(shape: str) -> int:
    """Bytes of an array, or of all arrays of a tuple."""
    return sum(
        _ITEM_SIZES.get(item, 0) * math.prod(int(n) for n in dims.split(",") if n)
        for item, dims in _SHAPE.findall(shape)
    )
