"""The codes of one pass, kept on disk, so that stretches of text need not be read again.

A code that is on is one integer, row * d_sae + latent, beside its float32; twelve bytes, in the
order of the corpus, so that any code is found by bisection. What is not in it is 0.
"""

import tempfile
from types import TracebackType

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sae_lib.explain.codes import Hits


class CodeLog:
    """Codes of one coder in files without a name, which go away with this object.

    It gives up when they would grow beyond ``max_bytes``: then ``is_whole`` is false.
    """

    def __init__(self, d_sae: int, max_bytes: int) -> None:
        self.d_sae, self.max_bytes = d_sae, max_bytes
        self.is_whole = True
        self.num_hits = 0
        self._keys = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `close`)
        self._values = tempfile.TemporaryFile()  # noqa: SIM115

    def add(self, hits: Hits, rows: Int64[Tensor, " tokens"]) -> None:
        """Codes of the tokens at ``rows``, which follow all earlier ones in the corpus."""
        if not self.is_whole:
            return
        self.num_hits += len(hits.value)
        if 12 * self.num_hits > self.max_bytes:
            self.is_whole = False
            self.close()
            return
        self._keys.write(memoryview((rows[hits.token] * self.d_sae + hits.latent).numpy()))  # pyright: ignore[reportArgumentType]  (arrays are buffers)
        self._values.write(memoryview(hits.value.numpy()))  # pyright: ignore[reportArgumentType]  (arrays are buffers)

    def look_up(
        self, latents: Int64[Tensor, " places"], rows: Int64[Tensor, "places width"]
    ) -> Float[Tensor, "places width"]:
        """What each latent does on the tokens at ``rows``."""
        if not self.num_hits:
            return torch.zeros(rows.shape)
        self._keys.flush()
        self._values.flush()
        keys = np.memmap(self._keys, dtype=np.int64, mode="r")
        values = np.memmap(self._values, dtype=np.float32, mode="r")
        return find(keys, values, rows * self.d_sae + latents[:, None])

    def close(self) -> None:
        self._keys.close()
        self._values.close()

    def __enter__(self) -> "CodeLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def find(
    keys: np.ndarray, values: np.ndarray, wanted: Int64[Tensor, "*any"]
) -> Float[Tensor, "*any"]:
    """The value beside each wanted key, 0 for one that is not among the ascending ``keys``."""
    if not len(keys):
        return torch.zeros(wanted.shape)
    # in ascending order neighbouring searches walk through the same pages
    ordered, back = wanted.flatten().unique(return_inverse=True)
    ordered = ordered.numpy()
    at = np.minimum(np.searchsorted(keys, ordered), len(keys) - 1)
    found = np.where(keys[at] == ordered, values[at], np.float32(0))
    return torch.from_numpy(found)[back].view(wanted.shape)
