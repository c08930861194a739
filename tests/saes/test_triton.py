"""The Triton kernels against dense products in float64, and what the compiler makes of them.

Without a GPU the kernels are interpreted, in the same steps of the same sums (`tests/conftest.py`).
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_lib.saes import _codes, _kernels, _products, _select
from sae_lib.saes._products import (
    Pattern,
    ragged_pattern,
    row_dots,
    sums_by_latent,
    times_rows,
    transposed_times_rows,
    uniform_pattern,
)
from sae_lib.saes.base import SaeConfig, Step
from sae_lib.saes.batch_topk import BatchTopKConfig
from sae_lib.saes.topk import TopKConfig

pytest.importorskip("triton", reason="Triton is not installed; it exists for Linux only")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
close = partial(torch.testing.assert_close, check_dtype=False)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.fixture
def t(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The kernels, with products and selections sent to them on any device, and nowhere else."""

    def nothing_else(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a product was not made by the kernels")

    monkeypatch.setattr(_kernels, "can_run", lambda x: x.dtype in _kernels.DTYPES)
    monkeypatch.setattr(_products.functional, "embedding_bag", nothing_else)
    monkeypatch.setattr(torch.sparse, "sampled_addmm", nothing_else)
    kernels = _kernels.kernels()
    # interpreted programs take a millisecond each, so what has to be long is kept short
    monkeypatch.setattr(kernels, "SEGMENT", 16)
    return kernels


def uniform() -> Pattern:
    return uniform_pattern(normal(30, 50).topk(6).indices, 50)


def ragged() -> Pattern:
    """Empty tokens and one that keeps nearly all; dead latents and one that is on throughout."""
    kept = normal(40, 30) > 1.5
    kept[7] = True
    kept[:, 5] = True
    kept[[0, 4, 39]] = False
    kept[:, [0, 3, 29]] = False
    tokens, latents = kept.nonzero(as_tuple=True)
    return ragged_pattern(tokens, latents, (40, 30))


def one_token() -> Pattern:
    return uniform_pattern(torch.tensor([[4, 0, 19]], device=DEVICE), 20)


def empty() -> Pattern:
    nothing = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    return ragged_pattern(nothing, nothing, (9, 20))


@pytest.mark.parametrize("make", [uniform, ragged, one_token, empty])
@pytest.mark.parametrize("width", [1, 48, 150])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_those_of_the_dense_matrix(
    t: Any, make: Callable[[], Pattern], width: int, dtype: torch.dtype
):
    pattern = make()
    batch, d_sae = pattern.shape
    values = normal(len(pattern.latents), seed=1, dtype=dtype)
    W = normal(d_sae, width, seed=2, dtype=dtype)
    x = normal(batch, width, seed=3, dtype=dtype)
    z = W.new_zeros(batch, d_sae, dtype=torch.float64)
    z[pattern.tokens, pattern.latents] = values.double()
    products = {
        "values W": (times_rows(pattern, values, W), z @ W.double()),
        "values' x": (transposed_times_rows(pattern, values, x), z.mT @ x.double()),
        "x W'": (
            row_dots(pattern, x, W),
            (x.double() @ W.double().mT)[pattern.tokens, pattern.latents],
        ),
    }
    # results in bfloat16 are rounded once, at the end; the interpreter cuts off instead
    rounding = 2e-6 if dtype == torch.float32 else 2**-7
    for name, (found, wanted) in products.items():
        assert found.dtype == dtype
        close(found.double(), wanted, rtol=rounding, atol=3e-5, msg=name)
    found = times_rows(pattern, values.float(), W)
    assert found.dtype == torch.float32  # the wider of the two
    close(found.double(), z @ W.double(), rtol=2e-6, atol=3e-5)


def test_the_ragged_pattern_reaches_every_kind_of_row(t: Any):
    pattern = ragged()
    for starts in (pattern.starts, pattern.by_latent.starts):
        lengths = starts.diff()
        assert (lengths == 0).any()
        assert ((lengths > 0) & (lengths <= t.SEGMENT)).any()
        assert (lengths > t.SEGMENT).any()
    assert (pattern.by_latent.starts.diff() > 2 * t.SEGMENT).any()


@pytest.mark.parametrize("count", [127, 128, 129, 256, 257])
def test_rows_about_as_long_as_segments_lose_nothing(
    t: Any, count: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(t, "SEGMENT", 128)
    matrix, weights = normal(40, 9), normal(3 * count, seed=1)
    rows = torch.arange(3 * count, device=DEVICE) % 40
    starts = torch.arange(0, 3 * count + 1, count, device=DEVICE)
    found = t.sums_of_rows(matrix, rows, starts, weights)
    products = weights.double().unsqueeze(1) * matrix.double()[rows]
    close(found.double(), products.view(3, count, 9).sum(1), rtol=1e-5, atol=1e-5)


def test_matrices_need_not_be_contiguous(t: Any):
    pattern = uniform()
    values, wide = normal(len(pattern.latents), seed=1), normal(50, 200, seed=2)
    for W in (wide[:, 3:80], wide[:, ::3], normal(60, 50, seed=2).mT, wide[:1].expand(50, 200)):
        assert torch.equal(times_rows(pattern, values, W), times_rows(pattern, values, W.clone()))
        x = normal(W.shape[1], 30, seed=3).mT
        assert torch.equal(row_dots(pattern, x, W), row_dots(pattern, x.clone(), W.clone()))
    pre = normal(9, 5000)
    for part in (pre[:, 1:4000], pre[:, ::2], normal(3000, 9).mT):
        assert torch.equal(t.largest_columns(part, 7)[0], t.largest_columns(part.clone(), 7)[0])


def test_bits_do_not_depend_on_what_is_tuned_or_cached(t: Any, monkeypatch: pytest.MonkeyPatch):
    pattern = ragged()
    values, W, x = normal(len(pattern.latents), seed=1), normal(30, 150), normal(40, 150, seed=2)
    blocks = {"BLOCK": 32}

    class Narrow:
        """Launches with fewer columns in a program."""

        def __getitem__(self, grid: Callable[..., Any]) -> Callable[..., None]:
            return lambda *args: t._row_sums[lambda _: grid(blocks)](*args, **blocks)

    wide = times_rows(pattern, values, W), transposed_times_rows(pattern, values, x)
    monkeypatch.setattr(t, "row_sums", Narrow())
    monkeypatch.setattr(t, "PARTIAL_BLOCK", 64)
    narrow = times_rows(pattern, values, W), transposed_times_rows(pattern, values, x)
    assert all(map(torch.equal, wide, narrow))
    orders = [torch.randperm(len(values), device=DEVICE) for _ in range(2)]
    given = x, W, pattern.tokens, pattern.latents
    assert torch.equal(t.row_dots(*given, orders[0]), t.row_dots(*given, orders[1]))


@pytest.mark.parametrize("num_columns", [3, 64, 1000, 2049, 4099, 20_000])
@pytest.mark.parametrize("k", [1, 3, 40, 600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_are_found(t: Any, num_columns: int, k: int, dtype: torch.dtype):
    k = min(k, num_columns)
    pre = normal(5, num_columns, dtype=dtype)  # bfloat16 has many ties
    columns, values = t.largest_columns(pre, k)
    assert torch.equal(values.sort(1).values, pre.topk(k).values.sort(1).values)
    assert torch.equal(pre.gather(1, columns), values)
    assert bool((columns.diff() > 0).all())


def test_every_way_to_find_the_largest_is_reached(t: Any):
    """One program; chunks; chunks of chunks' maxima; more than fit."""
    assert t.chunk_size(1000, 40) == 0
    assert 20_000 / t.chunk_size(20_000, 40) <= t.SMALL_ROW
    assert 20_000 / t.chunk_size(20_000, 600) > t.SMALL_ROW
    assert t.chunk_size(65_536, t.MAX_CHOSEN) > 0
    assert t.chunk_size(65_536, t.MAX_CHOSEN + 1) == 0


def test_more_than_fit_are_left_to_torch(t: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(t, "MAX_IN_REGISTERS", 64)
    pre = normal(5, 3000)
    columns, values = t.largest_columns(pre, 40)
    assert torch.equal(values.sort(1).values, pre.topk(40).values.sort(1).values)
    assert torch.equal(pre.gather(1, columns), values)


@pytest.mark.parametrize("num_columns", [1000, 3001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_of_odd_rows(t: Any, num_columns: int, dtype: torch.dtype):
    k, inf = 8, torch.inf
    rows = torch.zeros(7, num_columns, dtype=dtype, device=DEVICE)
    rows[1] = -inf  # all equal, and what padding must not pass for
    rows[2] = -normal(num_columns, dtype=dtype).abs()
    rows[3, 16:24] = torch.arange(8, 0, -1, dtype=dtype, device=DEVICE)  # neighbours
    rows[4, -8:] = 1  # in a chunk that is not whole
    rows[5, ::2] = -0.0
    rows[5, 5] = inf
    rows[6] = normal(num_columns, seed=1, dtype=dtype)
    rows[6, 3] = torch.nan
    negative = (torch.int32, -1 << 22) if dtype == torch.float32 else (torch.int16, -1 << 6)
    rows.view(negative[0])[6, 900] = negative[1]  # a NaN with its sign set, as x86 makes them
    assert bool(rows[6, 900].isnan())
    columns, values = t.largest_columns(rows, k)
    assert torch.equal(values[:6].sort(1).values, rows[:6].topk(k).values.sort(1).values)
    assert bool((columns.diff() > 0).all())
    assert bool((columns < num_columns).all())
    assert columns[3].tolist() == list(range(16, 24))
    assert columns[4].tolist() == list(range(num_columns - 8, num_columns))
    assert {3, 900} < set(columns[6].tolist())
    finite = rows[6].nan_to_num(-inf).topk(6).values.sort().values
    assert torch.equal(values[6][~values[6].isnan()].sort().values, finite)


def test_more_than_there_are_cannot_be_chosen(t: Any):
    with pytest.raises(ValueError, match="between 1 and the 5 columns; got k=6"):
        t.largest_columns(normal(2, 5), 6)


def test_matrices_may_have_more_than_two_to_the_31_entries(t: Any):
    """Rows far apart in memory that is reserved and, but for them, never touched."""
    memory = torch.empty((1 << 31) + 64, dtype=torch.bfloat16, device=DEVICE)
    far = memory.as_strided((3, 64), (1 << 30, 1))
    far.copy_(normal(3, 64))
    near = far.clone()
    both = torch.tensor([2, 0], device=DEVICE), torch.tensor([1, 2], device=DEVICE)
    starts, weights = torch.tensor([0, 2], device=DEVICE), normal(2)
    sums, dots = (
        partial(t.sums_of_rows, starts=starts, weights=weights),
        partial(t.row_dots, tokens=both[0], latents=both[1], order=torch.arange(2, device=DEVICE)),
    )
    assert torch.equal(sums(far, both[0]), sums(near, both[0]))
    assert torch.equal(dots(far, far), dots(near, near))
    assert torch.equal(t.largest_columns(far, 5)[0], t.largest_columns(near, 5)[0])


STEPS: dict[str, SaeConfig] = {
    "topk": TopKConfig(d_in=12, d_sae=96, k=4, aux_k=4),
    "multi": TopKConfig(d_in=12, d_sae=96, k=4, aux_k=4, multi_weight=1 / 8, multi_multiple=2),
    "batch_topk": BatchTopKConfig(d_in=12, d_sae=96, k=4, aux_k=4),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("situation", ["plain", "one token", "empty rows", "ties", "always on"])
@pytest.mark.parametrize("rounded", [False, True], ids=["float32", "bfloat16 candidates"])
def test_whole_steps_agree_with_the_dense_oracle(
    t: Any, name: str, situation: str, rounded: bool, monkeypatch: pytest.MonkeyPatch
):
    """Loss, latents and every gradient of a step against float64, where nothing is sparse."""
    monkeypatch.setattr(_select, "MIN_BF16_PRODUCTS", 0)
    monkeypatch.setattr(_select, "has_fast_bf16", lambda device: rounded)
    x = normal(1 if situation == "one token" else 24, 12, seed=4)
    dead = torch.arange(96, device=DEVICE) % 3 == 0
    results = []
    for density, dtype in ((0.0, torch.float64), (1.0, torch.float32)):
        monkeypatch.setattr(_codes, "MAX_DENSITY", density)
        coder = STEPS[name].build().to(DEVICE, dtype)
        with torch.no_grad():
            coder.b_dec.copy_(torch.linspace(-1, 1, 12))
            coder.b_enc.fill_(-2.5 if situation == "empty rows" else 0.01)
            if situation == "always on":  # in more tokens than a segment has
                coder.b_enc[7] = 9.0
            if situation == "ties":  # whole latents twice, in different places
                coder.W_enc[48:] = coder.W_enc[:48]
                coder.W_dec[48:] = coder.W_dec[:48]
        # two copies of a latent must be dead or alive together
        both = dead[:48].repeat(2) if situation == "ties" else dead
        terms = coder.terms(Step(x=x.to(dtype), target=x.to(dtype), dead=both, progress=0.5))
        assert terms.code.is_sparse == bool(density)
        terms.loss.backward()
        z = terms.z.detach()
        if situation == "empty rows":
            assert (z == 0).all(1).any()
        gradients = {key: value.grad for key, value in coder.named_parameters()}
        results.append({"loss": terms.loss.detach(), "z": z, **gradients})
    for key, dense in results[0].items():
        sparse = results[1][key]
        assert dense is not None, key
        assert sparse is not None, key
        if situation == "ties" and key != "loss":
            # either of two equal latents may be kept: what the two have together is determined
            if dense.shape[0] == 96:
                dense, sparse = dense[:48] + dense[48:], sparse[:48] + sparse[48:]
            elif key == "z":
                dense, sparse = dense[:, :48] + dense[:, 48:], sparse[:, :48] + sparse[:, 48:]
        scale = float(dense.abs().max())
        close(sparse.double(), dense, rtol=2e-5, atol=2e-5 * max(scale, 1e-3), msg=key)


def test_sums_by_latent_follow_the_same_pattern(t: Any):
    pattern = ragged()
    values = normal(len(pattern.latents), seed=1)
    ones = torch.ones(40, 1, device=DEVICE)
    close(transposed_times_rows(pattern, values, ones).squeeze(1), sums_by_latent(pattern, values))


def test_only_cuda_tensors_of_known_dtypes_go_to_the_kernels():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = torch.zeros(2, 2, dtype=dtype, device=DEVICE)
        assert _kernels.can_run(x) == (DEVICE.type == "cuda" and dtype in _kernels.DTYPES)


def test_a_gpu_without_triton_is_told_of_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_kernels, "find_spec", lambda name: None)
    _kernels.has_triton.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match=r"pip install 'sae-workflows\[triton\]'"):
            assert not _kernels.has_triton()
        assert not _kernels.has_triton()  # a second warning would be an error
    finally:
        _kernels.has_triton.cache_clear()


def test_the_library_works_without_triton():
    """Where importing Triton fails, everything on the CPU is as ever."""
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; from sae_lib.saes._codes import top_k_code\n"
        "x, W, b, c = (torch.ones(n) for n in [(2, 4), (99, 4), (99,), (4,)])\n"
        "code = top_k_code(x, W, b, 0 * c, 2)\n"
        "assert code.is_sparse; assert code.times(W).sum() == 2 * 2 * 4 * 5\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.fixture(scope="module")
def made_for_h100(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `triton_compiled.py` prints; it starts from an empty cache."""
    root = Path(__file__).parents[2]
    cache = str(tmp_path_factory.mktemp("triton"))
    ran = subprocess.run(
        [sys.executable, root / "tests/saes/triton_compiled.py"],
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": cache}
        | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.slow
def test_every_kernel_compiles_for_an_h100(made_for_h100: dict[str, Any]):
    """Down to machine code: no kernel spills registers or adds atomically, and loads are wide.

    All products of a sum are fused multiply-adds whatever its block, so its bits do not depend on
    the block.
    """
    kernels = made_for_h100["kernels"]
    for kind in ("row_sums", "partial_sums", "dots", "chunk_maxima", "choose"):
        assert sum(name.startswith(kind) for name in kernels) >= 2, kind
    for name, kernel in kernels.items():
        ptx = kernel["ptx"]
        assert ".target sm_90" in ptx, name
        assert kernel["STACK"] == 0, f"{name} spills registers"
        assert "atom." not in ptx, name
        assert "red.global" not in ptx, name
        if "sizes 1" not in name:
            assert "ld.global.v4" in ptx or "ld.global.v2" in ptx, name
        if name.startswith(("row_sums", "partial_sums", "dots")):
            assert "fma.rn.f32" in ptx, name
            assert "mul.f32" not in ptx, name
            assert "mul.rn.f32" not in ptx, name


@pytest.mark.slow
def test_launches_cover_every_row_and_column(t: Any, made_for_h100: dict[str, Any]):
    """With a driver that only writes down: grids, and tuning once for each dtype."""
    launches = [tuple(launch) for launch in made_for_h100["launches"]]
    widths = [700 / config.kwargs["BLOCK"] for config in t.SUM_CONFIGS]
    sums = [launch for launch in launches if launch[0] == "_row_sums"]
    assert len(sums) == 2 * (len(t.SUM_CONFIGS) + 2)
    assert {launch[1:] for launch in sums} == {(3, math.ceil(width)) for width in widths}
    partials = ("_partial_sums", 400 // 128, math.ceil(700 / t.PARTIAL_BLOCK))
    assert launches.count(partials) == 4
    assert launches.count(("_dots", 400 // t.DOT_ENTRIES, 1)) == 2
    chunks = 65_536 // t.chunk_size(65_536, 1000)
    tiles = 65_536 // t.TILE
    assert launches.count(("_chunk_maxima", 3, tiles)) == 2
    assert chunks > t.SMALL_ROW  # so that chunks are chosen by chunks of their own
    assert launches.count(("_chunk_maxima", 3, math.ceil(chunks / t.TILE))) >= 2
    assert launches[-1][:2] == ("_choose", 3)
