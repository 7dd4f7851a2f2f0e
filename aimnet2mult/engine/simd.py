"""Explicit vector code for numba: sixteen float32 at a time, whatever the width of the machine's registers.

A kernel is a Python function that runs once, when its caller is compiled, and writes instructions: `emitted` turns
it into something that compiled functions can call. What it handles are not numbers but `Lanes`, `Floats` and `Int`,
whose operators append to the code; loops of Python unroll. LLVM splits the sixteen lanes where registers are
narrower. No operation is reordered or simplified: a NaN stays a NaN.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES: Final = 16
_F32: Final = ir.FloatType()
_F64: Final = ir.DoubleType()
_I32: Final = ir.IntType(32)
_I64: Final = ir.IntType(64)
_VECTOR: Final = ir.VectorType(_F32, LANES)
_INTEGERS: Final = ir.VectorType(_I32, LANES)


class Int:
    """A 64-bit integer of the code that is being written."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder = builder
        self.value = value

    def __add__(self, other: Int | int) -> Int:
        return Int(self.builder, self.builder.add(self.value, _integer(other)))

    def __mul__(self, other: Int | int) -> Int:
        return Int(self.builder, self.builder.mul(self.value, _integer(other)))

    def divided(self, other: int) -> Int:
        """self / other without remainder, for positive numbers."""
        return Int(self.builder, self.builder.sdiv(self.value, _integer(other)))


def _integer(value: Int | int) -> ir.Value:
    return value.value if isinstance(value, Int) else ir.Constant(_I64, value)


class Lanes:
    """Sixteen float32 of the code that is being written."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder = builder
        self.value = value

    def like(self, number: float) -> Lanes:
        """The same number in every lane."""
        return constant(self.builder, number)

    def _of(self, other: Lanes | float) -> ir.Value:
        return other.value if isinstance(other, Lanes) else self.like(other).value

    def _call(self, name: str, *arguments: ir.Value) -> Lanes:
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * len(arguments))
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return Lanes(self.builder, self.builder.call(function, arguments))

    def __add__(self, other: Lanes | float) -> Lanes:
        return Lanes(self.builder, self.builder.fadd(self.value, self._of(other)))

    def __sub__(self, other: Lanes | float) -> Lanes:
        return Lanes(self.builder, self.builder.fsub(self.value, self._of(other)))

    def __mul__(self, other: Lanes | float) -> Lanes:
        return Lanes(self.builder, self.builder.fmul(self.value, self._of(other)))

    def __truediv__(self, other: Lanes | float) -> Lanes:
        return Lanes(self.builder, self.builder.fdiv(self.value, self._of(other)))

    def times_plus(self, factor: Lanes | float, summand: Lanes | float) -> Lanes:
        """self * factor + summand, in one rounding where the machine can."""
        return self._call("llvm.fmuladd.v16f32", self.value, self._of(factor), self._of(summand))

    def where_below(self, bound: float, below: Lanes | float, otherwise: Lanes | float) -> Lanes:
        """`below` in the lanes where self < bound, `otherwise` elsewhere and where self is NaN."""
        mask = self.builder.fcmp_ordered("<", self.value, self._of(bound))
        return Lanes(self.builder, self.builder.select(mask, self._of(below), self._of(otherwise)))

    def root(self) -> Lanes:
        """Square root."""
        return self._call("llvm.sqrt.v16f32", self.value)

    def magnitude(self) -> Lanes:
        """|self|."""
        return self._call("llvm.fabs.v16f32", self.value)

    def bits_shifted_left(self, n_bits: int) -> ir.Value:
        """Bit patterns of the floats, as integers, shifted."""
        shift = ir.Constant(_INTEGERS, [n_bits] * LANES)
        return self.builder.shl(self.builder.bitcast(self.value, _INTEGERS), shift)

    def plus_bits(self, integers: ir.Value) -> Lanes:
        """Floats whose bit patterns are those of self plus `integers`."""
        bits = self.builder.add(self.builder.bitcast(self.value, _INTEGERS), integers)
        return Lanes(self.builder, self.builder.bitcast(bits, _VECTOR))

    def shuffled(self, other: Lanes, order: Sequence[int]) -> Lanes:
        """Lanes `order` of the 32 lanes of self and other."""
        mask = ir.Constant(ir.VectorType(_I32, LANES), list(order))
        return Lanes(self.builder, self.builder.shuffle_vector(self.value, other.value, mask))

    def lane(self, number: int) -> ir.Value:
        """One float32."""
        return self.builder.extract_element(self.value, ir.Constant(_I32, number))


def constant(builder: ir.IRBuilder, number: float) -> Lanes:
    """The same number in every lane."""
    return Lanes(builder, ir.Constant(_VECTOR, [number] * LANES))


def four_sums(v: list[Lanes]) -> list[Lanes]:
    """Sum over the lanes of each of four vectors, in every lane."""

    def halves(a: Lanes, b: Lanes) -> Lanes:
        low = a.shuffled(b, [*range(8), *range(16, 24)])
        return low + a.shuffled(b, [*range(8, 16), *range(24, 32)])

    a, b = halves(v[0], v[1]), halves(v[2], v[3])
    quarter = [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27]
    c = a.shuffled(b, quarter) + a.shuffled(b, [k + 4 for k in quarter])
    c = c + c.shuffled(c, [k ^ 2 for k in range(16)])
    c = c + c.shuffled(c, [k ^ 1 for k in range(16)])
    return [c.shuffled(c, [4 * k] * 16) for k in range(4)]


class Floats:
    """A float32 array, or a part of it from some position on."""

    def __init__(self, builder: ir.IRBuilder, pointer: ir.Value) -> None:
        self.builder = builder
        self.pointer = pointer

    def at(self, position: Int | int) -> Floats:
        """The array from `position` on."""
        return Floats(self.builder, self.builder.gep(self.pointer, [_integer(position)], inbounds=True))

    def lanes(self, position: Int | int = 0) -> Lanes:
        """Sixteen numbers from `position` on; they need not be aligned."""
        pointer = self.builder.bitcast(self.at(position).pointer, _VECTOR.as_pointer())
        return Lanes(self.builder, self.builder.load(pointer, align=4))

    def store(self, position: Int | int, lanes: Lanes) -> None:
        """Write sixteen numbers from `position` on."""
        pointer = self.builder.bitcast(self.at(position).pointer, _VECTOR.as_pointer())
        self.builder.store(lanes.value, pointer, align=4)

    def everywhere(self, position: Int | int = 0) -> Lanes:
        """The number at `position` in every lane."""
        number = self.builder.load(self.at(position).pointer)
        one = self.builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), number, ir.Constant(_I32, 0))
        zeros = ir.Constant(_INTEGERS, [0] * LANES)
        return Lanes(self.builder, self.builder.shuffle_vector(one, one, zeros))


class Doubles:
    """A float64 array."""

    def __init__(self, builder: ir.IRBuilder, pointer: ir.Value) -> None:
        self.builder = builder
        self.pointer = pointer

    def add(self, position: Int | int, number: ir.Value) -> None:
        """Add a float32 to the number at `position`."""
        pointer = self.builder.gep(self.pointer, [_integer(position)], inbounds=True)
        wide = self.builder.fpext(number, _F64)
        self.builder.store(self.builder.fadd(self.builder.load(pointer), wide), pointer)

    def add_lanes(self, position: Int | int, lanes: Lanes) -> None:
        """Add sixteen float32 to the numbers from `position` on."""
        kind = ir.VectorType(_F64, LANES)
        pointer = self.builder.gep(self.pointer, [_integer(position)], inbounds=True)
        pointer = self.builder.bitcast(pointer, kind.as_pointer())
        total = self.builder.fadd(self.builder.load(pointer, align=8), self.builder.fpext(lanes.value, kind))
        self.builder.store(total, pointer, align=8)


class Integers:
    """An int32 array."""

    def __init__(self, builder: ir.IRBuilder, pointer: ir.Value) -> None:
        self.builder = builder
        self.pointer = pointer

    def __getitem__(self, position: Int | int) -> Int:
        pointer = self.builder.gep(self.pointer, [_integer(position)], inbounds=True)
        return Int(self.builder, self.builder.sext(self.builder.load(pointer), _I64))


class Emitter:
    """Control flow of the code that is being written."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    def lanes(self, number: float) -> Lanes:
        """The same number in every lane."""
        return constant(self.builder, number)

    def repeat(
        self, count: Int, initial: Sequence[Lanes], step: Callable[[Int, list[Lanes]], Sequence[Lanes]]
    ) -> list[Lanes]:
        """Values after ``values = step(i, values)`` for i from 0 to count - 1; they stay in registers."""
        builder = self.builder
        before = builder.block
        head, body, after = (builder.append_basic_block(name) for name in ("head", "body", "after"))
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(_I64)
        index.add_incoming(ir.Constant(_I64, 0), before)
        phis = [builder.phi(_VECTOR) for _ in initial]
        for phi, value in zip(phis, initial, strict=True):
            phi.add_incoming(value.value, before)
        builder.cbranch(builder.icmp_signed("<", index, count.value), body, after)
        builder.position_at_end(body)
        values = step(Int(builder, index), [Lanes(builder, phi) for phi in phis])
        for phi, value in zip(phis, values, strict=True):
            phi.add_incoming(value.value, builder.block)
        index.add_incoming(builder.add(index, ir.Constant(_I64, 1)), builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        return [Lanes(builder, phi) for phi in phis]

    def choose(self, number: Int, cases: Iterable[int], write: Callable[[int], None]) -> None:
        """Write the code ``write(case)`` of each case; the one of `number` runs, or none."""
        builder = self.builder
        after = builder.append_basic_block("chosen")
        switch = builder.switch(number.value, after)
        for case in cases:
            block = builder.append_basic_block(f"case{case}")
            switch.add_case(ir.Constant(_I64, case), block)
            builder.position_at_end(block)
            write(case)
            builder.branch(after)
        builder.position_at_end(after)


_ARRAYS: Final = {types.float32: Floats, types.float64: Doubles, types.int32: Integers}


def _argument(context: Any, builder: ir.IRBuilder, kind: types.Type, value: ir.Value) -> Any:
    if isinstance(kind, types.Array):
        return _ARRAYS[kind.dtype](builder, context.make_array(kind)(context, builder, value).data)
    return Int(builder, context.cast(builder, value, kind, types.int64))


def _check(name: str, kinds: Sequence[types.Type]) -> None:
    for kind in kinds:
        vector = isinstance(kind, types.Array) and kind.layout == "C" and kind.ndim == 1 and kind.dtype in _ARRAYS
        if not (vector or isinstance(kind, types.Integer | types.IntegerLiteral)):
            raise TypeError(f"{name} takes contiguous one-dimensional arrays and integers, not {kind}")


def emitted(write: Callable[..., None]) -> Any:
    """Make ``write(emitter, *arguments)`` callable from compiled functions.

    They call it with contiguous one-dimensional arrays of float32, float64 or int32 and with integers; it is given
    `Floats`, `Doubles`, `Integers` and `Int`.
    """

    def declare(context: Any, *kinds: types.Type) -> Any:
        _check(write.__name__, kinds)

        def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[ir.Value]) -> ir.Value:
            arguments = [_argument(context, builder, *pair) for pair in zip(signature.args, values, strict=True)]
            write(Emitter(builder), *arguments)
            return context.get_dummy_value()

        return types.void(*kinds), generate

    declare.__name__ = declare.__qualname__ = write.__name__
    # numba matches arguments by the signature of the declaration
    declare.__signature__ = inspect.signature(write)  # type: ignore[attr-defined]
    return intrinsic(declare)
