"""Text becomes contexts of token ids, once per corpus and tokenizer.

Per position are stored: ``tokens`` (id), ``document`` (its number in the corpus), ``position``
(place in the document, the document's own special tokens counted) and ``keep``: False for
BOS, EOS, PAD, CLS, SEP and MASK. Only kept positions take part in training and in metrics.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64
from pydantic import Field, ValidationError
from torch import Tensor

from sae_lib.activations import _shards
from sae_lib.activations._packing import (
    COLUMNS,
    NO_DOCUMENT,
    SHARD_TOKENS,
    ContextWriter,
)
from sae_lib.activations._tokenizing import Found, layout, special_ids, tokenize
from sae_lib.activations.corpus import (
    SPLITS,
    CorpusConfig,
    CorpusDocument,
    Split,
    check_corpus,
    split_documents,
)
from sae_lib.artifacts import write_atomically
from sae_lib.config import Config, digest
from sae_lib.errors import BadInput, CorruptData
from sae_lib.models.inspect import ModelInfo

FORMAT_VERSION = 1

SUMMARY = "tokens.json"

REMEDY = "Delete the folder and run again to rebuild it."

BATCH_DOCUMENTS, BATCH_CHARS = 256, 1 << 20
"""Documents tokenised in one call: as many as the first of the two bounds allows."""

Progress = Callable[[int, int], None]

_DTYPE_NAMES = {"tokens": "I32", "document": "I32", "position": "I32", "keep": "BOOL"}


class SplitSummary(Config):
    """What one side of the corpus came to."""

    num_contexts: int = Field(ge=0)
    """Contexts stored."""

    num_kept: int = Field(ge=0)
    """Positions that are text."""

    num_documents: int = Field(ge=0)
    """Documents of which at least a part is in a context."""

    wanted_tokens: int = Field(gt=0)
    """Positions asked for."""

    short: bool
    """Whether the corpus ended before the wanted contexts were full."""

    files: tuple[_shards.FileRecord, ...]
    """Shards, in order."""

    contexts_per_file: tuple[int, ...]
    """Contexts in each shard."""


class TokenSummary(Config):
    """Content of ``tokens.json``."""

    format_version: Literal[1] = FORMAT_VERSION
    """Layout of the folder."""

    context: int = Field(gt=0)
    """Positions per context."""

    pack: Literal["concat", "document"]
    """How documents were laid into contexts; see `CorpusConfig.pack`."""

    special_ids: tuple[int, ...]
    """Ids that are never kept."""

    unknown_share: float = Field(ge=0, le=1)
    """Share of text tokens that the tokenizer did not know."""

    train: SplitSummary
    """The training side."""

    eval: SplitSummary
    """The held-out side."""

    def of(self, split: Split) -> SplitSummary:
        return self.train if split == "train" else self.eval


class TokenRows(NamedTuple):
    """Some contexts."""

    tokens: Int64[Tensor, "batch context"]
    """Token ids."""

    document: Int64[Tensor, "batch context"]
    """Number of the document in the corpus; -1 for padding."""

    position: Int64[Tensor, "batch context"]
    """Place in the document, BOS or CLS being 0; -1 for padding."""

    keep: Bool[Tensor, "batch context"]
    """Whether the position is text."""


def packing(cfg: CorpusConfig, info: ModelInfo) -> Literal["concat", "document"]:
    """How contexts are filled for this model."""
    if cfg.pack != "auto":
        return cfg.pack
    return "concat" if info.is_causal else "document"


def check_tokens(cfg: CorpusConfig, info: ModelInfo) -> None:
    """Raise `BadInput` where the model cannot see contexts of that length."""
    if cfg.context > info.max_context:
        raise BadInput(
            f"the model {info.id} sees at most {info.max_context} tokens; use a context of at most"
            f" {info.max_context}.",
            key="corpus.context",
            value=cfg.context,
        )


def build_tokens(
    cfg: CorpusConfig,
    tokenizer: Any,
    info: ModelInfo,
    folder: Path,
    *,
    relative_to: Path | None = None,
    on_progress: Progress = lambda done, total: None,
    shard_tokens: int = SHARD_TOKENS,
) -> TokenSummary:
    """Tokenise the corpus, pack it into contexts and write both sides into ``folder``.

    ``concat``: each document as ``[BOS] tokens [EOS]``, as far as the tokenizer has the two (one
    of them where they are the same token), one after the other, cut every ``cfg.context``
    positions; no BOS is put in at a cut. ``document``: each document in chunks that carry the
    tokenizer's own special tokens, padded to the context.

    ``on_progress`` gets positions done and wanted. Raises `BadInput` where the corpus gives no
    context for one of the sides, the context exceeds the model's, or the tokenizer does not fit
    the text or the model.
    """
    check_tokens(cfg, info)
    check_corpus(cfg, relative_to)
    folder.mkdir(parents=True, exist_ok=True)
    pack = packing(cfg, info)
    special = special_ids(tokenizer)
    lay = layout(cfg, tokenizer, pack, np.array(sorted(special), np.int32))
    writers: dict[Split, ContextWriter] = {
        split: ContextWriter(
            folder,
            split,
            context=cfg.context,
            wanted_contexts=cfg.wanted_contexts(split),
            shard_tokens=shard_tokens,
        )
        for split in SPLITS
    }
    wanted = sum(cfg.wanted_contexts(split) for split in SPLITS) * cfg.context
    found = Found(unknown_id=tokenizer.unk_token_id, vocab_size=info.vocab_size)
    for batch in _batches(split_documents(cfg, relative_to), writers):
        texts = [document.text for document in batch]
        for document, ids in zip(batch, tokenize(tokenizer, texts), strict=True):
            found.add(ids)
            writers[document.split].add(lay(ids, document.number))
        found.check_early(cfg)
        on_progress(min(sum(w.num_positions for w in writers.values()), wanted), wanted)
    found.check(cfg)
    for writer in writers.values():
        writer.close()
    _check_amount(cfg, writers, found)
    summary = TokenSummary(
        context=cfg.context,
        pack=pack,
        special_ids=tuple(sorted(special)),
        unknown_share=found.num_unknown / found.num_tokens,
        train=_summary(cfg, "train", writers["train"]),
        eval=_summary(cfg, "eval", writers["eval"]),
    )
    write_atomically(folder / SUMMARY, summary.model_dump_json(indent=2) + "\n")
    return summary


class Tokens:
    """The tokens of a corpus, both sides, as `build_tokens` wrote them."""

    def __init__(self, folder: Path, summary: TokenSummary) -> None:
        self.folder = folder
        self.summary = summary

    @classmethod
    def open(cls, folder: Path) -> "Tokens":
        """Raises `CorruptData` where the summary or a shard is missing or has another size."""
        path = folder / SUMMARY
        try:
            summary = TokenSummary.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise CorruptData(path, "the file is missing.", REMEDY) from error
        except ValidationError as error:
            raise CorruptData(path, f"this is not a token summary ({error}).", REMEDY) from error
        tokens = cls(folder, summary)
        for split in SPLITS:
            for record in summary.of(split).files:
                _shards.check_size(folder, record, remedy=REMEDY)
        return tokens

    def split(self, name: Split) -> "TokenSplit":
        """One side: ``train`` or ``eval``."""
        return TokenSplit(self.folder, name, self.summary)

    def verify(self) -> None:
        """Read every shard and raise `CorruptData` where a byte differs from what was written."""
        for split in SPLITS:
            for record in self.summary.of(split).files:
                _shards.check_content(self.folder, record, remedy=REMEDY)


class TokenSplit:
    """Contexts of one side, memory-mapped. A context is known by its number, from 0."""

    def __init__(self, folder: Path, name: Split, summary: TokenSummary) -> None:
        mine = summary.of(name)
        self.name: Split = name
        self.context = summary.context
        """Positions per context."""
        self.pack = summary.pack
        self.num_contexts = mine.num_contexts
        self.num_kept = mine.num_kept
        """Positions that are text."""
        self.digest = digest({"files": [record.sha256 for record in mine.files]}, length=16)
        """Changes with any byte of the contexts."""
        self._first = np.cumsum([0, *mine.contexts_per_file])
        self._maps = _shards.Maps(
            [folder / record.name for record in mine.files],
            [
                {
                    column: _shards.TensorSpec(dtype, (contexts, summary.context))
                    for column, dtype in _DTYPE_NAMES.items()
                }
                for contexts in mine.contexts_per_file
            ],
            remedy=REMEDY,
        )

    def rows(self, indices: Sequence[int] | np.ndarray | Int64[Tensor, " batch"]) -> TokenRows:
        """The contexts with these numbers, in that order."""
        chosen = np.asarray(indices, np.int64)
        self._check(chosen)
        out = {c: np.empty((len(chosen), self.context), d) for c, d in COLUMNS.items()}
        shard = np.searchsorted(self._first, chosen, side="right") - 1
        for number in np.unique(shard):
            here = np.flatnonzero(shard == number)
            for column, values in out.items():
                values[here] = self._maps[int(number)][column][chosen[here] - self._first[number]]
        return TokenRows(
            torch.from_numpy(out["tokens"].astype(np.int64)),
            torch.from_numpy(out["document"].astype(np.int64)),
            torch.from_numpy(out["position"].astype(np.int64)),
            torch.from_numpy(out["keep"]),
        )

    def attention_mask(
        self, indices: Sequence[int] | np.ndarray | Int64[Tensor, " batch"]
    ) -> Bool[Tensor, "batch context"]:
        """True where there is no padding; all True where documents run on."""
        return self.rows(indices).document != NO_DOCUMENT

    def kept_rows(self, contexts: range) -> np.ndarray:
        """Places of the text in these contexts, ``context * length + position``, ascending."""
        places = []
        for number in range(len(self._maps)):
            first, last = int(self._first[number]), int(self._first[number + 1])
            start, stop = max(first, contexts.start), min(last, contexts.stop)
            if start < stop:
                keep = self._maps[number]["keep"][start - first : stop - first]
                places.append(np.flatnonzero(keep) + start * self.context)
        return np.concatenate(places).astype(np.int64)

    def batches(self, batch_contexts: int) -> Iterator[tuple[range, TokenRows]]:
        """All contexts in order, ``batch_contexts`` at a time, with their numbers."""
        for start in range(0, self.num_contexts, batch_contexts):
            chosen = range(start, min(start + batch_contexts, self.num_contexts))
            yield chosen, self.rows(chosen)

    @cached_property
    def kept_per_context(self) -> np.ndarray:
        """Kept positions of each context, int64."""
        counts = [self._maps[i]["keep"].sum(axis=1) for i in range(len(self._maps))]
        return np.concatenate(counts).astype(np.int64)

    def _check(self, chosen: np.ndarray) -> None:
        if chosen.ndim != 1 or ((chosen < 0) | (chosen >= self.num_contexts)).any():
            raise BadInput(
                f"contexts of the {self.name} tokens are numbered from 0 to"
                f" {self.num_contexts - 1}.",
                value=[int(i) for i in chosen.reshape(-1)[:5]],
            )


def _batches(
    documents: Iterator[CorpusDocument], writers: dict[Split, ContextWriter]
) -> Iterator[list[CorpusDocument]]:
    """Documents that are still wanted, until both sides are full."""
    batch: list[CorpusDocument] = []
    chars = 0
    for document in documents:
        if not writers[document.split].is_full:
            batch.append(document)
            chars += len(document.text)
        if len(batch) >= BATCH_DOCUMENTS or chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
            if all(writer.is_full for writer in writers.values()):
                return
    if batch:
        yield batch


def _check_amount(cfg: CorpusConfig, writers: dict[Split, ContextWriter], found: Found) -> None:
    for split, writer in writers.items():
        if writer.num_contexts == 0:
            what = "training" if split == "train" else "evaluation"
            raise BadInput(
                f"the corpus gives no {what} context of {cfg.context} tokens: of its"
                f" {found.num_documents} documents with {found.num_tokens} tokens,"
                f" {writer.num_positions} positions fall on that side. Give it more text or more"
                " documents (a .txt file is one document up to corpus.document_chars), or lower"
                f" corpus.context, {cfg.context}"
                + (", or raise corpus.eval_tokens." if split == "eval" else "."),
                key="corpus.id",
                value=cfg.id,
            )


def _summary(cfg: CorpusConfig, split: Split, writer: ContextWriter) -> SplitSummary:
    return SplitSummary(
        num_contexts=writer.num_contexts,
        num_kept=writer.num_kept,
        num_documents=writer.documents,
        wanted_tokens=cfg.wanted_contexts(split) * cfg.context,
        short=writer.num_contexts < cfg.wanted_contexts(split),
        files=tuple(writer.records),
        contexts_per_file=tuple(writer.contexts_per_file),
    )
