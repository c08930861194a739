"""Triton kernels for a code's products and for choosing latents, on CUDA in float32 or bfloat16.

Imported only where Triton is installed (`_kernels.can_run`). With ``TRITON_INTERPRET=1`` in the
environment before the first import of Triton they run on the CPU, slowly, which is how the tests
run them without a GPU.

*Same bits every time.* No kernel adds atomically. A sum runs over the entries of its row in their
order, in segments of `SEGMENT`, and a scalar product over blocks of `DOT_WIDTH`; what is tuned by
trial on the device (how many columns a program has, how many warps) is not part of any order. So
nothing here keeps a resumed run, or an SAE trained beside others, from ending with the same bits.

*Rows of very different length.* One latent may be on for every token while most are on for a
handful. A program sums one segment; what a row has beyond its first is summed by programs of their
own into rows of partial sums, which the row's program then adds. Of these there are at most
kept / `SEGMENT`, so no count is copied from the device to size a grid.

*Reuse.* Programs are started row by row within a block of columns. The part of a matrix that is
gathered from at a time is then its rows x 128 to 512 columns, which a large second-level cache
holds (65,536 rows x 256 columns in bfloat16: 32 MiB of an H100's 50), so each matrix is read from
memory about once and not once per entry. Scalar products run latent by latent for the same reason.

*Choosing the k largest.* At d_in 2,304, d_sae 65,536 and k 64 the encoder's product is left to
the vendor's library, whose matmul a kernel of our own would have to match to gain anything: a
batch of 8,192 is 2.5 TFLOP, and writing and reading its pre-activations in bfloat16 once each
moves 2.1 GB, which is several times less work than the product. Not writing them at all would
mean computing candidates again from rows of the encoder, 4.5 kB per candidate, which moves more.
What is slow is selection by passes over whole rows, as in `torch.topk`. Here a row is read once,
for the maxima of its chunks of neighbouring columns; the k largest lie in the k chunks with the
largest maxima (or tie with what does), and those are chosen and then looked into with everything
in registers. Both choices find the k-th largest exactly, bit by bit of its order-preserving
integer, by counting.

The reasons above are arithmetic on sizes and on an H100's data sheet; no time has been measured.
"""

import math
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int64, Shaped
from torch import Tensor
from triton import knobs

SEGMENT = 128
"""Entries of a row that one program adds up; part of the order of sums."""

PARTIAL_BLOCK = 256
"""Columns of a program for partial sums; not tuned, since a first batch may need none of them."""

DOT_ENTRIES = 16
"""Scalar products per program."""

DOT_WIDTH = 128
"""Columns of a scalar product per step; part of the order of sums."""

MAX_IN_REGISTERS = 1 << 13
"""Candidates that one program chooses from; with twice as many, registers spill."""

MAX_CHOSEN = MAX_IN_REGISTERS // 4
"""So many are chosen of a row of any width."""

SMALL_ROW = 1 << 11
"""Columns that one program chooses from at once."""

TILE = 4096
"""Pre-activations that one program reduces to maxima of chunks."""

IS_INTERPRETED = bool(knobs.runtime.interpret)

SUM_CONFIGS = [
    triton.Config({"BLOCK": block}, num_warps=warps)
    for block, warps in ((128, 1), (256, 1), (256, 2), (512, 2), (512, 4), (1024, 4))
]

LOWEST = tl.constexpr(-(1 << 31))
HIGHEST = tl.constexpr((1 << 31) - 1)


def _compiled(kernel: Any) -> Any:
    """`triton.jit`, whose result takes options of the launch that its own types do not know."""
    return triton.jit(kernel)


def _tuned(kernel: Any) -> Any:
    """Tries `SUM_CONFIGS` once for each width and dtype; interpreted there is nothing to time."""
    if IS_INTERPRETED:
        return kernel
    return triton.autotune(SUM_CONFIGS, key=["width"])(kernel)


# Kernels: no_type_check keeps run-time type checks of the tests away from what Triton compiles.


@_compiled
@no_type_check
def _weighted_sum(matrix, rows, weights, begin, end, columns, stride, width, BLOCK: tl.constexpr):
    """Sum over entries of weight x row of the matrix; one block of columns, in float32."""
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for entry in tl.range(begin, end, loop_unroll_factor=4):
        weight = tl.load(weights + entry).to(tl.float32)
        start = tl.load(rows + entry) * stride
        row = tl.load(matrix + start + columns, mask=columns < width, other=0.0)
        total += weight * row.to(tl.float32)
    return total


@_compiled
@no_type_check
def _partial_sums(
    partial,
    matrix,
    rows,
    weights,
    starts,
    first_partial,
    owners,
    num_rows,
    stride,
    width,
    SEGMENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums of the segments that are not the first of their row, in float32."""
    number = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    owner = tl.load(owners + number)
    if owner < num_rows:  # there are fewer segments than the grid allows for
        segment = number - tl.load(first_partial + owner) + 1
        begin = tl.load(starts + owner) + segment * SEGMENT
        end = tl.minimum(begin + SEGMENT, tl.load(starts + owner + 1))
        total = _weighted_sum(matrix, rows, weights, begin, end, columns, stride, width, BLOCK)
        tl.store(partial + number * width + columns, total, mask=columns < width)


@_compiled
@no_type_check
def _row_sums(
    out,
    matrix,
    rows,
    weights,
    starts,
    partial,
    first_partial,
    stride,
    width,
    SEGMENT: tl.constexpr,
    HAS_PARTIALS: tl.constexpr,
    BLOCK: tl.constexpr = 128,
):
    """Sums of first segments, plus the partial sums of the others."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    begin, end = tl.load(starts + row), tl.load(starts + row + 1)
    if HAS_PARTIALS:
        end = tl.minimum(end, begin + SEGMENT)
    total = _weighted_sum(matrix, rows, weights, begin, end, columns, stride, width, BLOCK)
    if HAS_PARTIALS:
        first, last = tl.load(first_partial + row), tl.load(first_partial + row + 1)
        for number in tl.range(first, last):
            total += tl.load(partial + number * width + columns, mask=columns < width, other=0.0)
    tl.store(out + row * width + columns, total.to(out.dtype.element_ty), mask=columns < width)


@_compiled
@no_type_check
def _dots(
    out,
    x,
    W,
    order,
    tokens,
    latents,
    num_kept,
    x_stride,
    W_stride,
    width,
    ENTRIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Scalar products of the rows of x and W that some entries name."""
    place = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    is_entry = place < num_kept
    entry = tl.load(order + place, mask=is_entry, other=0)
    x_start = tl.load(tokens + entry, mask=is_entry, other=0) * x_stride
    W_start = tl.load(latents + entry, mask=is_entry, other=0) * W_stride
    products = tl.zeros([ENTRIES, BLOCK], dtype=tl.float32)
    for first in tl.range(0, width, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside = is_entry[:, None] & (columns < width)[None, :]
        a = tl.load(x + x_start[:, None] + columns[None, :], mask=inside, other=0.0)
        b = tl.load(W + W_start[:, None] + columns[None, :], mask=inside, other=0.0)
        products += a.to(tl.float32) * b.to(tl.float32)
    dots = tl.sum(products, 1)
    tl.store(out + entry, dots.to(out.dtype.element_ty), mask=is_entry)


@_compiled
@no_type_check
def _keys(values, is_real, ARE_KEYS: tl.constexpr):
    """Integers in the order of the values; NaN is the largest, what is not real the smallest."""
    keys = values
    if not ARE_KEYS:
        values = values.to(tl.float32)
        bits = values.to(tl.int32, bitcast=True)
        keys = bits ^ ((bits >> 31) & HIGHEST)
        keys = tl.where(values != values, HIGHEST, keys)
    return tl.where(is_real, keys, LOWEST)


@_compiled
@no_type_check
def _largest(keys, k, BITS: tl.constexpr):
    """Which k of the keys are largest, and the place of each of them among those.

    Only the upper ``BITS`` bits of a key tell: the float32 of a bfloat16 has no others.
    """
    keys = keys >> (32 - BITS)
    cut = tl.where(tl.sum((keys >= 0).to(tl.int32), 0) >= k, 0, LOWEST >> (32 - BITS))
    for step in tl.range(0, BITS - 1):
        higher = cut + (1 << (BITS - 2 - step))
        cut = tl.where(tl.sum((keys >= higher).to(tl.int32), 0) >= k, higher, cut)
    is_above = keys > cut
    is_tie = keys == cut
    num_ties = k - tl.sum(is_above.to(tl.int32), 0)
    taken = is_above | (is_tie & (tl.cumsum(is_tie.to(tl.int32), 0) <= num_ties))
    return taken, tl.cumsum(taken.to(tl.int32), 0) - 1


@_compiled
@no_type_check
def _chunk_maxima(
    maxima,
    source,
    stride,
    num_columns,
    num_chunks,
    ARE_KEYS: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """The largest key of each chunk of neighbouring columns."""
    row = tl.program_id(0).to(tl.int64)
    chunks = tl.program_id(1) * CHUNKS + tl.arange(0, CHUNKS)
    columns = chunks[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    is_real = columns < num_columns
    values = tl.load(source + row * stride + columns, mask=is_real, other=0)
    largest = tl.max(_keys(values, is_real, ARE_KEYS), 1)
    tl.store(maxima + row * num_chunks + chunks, largest, mask=chunks < num_chunks)


@_compiled
@no_type_check
def _choose(
    columns_out,
    values_out,
    source,
    chosen,
    stride,
    num_columns,
    k,
    ARE_KEYS: tl.constexpr,
    BITS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The k largest columns of each row's chosen chunks, in their order; CHUNK 0 is all columns."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    is_real = columns < num_columns
    if CHUNK:
        place = columns // CHUNK
        chunks = tl.load(chosen + row * k + place, mask=place < k, other=0).to(tl.int32)
        columns = chunks * CHUNK + columns % CHUNK
        is_real = (place < k) & (columns < num_columns)
    values = tl.load(source + row * stride + columns, mask=is_real, other=0)
    taken, place = _largest(_keys(values, is_real, ARE_KEYS), k, BITS)
    tl.store(columns_out + row * k + place, columns.to(tl.int64), mask=taken)
    tl.store(values_out + row * k + place, values, mask=taken)


row_sums = _tuned(_row_sums)


def sums_of_rows(
    matrix: Float[Tensor, "num_rows width"],
    rows: Int64[Tensor, " kept"],
    starts: Int64[Tensor, " num_sums_plus_1"],
    weights: Float[Tensor, " kept"],
) -> Float[Tensor, "num_sums width"]:
    """For each sum the weighted rows of ``matrix`` from its start in ``rows`` to the next one's.

    Added in float32; the result has the wider dtype of the two. A sum of nothing is zero.
    """
    num_sums, width = len(starts) - 1, matrix.shape[1]
    matrix, weights, rows = _with_dense_rows(matrix), weights.contiguous(), rows.contiguous()
    out = matrix.new_empty(num_sums, width, dtype=torch.promote_types(matrix.dtype, weights.dtype))
    most = len(rows) // SEGMENT  # of partial sums: a row of c entries needs (c - 1) // SEGMENT
    given = matrix, rows, weights, starts
    partial = first_partial = starts  # not looked at without partial sums
    with torch.cuda.device_of(matrix):
        if most and num_sums and width:
            first_partial, owners = _partials(starts, most)
            partial = matrix.new_empty(most, width, dtype=torch.float32)
            _partial_sums[_blocks(most, width)](
                *(partial, *given, first_partial, owners, num_sums, matrix.stride(0), width),
                SEGMENT=SEGMENT,
                BLOCK=PARTIAL_BLOCK,
                num_warps=2,
            )
        if num_sums and width:
            row_sums[_blocks(num_sums, width)](
                out, *given, partial, first_partial, matrix.stride(0), width, SEGMENT, most > 0
            )
    return out


def row_dots(
    x: Float[Tensor, "batch width"],
    W: Float[Tensor, "d_sae width"],
    tokens: Int64[Tensor, " kept"],
    latents: Int64[Tensor, " kept"],
    order: Int64[Tensor, " kept"],
) -> Float[Tensor, " kept"]:
    """For each entry the scalar product of its token's row of ``x`` and its latent's of ``W``.

    ``order`` is a permutation of the entries, in which they are computed: it decides what is
    found in the cache and never the result. Added in float32; the result has the wider dtype.
    """
    x, W = _with_dense_rows(x), _with_dense_rows(W)
    kept = len(tokens)
    out = x.new_empty(kept, dtype=torch.promote_types(x.dtype, W.dtype))
    if kept:
        with torch.cuda.device_of(x):
            _dots[(math.ceil(kept / DOT_ENTRIES),)](
                *(out, x, W, order.contiguous(), tokens.contiguous(), latents.contiguous()),
                *(kept, x.stride(0), W.stride(0), x.shape[1]),
                ENTRIES=DOT_ENTRIES,
                BLOCK=DOT_WIDTH,
                num_warps=4,
            )
    return out


def largest_columns(
    pre: Float[Tensor, "rows columns"], k: int
) -> tuple[Int64[Tensor, "rows k"], Float[Tensor, "rows k"]]:
    """Columns and values of the ``k`` largest entries of each row, by column.

    Of several equal ones the first of the first chunks are kept; NaN counts as largest. More
    than `MAX_CHOSEN` of a wide row are left to `torch.topk`, which lists them in no order.
    """
    if not 0 < k <= pre.shape[1]:
        raise ValueError(f"k must be between 1 and the {pre.shape[1]} columns; got k={k}")
    return _largest_columns(pre, k, 16 if pre.dtype == torch.bfloat16 else 32, False)


def _largest_columns(
    source: Shaped[Tensor, "rows columns"], k: int, bits: int, are_keys: bool
) -> tuple[Int64[Tensor, "rows k"], Shaped[Tensor, "rows k"]]:
    """`largest_columns` of values, or of keys with ``bits`` bits that tell."""
    num_rows, num_columns = source.shape
    chunk = chunk_size(num_columns, k)
    block = next_power_of_2(k) * chunk if chunk else next_power_of_2(num_columns)
    if block > MAX_IN_REGISTERS:
        values, columns = source.topk(k, dim=-1, sorted=False)
        return columns, values
    source = _with_dense_rows(source)
    columns = torch.empty(num_rows, k, dtype=torch.int64, device=source.device)
    values = source.new_empty(num_rows, k)
    if not values.numel():
        return columns, values
    given = source.stride(0), num_columns
    with torch.cuda.device_of(source):
        chosen = columns  # not looked at without chunks
        if chunk:
            num_chunks, per_tile = math.ceil(num_columns / chunk), TILE // chunk
            maxima = source.new_empty(num_rows, num_chunks, dtype=torch.int32)
            _chunk_maxima[(num_rows, math.ceil(num_chunks / per_tile))](
                *(maxima, source, *given, num_chunks, are_keys, chunk, per_tile), num_warps=4
            )
            chosen, _ = _largest_columns(maxima, k, bits, True)
        _choose[(num_rows,)](
            *(columns, values, source, chosen, *given, k, are_keys, bits, chunk, block),
            num_warps=num_warps(block),
        )
    return columns, values


def chunk_size(num_columns: int, k: int) -> int:
    """Columns per chunk, a power of two that balances chunks with what k of them hold.

    0 is none: where a program takes all columns at once, or nothing fits.
    """
    if num_columns <= SMALL_ROW:
        return 0
    many = next_power_of_2(k)
    fitting = [2**power for power in range(2, 13) if many * 2**power <= MAX_IN_REGISTERS]
    fitting = [size for size in fitting if k * size <= num_columns]
    most = {size: max(num_columns / size, many * size) for size in fitting}
    best = min(most, key=most.__getitem__, default=0)
    return best if best and most[best] < num_columns else 0


def next_power_of_2(number: int) -> int:
    """The least power of two that is not below a positive ``number``."""
    return 1 << (number - 1).bit_length()


def num_warps(block: int) -> int:
    """Of a program that holds ``block`` candidates."""
    return min(32, max(1, block // 256))


def _partials(
    starts: Int64[Tensor, " num_sums_plus_1"], most: int
) -> tuple[Int64[Tensor, " num_sums_plus_1"], Int64[Tensor, " {most}"]]:
    """Number of each row's first partial sum, and the row of each partial sum.

    Numbers that are not needed belong to the row after the last.
    """
    needed = (starts.diff() - 1).clamp_min_(0).div_(SEGMENT, rounding_mode="floor")
    first = torch.zeros_like(starts)
    torch.cumsum(needed, 0, out=first[1:])
    numbers = torch.arange(most, device=starts.device)
    return first, torch.searchsorted(first[1:], numbers, right=True)


def _blocks(num_rows: int, width: int) -> Any:
    """The grid: row by row within a block of columns."""
    return lambda meta: (num_rows, math.ceil(width / meta["BLOCK"]))


def _with_dense_rows(matrix: Shaped[Tensor, "rows columns"]) -> Shaped[Tensor, "rows columns"]:
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()
