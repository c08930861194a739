"""Activations of labelled texts at one site, read once for all metrics and all coders.

Rows lie text by text in a file that is mapped into memory, so that what is held in memory is what
is being looked at. A text is ``[BOS] tokens``; special tokens and padding are not among the rows.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lib.apply.reading import Encode, encode_texts
from sae_lib.errors import BadInput
from sae_lib.models.language_model import LanguageModel

CHUNK_ELEMENTS = 2**24
"""Codes (tokens x latents) held at a time: 64 MiB."""

OnBatch = Callable[[int, int], None]

Pool = Literal["mean", "max", "last"]


class TextActivations(NamedTuple):
    """What the model holds at the site on each kept token of some texts."""

    x: Float[Tensor, "tokens d_in"]
    """float32, text by text, in the order of the texts. Not to be changed in place."""

    token: Int[Tensor, " tokens"]
    text: Int[Tensor, " tokens"]
    """Place of the text, ascending."""

    position: Int[Tensor, " tokens"]
    """Column of the token in its padded row, BOS included: 1 is the first word after a BOS."""

    start: Int[Tensor, " texts_and_1"]
    """Row at which each text begins, and the number of rows."""

    @property
    def num_texts(self) -> int:
        return len(self.start) - 1

    @property
    def length(self) -> Int[Tensor, " texts"]:
        """Kept tokens of each text, at least one."""
        return self.start.diff()

    def chunks(self, width: int) -> Iterator[tuple[range, slice]]:
        """Texts and their rows, whole texts at a time, about `CHUNK_ELEMENTS` / ``width`` rows."""
        rows = max(1, CHUNK_ELEMENTS // width)
        low = 0
        while low < self.num_texts:
            limit = int(self.start[low]) + rows
            high = max(low + 1, int(torch.searchsorted(self.start, limit, right=True)) - 1)
            yield range(low, high), slice(int(self.start[low]), int(self.start[high]))
            low = high

    def pooled_x(self, pool: Pool = "mean") -> Float[Tensor, "texts d_in"]:
        """Activations pooled over each text, float64."""
        return self.pooled(lambda x: x, self.x.shape[1], pool).double()

    def pooled(self, encode: Encode, width: int, pool: Pool = "mean") -> Float[Tensor, "texts _"]:
        """Codes pooled over each text; ``width`` is the number of latents. float32 on the CPU."""
        found = torch.zeros(self.num_texts, width)
        if pool == "last":
            last = self.start[1:] - 1
            for part in torch.arange(len(last)).split(max(1, CHUNK_ELEMENTS // width)):
                found[part] = encode(self.x[last[part]]).float().cpu()
            return found
        for texts, rows in self.chunks(width):
            codes = encode(self.x[rows]).float().cpu()
            text = self.text[rows] - texts.start
            into = found[texts.start : texts.stop]
            if pool == "mean":
                into.index_add_(0, text, codes)
                into /= self.length[texts.start : texts.stop, None]
            else:
                where = text[:, None].expand_as(codes)
                into.scatter_reduce_(0, where, codes, "amax", include_self=False)
        return found


class TextReader:
    """Reads texts at one site, each set of texts once; what was read lies in a folder of its own.

    Use it as a context manager, which removes the folder.
    """

    def __init__(self, model: LanguageModel, site: str, *, batch_texts: int = 64) -> None:
        self.model, self.site, self.batch_texts = model, site, batch_texts
        self._folder = tempfile.TemporaryDirectory(prefix="sae-texts-")
        self._known: dict[str, TextActivations] = {}

    def __enter__(self) -> "TextReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget everything that was read."""
        self._known.clear()
        self._folder.cleanup()

    @torch.no_grad()
    def read(
        self,
        texts: Sequence[str],
        *,
        max_tokens: int = 128,
        on_progress: OnBatch = lambda done, total: None,
    ) -> TextActivations:
        """Activations of ``texts``; of long ones those of the first ``max_tokens`` tokens.

        Equal texts in equal order are not read again. Raises `BadInput` for a text without tokens
        and where there are no texts.
        """
        if not texts:
            raise BadInput("there are no texts to read.", key="texts")
        key = hashlib.sha256()
        for text in (str(max_tokens), *texts):
            key.update(len(text).to_bytes(8) + text.encode())
        name = key.hexdigest()[:32]
        if name not in self._known:
            self._known[name] = self._read(name, list(texts), max_tokens, on_progress)
        return self._known[name]

    def _read(
        self, name: str, texts: list[str], max_tokens: int, on_progress: OnBatch
    ) -> TextActivations:
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
        parts = [
            order[low : low + self.batch_texts] for low in range(0, len(order), self.batch_texts)
        ]
        length = torch.zeros(len(texts), dtype=torch.long)
        batches = []
        for part in parts:
            batch = encode_texts(self.model, [texts[i] for i in part], max_tokens=max_tokens)
            length[part] = batch.keep.sum(1)
            batches.append(batch)
        start = torch.cat([torch.zeros(1, dtype=torch.long), length.cumsum(0)])
        total = int(start[-1])
        shape = (total, self.model.width(self.site))
        file = Path(self._folder.name) / f"{name}.f32"
        x = torch.from_numpy(np.memmap(file, dtype=np.float32, mode="w+", shape=shape))
        token, text, position = (torch.zeros(total, dtype=torch.long) for _ in range(3))
        done = 0
        for part, batch in zip(parts, batches, strict=True):
            at = self.model.capture(batch.tokens, [self.site], mask=batch.mask)[self.site]
            rank = batch.keep.cumsum(1) - 1
            rows = (start[part][:, None] + rank)[batch.keep]
            x[rows] = at[batch.keep.to(at.device)].float().cpu()
            token[rows] = batch.tokens[batch.keep]
            text[rows] = torch.tensor(part)[:, None].expand_as(batch.keep)[batch.keep]
            columns = torch.arange(batch.keep.shape[1]).expand_as(batch.keep)
            position[rows] = columns[batch.keep]
            done += len(part)
            on_progress(done, len(texts))
        return TextActivations(x, token, text, position, start)
