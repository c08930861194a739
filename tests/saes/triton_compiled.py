"""Compiles every Triton kernel for an H100 without having one, and prints what came out as JSON.

Then calls what launches them, tuning included, with a driver that only writes down what it is
told to launch.

A script of its own: Triton decides at its first import whether kernels are compiled or
interpreted, and the tests interpret them.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sae_lib.saes import _triton

H100 = GPUTarget("cuda", 90, 32)
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

INTEGERS = dict.fromkeys(
    ("rows", "starts", "first_partial", "owners", "order", "tokens", "latents", "columns_out"),
    "*i64",
)
INTEGERS |= {"maxima": "*i32", "chosen": "*i64", "partial": "*fp32"}
SIZES = {"num_rows", "stride", "width", "num_kept", "x_stride", "W_stride"}
SIZES |= {"num_columns", "num_chunks", "k"}


def compiled(
    kernel: Any, dtype: str, constants: dict[str, int], num_warps: int
) -> dict[str, str | int]:
    """What the kernel needs of a multiprocessor, and its PTX."""
    types = {
        name: "constexpr"
        if name in constants
        else INTEGERS.get(name) or ("i32" if name in SIZES else f"*{dtype}")
        for name in kernel.arg_names
    }
    # as at launch: pointers and sizes that are multiples of 16 are known to be
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, kind in enumerate(types.values())
        if kind != "constexpr"
    }
    source = ASTSource(kernel, types, constants, aligned)
    binary = triton.compile(source, target=H100, options={"num_warps": num_warps})
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(binary.asm["cubin"])
        told = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
        ).stdout
    usage = {name: int(number) for name, number in re.findall(r"(REG|STACK|SHARED):(\d+)", told)}
    return {"ptx": binary.asm["ptx"], **usage}


def variants() -> dict[str, tuple[Any, str, dict[str, int], int]]:
    """Every kernel with the settings of a step at d_in 2,304, d_sae 65,536, k 64."""
    t = _triton
    found: dict[str, tuple[Any, str, dict[str, int], int]] = {}
    for dtype, bits in (("fp32", 32), ("bf16", 16)):
        for config in t.SUM_CONFIGS:
            block, warps = config.kwargs["BLOCK"], config.num_warps
            sums = {"SEGMENT": t.SEGMENT, "BLOCK": block}
            name = f"{block} columns {warps} warps {dtype}"
            found[f"row_sums {name}"] = (t._row_sums, dtype, {**sums, "HAS_PARTIALS": True}, warps)
        sums = {"SEGMENT": t.SEGMENT, "BLOCK": 256, "HAS_PARTIALS": False}
        found[f"row_sums without partials {dtype}"] = (t._row_sums, dtype, sums, 2)
        sums = {"SEGMENT": t.SEGMENT, "BLOCK": t.PARTIAL_BLOCK}
        found[f"partial_sums {dtype}"] = (t._partial_sums, dtype, sums, 2)
        dots = {"ENTRIES": t.DOT_ENTRIES, "BLOCK": t.DOT_WIDTH}
        found[f"dots {dtype}"] = (t._dots, dtype, dots, 4)
        chunk = t.chunk_size(65_536, 64)
        for size, are_keys in ((chunk, False), (4, True)):
            maxima = {"ARE_KEYS": are_keys, "CHUNK": size, "CHUNKS": t.TILE // size}
            kind = "i32" if are_keys else dtype
            found[f"chunk_maxima {size} {kind}"] = (t._chunk_maxima, kind, maxima, 4)
        for most in (64 * chunk, t.MAX_IN_REGISTERS):
            for size, are_keys in ((chunk, False), (0, False), (0, True)):
                kind = "i32" if are_keys else dtype
                choice = {"ARE_KEYS": are_keys, "BITS": bits, "CHUNK": size, "BLOCK": most}
                name = f"choose {size} {most} {bits} bits {kind}"
                found[name] = (t._choose, kind, choice, t.num_warps(most))
    # a size of 1 becomes a constant at launch
    for name, (kernel, dtype, constants, warps) in list(found.items()):
        if dtype == "fp32":
            ones = dict.fromkeys(SIZES & set(kernel.arg_names), 1)
            found[f"{name}, sizes 1"] = (kernel, dtype, ones | constants, warps)
    return found


class WritesDown:
    """Stands for the driver of an H100."""

    def __init__(self) -> None:
        self.launches: list[tuple[str, int, int]] = []
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return H100

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232_448}

    def load_binary(self, *of: Any) -> tuple[None, None, int, int, int]:
        return None, None, 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return lambda x, y, z, *rest: self.launches.append((metadata.name, x, y))

    def get_benchmarker(self) -> Any:
        def once(launch: Any, quantiles: Any) -> list[float]:
            launch()
            return [1.0] * len(quantiles)

        return once


def launched() -> list[tuple[str, int, int]]:
    """Kernel and grid of each launch that the products and a selection make."""
    driver = WritesDown()
    triton.runtime.driver.set_active(driver)
    for dtype in (torch.float32, torch.bfloat16):
        x, W = torch.zeros(4, 700, dtype=dtype), torch.zeros(9, 700, dtype=dtype)
        tokens, latents = torch.arange(4).repeat_interleave(100), torch.arange(400) % 9
        starts, weights = torch.tensor([0, 0, 399, 400]), torch.zeros(400)
        for _ in range(2):  # tuned once
            _triton.sums_of_rows(W, latents, starts, weights)
        _triton.row_dots(x, W, tokens, latents, torch.arange(400))
        _triton.largest_columns(torch.zeros(3, 5000, dtype=dtype), 1)
        _triton.largest_columns(torch.zeros(3, 65_536, dtype=dtype), 1000)
    return driver.launches


if __name__ == "__main__":
    kernels = {name: compiled(*variant) for name, variant in variants().items()}
    json.dump({"kernels": kernels, "launches": launched()}, sys.stdout)
