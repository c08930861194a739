"""From token ids of documents to contexts of equal length."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sae_lib.activations._shards import FileRecord, write_arrays

SHARD_TOKENS = 1 << 21
"""Positions per token shard, 27 MB: what packing holds in memory per split."""

COLUMNS = {"tokens": np.int32, "document": np.int32, "position": np.int32, "keep": np.bool_}
"""Per position: token id, document number, place in the document, whether it is text."""

NO_DOCUMENT = -1
"""Document number and place of padding."""


class Piece(NamedTuple):
    """Consecutive positions of the stream that is cut into contexts."""

    tokens: np.ndarray
    document: np.ndarray
    position: np.ndarray
    keep: np.ndarray


def whole_document(
    ids: Sequence[int], document: int, *, bos: int | None, eos: int | None, special: np.ndarray
) -> Piece:
    """``[bos] ids [eos]``; the document's first position is 0. Special ids are not kept."""
    start = [] if bos is None else [bos]
    stop = [] if eos is None else [eos]
    tokens = np.array([*start, *ids, *stop], np.int32)
    return Piece(
        tokens,
        np.full(len(tokens), document, np.int32),
        np.arange(len(tokens), dtype=np.int32),
        ~np.isin(tokens, special),
    )


def padded_document(
    ids: Sequence[int],
    document: int,
    *,
    context: int,
    prefix: Sequence[int],
    suffix: Sequence[int],
    pad: int,
    special: np.ndarray,
) -> Piece:
    """``prefix chunk suffix pad...`` for each chunk of ``ids``; a multiple of ``context`` long.

    ``position`` runs on from chunk to chunk and counts the special tokens, not the padding.
    """
    room = context - len(prefix) - len(suffix)
    chunks = [ids[i : i + room] for i in range(0, len(ids), room)]
    tokens = np.full((len(chunks), context), pad, np.int32)
    real = np.zeros((len(chunks), context), np.bool_)
    for row, chunk in enumerate(chunks):
        full = [*prefix, *chunk, *suffix]
        tokens[row, : len(full)] = full
        real[row, : len(full)] = True
    tokens, real = tokens.reshape(-1), real.reshape(-1)
    return Piece(
        tokens,
        np.where(real, document, NO_DOCUMENT).astype(np.int32),
        np.where(real, np.arange(len(tokens)), NO_DOCUMENT).astype(np.int32),
        real & ~np.isin(tokens, special),
    )


class ContextWriter:
    """Cuts a stream of positions into contexts and writes them in shards.

    Positions beyond ``wanted_contexts`` and a tail that does not fill a context are dropped.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        context: int,
        wanted_contexts: int,
        shard_tokens: int = SHARD_TOKENS,
    ) -> None:
        self.num_contexts = 0
        """Contexts written or ready to be written."""
        self.num_kept = 0
        self.documents: int = 0
        """Documents of which at least one position is in a context."""
        self.records: list[FileRecord] = []
        self.contexts_per_file: list[int] = []
        self.num_positions = 0
        """Positions that were offered and wanted, the dropped tail included."""
        self._folder, self._name, self._context = folder, name, context
        self._wanted = wanted_contexts * context
        size = max(1, shard_tokens // context) * context
        self._buffer = {
            column: np.empty(min(size, self._wanted), dtype) for column, dtype in COLUMNS.items()
        }
        self._fill = 0
        self._last_document = -2

    @property
    def is_full(self) -> bool:
        return self.num_positions >= self._wanted

    def add(self, piece: Piece) -> None:
        start = 0
        length = min(len(piece.tokens), self._wanted - self.num_positions)
        self.num_positions += length
        while start < length:
            room = len(self._buffer["tokens"]) - self._fill
            take = min(room, length - start)
            for column, values in piece._asdict().items():
                self._buffer[column][self._fill : self._fill + take] = values[start : start + take]
            self._fill += take
            start += take
            if take == room:
                self._flush()

    def close(self) -> None:
        """Write the contexts that are left."""
        self._flush()

    def _flush(self) -> None:
        contexts = self._fill // self._context
        if contexts:
            stop = contexts * self._context
            arrays = {
                column: values[:stop].reshape(contexts, self._context)
                for column, values in self._buffer.items()
            }
            name = f"{self._name}-tokens-{len(self.records):05d}.safetensors"
            self.records.append(write_arrays(self._folder / name, arrays))
            self.contexts_per_file.append(contexts)
            self.num_contexts += contexts
            self.num_kept += int(arrays["keep"].sum())
            self.documents += self._new_documents(arrays["document"].reshape(-1))
        self._fill = 0

    def _new_documents(self, document: np.ndarray) -> int:
        real = document[document != NO_DOCUMENT]
        if not len(real):
            return 0
        changes = int((np.diff(real) != 0).sum()) + int(real[0] != self._last_document)
        self._last_document = int(real[-1])
        return changes
