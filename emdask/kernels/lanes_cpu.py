"""Eight float32 values at once, for numba kernels whose loops LLVM does not vectorise by itself.

A `Lanes` value is one LLVM vector of eight floats: one AVX register, or two NEON ones. Kernels
load, combine and store such vectors explicitly, so that their speed does not hang on the moods of
an auto-vectoriser, and small linear transforms are written out in full when a kernel is compiled.

Functions here are numba intrinsics: they can be called from compiled code only, take element
offsets into flat arrays and check no bounds.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

__all__ = [
    "N_LANES",
    "add_row_products",
    "add_weighted_block",
    "block_transform",
    "broadcast",
    "compiled",
    "inlined",
    "keep_above",
    "lanes_at_most",
    "load",
    "maximum",
    "minimum",
    "multiply_add",
    "ones_above",
    "pair_totals",
    "prefetch",
    "store",
    "total",
    "trailing_zeros",
]

N_LANES = 8
FLAGS = ("contract", "nsz", "arcp")
VECTOR = ir.VectorType(ir.FloatType(), N_LANES)
F = TypeVar("F", bound=Callable[..., Any])


class Lanes(types.Type):  # type: ignore[misc]
    """The numba type of eight float32 values."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


LANES = Lanes()


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    """Lanes are kept as one LLVM vector."""

    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, VECTOR)


def written_out(emitter: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function of compiled code from one that writes its LLVM instructions."""
    return intrinsic(emitter)  # type: ignore[no-any-return]


def compiled(function: F) -> F:
    """Compile when first called, without the interpreter's lock, and keep the code on disk."""
    return njit(nogil=True, cache=True, error_model="numpy")(function)  # type: ignore[no-any-return]


def inlined(function: F) -> F:
    """Compile into each function that calls it: for what is called for each point of an array."""
    return njit(nogil=True, error_model="numpy", forceinline=True)(function)  # type: ignore[no-any-return]


def _register_operator(function: Callable[..., Any], emit: str) -> None:
    class Template(ConcreteTemplate):  # type: ignore[misc]
        cases = [signature(LANES, LANES, LANES)]  # noqa: RUF012

    infer_global(function)(Template)

    @lower_builtin(function, LANES, LANES)  # type: ignore[untyped-decorator]
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, emit)(*args, flags=FLAGS)


for _function, _emit in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _register_operator(_function, _emit)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    pointer = builder.gep(data, [offset])
    return builder.bitcast(pointer, VECTOR.as_pointer())


def _splat(value: float) -> Any:
    return ir.Constant(VECTOR, [float(np.float32(value))] * N_LANES)


@written_out
def load(typingctx: Any, array: Any, offset: Any) -> Any:
    """Eight consecutive values of a flat float32 array."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, sig.args[0], *args), align=4)

    return LANES(array, types.intp), emit


@written_out
def store(typingctx: Any, array: Any, offset: Any, value: Any) -> Any:
    """Write eight consecutive values of a flat float32 array."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1])
        builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, LANES), emit


@written_out
def prefetch(typingctx: Any, array: Any, offset: Any) -> Any:
    """Ask for the cache line of an element, which need not exist; nothing waits for it."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        integer, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, integer, integer, integer])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        where = builder.bitcast(_pointer(context, builder, sig.args[0], *args), pointer)
        read, keep, data = integer(0), integer(3), integer(1)
        builder.call(call, [where, read, keep, data])
        return context.get_dummy_value()

    return types.void(array, types.intp), emit


def _spread(builder: Any, value: Any) -> Any:
    seed = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), value, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), N_LANES), [0] * N_LANES)
    return builder.shuffle_vector(seed, ir.Constant(VECTOR, ir.Undefined), zeros)


@written_out
def broadcast(typingctx: Any, value: Any) -> Any:
    """One float32 in all lanes."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _spread(builder, args[0])

    return LANES(types.float32), emit


def _select_by(comparison: str) -> Callable[..., Any]:
    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        left, right = args
        return builder.select(builder.fcmp_ordered(comparison, left, right), left, right)

    return emit


@written_out
def minimum(typingctx: Any, left: Any, right: Any) -> Any:
    """The smaller value, lane by lane."""
    return LANES(LANES, LANES), _select_by("<")


@written_out
def maximum(typingctx: Any, left: Any, right: Any) -> Any:
    """The larger value, lane by lane."""
    return LANES(LANES, LANES), _select_by(">")


@written_out
def multiply_add(typingctx: Any, left: Any, right: Any, addend: Any) -> Any:
    """`left * right + addend`, rounded once."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _multiply_add(builder, *args)

    return LANES(LANES, LANES, LANES), emit


@written_out
def lanes_at_most(typingctx: Any, values: Any, limits: Any) -> Any:
    """Bit mask (int64) of the lanes where `values <= limits`."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        mask = builder.fcmp_ordered("<=", *args)
        return builder.zext(builder.bitcast(mask, ir.IntType(8)), ir.IntType(64))

    return types.int64(LANES, LANES), emit


@written_out
def trailing_zeros(typingctx: Any, mask: Any) -> Any:
    """Index of the lowest set bit of a non-zero int64."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), emit


@written_out
def total(typingctx: Any, values: Any) -> Any:
    """Sum of the eight lanes, added in a fixed order."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        lane = [builder.extract_element(args[0], ir.IntType(32)(i)) for i in range(N_LANES)]
        while len(lane) > 1:
            lane = [builder.fadd(a, b) for a, b in zip(lane[::2], lane[1::2], strict=True)]
        return lane[0]

    return types.float32(LANES), emit


@written_out
def pair_totals(typingctx: Any, values: Any) -> Any:
    """Sum of four complex numbers in eight lanes, complex64."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        fours = _add_halves(builder, args[0], 4)
        twos = _add_halves(builder, fours, 2)
        result = context.make_complex(builder, types.complex64)
        result.real, result.imag = (
            builder.extract_element(twos, ir.IntType(32)(i)) for i in (0, 1)
        )
        return result._getvalue()

    return types.complex64(LANES), emit


def _add_halves(builder: Any, values: Any, n_half: int) -> Any:
    undefined = ir.Constant(values.type, ir.Undefined)
    kind = ir.VectorType(ir.IntType(32), n_half)
    halves = [
        builder.shuffle_vector(
            values, undefined, ir.Constant(kind, list(range(start, start + n_half)))
        )
        for start in (0, n_half)
    ]
    return builder.fadd(*halves)


@written_out
def keep_above(typingctx: Any, values: Any, limits: Any) -> Any:
    """`values` where `abs(values) > limits`, zero elsewhere."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        values, limits = args
        return builder.select(_is_above(builder, values, limits), values, _splat(0.0))

    return LANES(LANES, LANES), emit


@written_out
def ones_above(typingctx: Any, values: Any, limits: Any) -> Any:
    """One where `abs(values) > limits`, zero elsewhere."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(_is_above(builder, *args), _splat(1.0), _splat(0.0))

    return LANES(LANES, LANES), emit


def _is_above(builder: Any, values: Any, limits: Any) -> Any:
    kind = ir.FunctionType(VECTOR, [VECTOR])
    absolute = cgutils.get_or_insert_function(builder.module, kind, "llvm.fabs.v8f32")
    return builder.fcmp_ordered(">", builder.call(absolute, [values]), limits)


def block_transform(matrix: Any) -> Callable[..., None]:
    """Compile `M X M^T` of 8x8 blocks for one constant matrix.

    Parameters
    ----------
    matrix : (8, 8) array
        The one-dimensional transform, one output per row.

    Returns
    -------
    intrinsic
        `transform(source, offset, stride, target, target_offset)`: reads the block whose rows start
        at `source[offset + row * stride]` and writes the transpose of its transform as 64 values.
    """

    @written_out
    def transform(
        typingctx: Any, source: Any, offset: Any, stride: Any, target: Any, target_offset: Any
    ) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            rows = _load_rows(context, builder, sig.args[0], args[0], args[1], args[2])
            rows = _apply_both_ways(builder, matrix, rows)
            step = ir.Constant(ir.IntType(64), N_LANES)
            _store_rows(context, builder, sig.args[3], args[3], args[4], step, rows)
            return context.get_dummy_value()

        return types.void(source, types.intp, types.intp, target, types.intp), emit

    return transform


def add_weighted_block(matrix: Any) -> Callable[..., None]:
    """Compile `target += window * (M X M^T)` of 8x8 blocks for one constant matrix.

    Parameters
    ----------
    matrix : (8, 8) array
        The one-dimensional transform, one output per row.

    Returns
    -------
    intrinsic
        `add(source, offset, window, target, target_offset, stride)`: `source` holds 64 values as
        written by `block_transform`, `window` 64 weights, and row r is added at
        `target[target_offset + r * stride]`.
    """

    @written_out
    def add(
        typingctx: Any,
        source: Any,
        offset: Any,
        window: Any,
        target: Any,
        target_offset: Any,
        stride: Any,
    ) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            step = ir.Constant(ir.IntType(64), N_LANES)
            zero = ir.Constant(ir.IntType(64), 0)
            rows = _load_rows(context, builder, sig.args[0], args[0], args[1], step)
            rows = _apply_both_ways(builder, matrix, rows)
            weights = _load_rows(context, builder, sig.args[2], args[2], zero, step)
            old = _load_rows(context, builder, sig.args[3], args[3], args[4], args[5])
            new = [
                _multiply_add(builder, row, weight, value)
                for row, weight, value in zip(rows, weights, old, strict=True)
            ]
            _store_rows(context, builder, sig.args[3], args[3], args[4], args[5], new)
            return context.get_dummy_value()

        return types.void(source, types.intp, window, target, types.intp, types.intp), emit

    return add


def add_row_products(n_rows: int, n_columns: int) -> Callable[..., None]:
    """Compile `sums += rows @ panel` for so many rows at once, added up in registers.

    Parameters
    ----------
    n_rows
        Of `rows` and of `sums`.
    n_columns
        Of the panel, a multiple of eight; its rows lie one after another.

    Returns
    -------
    intrinsic
        `add(rows, offset, stride, panel, start, depth, sums, place, width)`: adds to rows of sums,
        `width` apart from `place` on, the first `depth` values of rows, `stride` apart from
        `offset` on, times as many rows of the panel from `start` on, one after another, each by
        fused multiply-add.
    """
    lanes = range(0, n_columns, N_LANES)

    @written_out
    def add(
        typingctx: Any,
        rows: Any,
        offset: Any,
        stride: Any,
        panel: Any,
        start: Any,
        depth: Any,
        sums: Any,
        place: Any,
        width: Any,
    ) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            _, offset, stride, _, start, depth, _, place, width = args

            def point(array: int, where: Any) -> Any:
                return _pointer(context, builder, sig.args[array], args[array], where)

            def move(where: Any, step: Any, n: int) -> Any:
                return builder.add(where, builder.mul(step, step.type(n)))

            targets = [
                point(6, builder.add(move(place, width, row), place.type(lane)))
                for row in range(n_rows)
                for lane in lanes
            ]
            kept = [
                cgutils.alloca_once_value(builder, builder.load(target, align=4))
                for target in targets
            ]
            with cgutils.for_range(builder, depth) as loop:
                line = move(start, loop.index, n_columns)
                factors = [
                    builder.load(point(3, builder.add(line, line.type(lane))), align=4)
                    for lane in lanes
                ]
                column = builder.add(offset, loop.index)
                for row in range(n_rows):
                    value = builder.bitcast(
                        point(0, move(column, stride, row)), ir.FloatType().as_pointer()
                    )
                    spread = _spread(builder, builder.load(value))
                    for i, factor in enumerate(factors, row * len(factors)):
                        new = _multiply_add(builder, spread, factor, builder.load(kept[i]))
                        builder.store(new, kept[i])
            for target, value in zip(targets, kept, strict=True):
                builder.store(builder.load(value), target, align=4)
            return context.get_dummy_value()

        where = [types.intp] * 2
        return types.void(rows, *where, panel, *where, sums, *where), emit

    return add


def _row_pointers(
    context: Any, builder: Any, array_type: Any, array: Any, offset: Any, stride: Any
) -> list[Any]:
    pointers = []
    for row in range(N_LANES):
        pointers.append(_pointer(context, builder, array_type, array, offset))
        if row + 1 < N_LANES:
            offset = builder.add(offset, stride)
    return pointers


def _load_rows(context: Any, builder: Any, *where: Any) -> list[Any]:
    return [builder.load(pointer, align=4) for pointer in _row_pointers(context, builder, *where)]


def _store_rows(
    context: Any,
    builder: Any,
    array_type: Any,
    array: Any,
    offset: Any,
    stride: Any,
    rows: Sequence[Any],
) -> None:
    pointers = _row_pointers(context, builder, array_type, array, offset, stride)
    for pointer, row in zip(pointers, rows, strict=True):
        builder.store(row, pointer, align=4)


def _apply_both_ways(builder: Any, matrix: Any, rows: Sequence[Any]) -> list[Any]:
    """Transform columns, transpose, transform what were the rows: the result stays transposed."""
    once = _apply_matrix(builder, matrix, rows)
    return _apply_matrix(builder, matrix, _transpose(builder, once))


def _apply_matrix(builder: Any, matrix: Any, rows: Sequence[Any]) -> list[Any]:
    """Matrix times eight vectors, halving the products where the matrix has mirror symmetry."""
    half = N_LANES // 2
    parity = _parity(matrix)
    if parity is not None:
        sums = [builder.fadd(rows[k], rows[-1 - k], flags=FLAGS) for k in range(half)]
        differences = [builder.fsub(rows[k], rows[-1 - k], flags=FLAGS) for k in range(half)]
        return [
            _combine(builder, row[:half], sums if even else differences)
            for row, even in zip(matrix, parity, strict=True)
        ]
    parity = _parity(matrix.T)
    if parity is not None:
        evens = [row for row, even in zip(rows, parity, strict=True) if even]
        odds = [row for row, even in zip(rows, parity, strict=True) if not even]
        even_part = [_combine(builder, matrix[k][parity], evens) for k in range(half)]
        odd_part = [_combine(builder, matrix[k][~parity], odds) for k in range(half)]
        pairs = list(zip(even_part, odd_part, strict=True))
        upper = [builder.fadd(even, odd, flags=FLAGS) for even, odd in pairs]
        lower = [builder.fsub(even, odd, flags=FLAGS) for even, odd in pairs]
        return upper + lower[::-1]
    return [_combine(builder, row, rows) for row in matrix]


def _parity(matrix: Any) -> Any:
    """Which rows are mirror-symmetric, if all others are mirror-antisymmetric; else None."""
    even = np.isclose(matrix, matrix[:, ::-1], rtol=0, atol=1e-12).all(axis=1)
    odd = np.isclose(matrix, -matrix[:, ::-1], rtol=0, atol=1e-12).all(axis=1)
    return even if np.all(even ^ odd) else None


def _combine(builder: Any, factors: Any, rows: Sequence[Any]) -> Any:
    """Sum of vectors times constants; zero factors cost nothing."""
    result = None
    for factor, row in zip(factors, rows, strict=True):
        if abs(factor) < 1e-12:
            continue
        if result is None:
            result = builder.fmul(row, _splat(factor), flags=FLAGS)
        else:
            result = _multiply_add(builder, row, _splat(factor), result)
    return result


def _multiply_add(builder: Any, left: Any, right: Any, addend: Any) -> Any:
    kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
    fused = cgutils.get_or_insert_function(builder.module, kind, "llvm.fma.v8f32")
    return builder.call(fused, [left, right, addend])


# Lane orders of the three steps of an 8x8 transpose; indices from 8 on pick from the second vector.
INTERLEAVE_ONES = ((0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15))
INTERLEAVE_PAIRS = ((0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15))
JOIN_HALVES = ((0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15))


def _transpose(builder: Any, rows: Sequence[Any]) -> list[Any]:
    def shuffle(first: Any, second: Any, order: Sequence[int]) -> Any:
        mask = ir.Constant(ir.VectorType(ir.IntType(32), N_LANES), list(order))
        return builder.shuffle_vector(first, second, mask)

    ones = [
        shuffle(rows[i], rows[i + 1], order)
        for i in range(0, N_LANES, 2)
        for order in INTERLEAVE_ONES
    ]
    pairs = [
        shuffle(ones[i + k], ones[i + k + 2], order)
        for i in (0, 4)
        for k in (0, 1)
        for order in INTERLEAVE_PAIRS
    ]
    return [shuffle(pairs[k], pairs[k + 4], order) for order in JOIN_HALVES for k in range(4)]
