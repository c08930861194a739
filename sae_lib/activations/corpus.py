"""Where text comes from: the bundled world, local files, or a dataset on the hub.

A corpus is a stream of documents, each on one side: training or evaluation. Document ``i`` is held
out exactly when a seeded hash of ``i`` falls below the share of evaluation tokens, so its side
does not depend on how far the stream is read. The world has two streams of its own, which share
no document; the same hash decides which of the two is drawn from next.
"""

import hashlib
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from sae_lib.activations import _readers
from sae_lib.config import Config, digest
from sae_lib.errors import BadInput, nearest

WORLD = "world"
"""The corpus that comes with the package."""

FORMAL = "formal:"
"""Begins the names of the formal languages' corpora: ``formal:dyck`` and so on."""

Split = Literal["train", "eval"]

SPLITS: tuple[Split, ...] = ("train", "eval")

MIN_EVAL_TOKENS, MAX_EVAL_TOKENS = 4096, 65_536
"""Bounds of the evaluation tokens that are set aside when the experiment does not say."""

WORLD_SPLITS: dict[Split, Literal["train", "validation"]] = {"train": "train", "eval": "validation"}

WORLD_SAMPLE = 256
"""Documents per split that identify the generator."""


class CorpusConfig(Config):
    """Which text, how much of it, and how it is cut."""

    id: str = Field(min_length=1)
    """``world``, ``formal:LANGUAGE`` (dyck, expr, pcfg-english), a local file or folder (.txt,
    .jsonl, .csv, .parquet), or a hub dataset."""

    tokens: int = Field(gt=0)
    """Training tokens wanted, in positions of contexts (special tokens included)."""

    context: int = Field(default=128, ge=8)
    """Positions in one context, the sequence the model sees."""

    eval_tokens: int | None = Field(default=None, gt=0)
    """Held-out tokens wanted; by default a tenth of ``tokens``, at least 4,096, at most 65,536."""

    column: str = "text"
    """Column that holds the text (tables and hub datasets)."""

    split: str = "train"
    """Split of a hub dataset."""

    config: str | None = None
    """Configuration of a hub dataset."""

    revision: str | None = None
    """Commit, branch or tag of a hub dataset; a commit makes the text reproducible."""

    pack: Literal["auto", "concat", "document"] = "auto"
    """``concat``: documents run on and are cut at ``context``; ``document``: one document per
    context, padded. ``auto`` is ``concat`` for causal models and ``document`` for encoders."""

    seed: int = Field(default=0, ge=0)
    """Decides which documents are held out; for the world, which documents there are."""

    document_chars: int = Field(default=2000, gt=0)
    """A .txt file is cut at blank lines into documents of at least this many characters."""

    @property
    def held_out_tokens(self) -> int:
        """Evaluation tokens wanted, derived where the experiment does not say."""
        if self.eval_tokens is not None:
            return self.eval_tokens
        return min(max(self.tokens // 10, MIN_EVAL_TOKENS), MAX_EVAL_TOKENS)

    def wanted_contexts(self, split: Split) -> int:
        """Contexts that hold the wanted tokens of ``split``; the last may exceed them."""
        return -(-(self.tokens if split == "train" else self.held_out_tokens) // self.context)


class CorpusDocument(NamedTuple):
    """One text and its place."""

    split: Split

    number: int
    """Place in the corpus, from 0, counting documents that are not empty. The two splits of the
    world are numbered each from 0, as `sae_lib.synthetic.world` numbers them."""

    text: str


def local_path(cfg: CorpusConfig, relative_to: Path | None = None) -> Path | None:
    """The file or folder that ``cfg.id`` names, or None for bundled corpora and for the hub.

    A relative path is taken from ``relative_to`` (the folder of the experiment file). What looks
    like a path but does not exist is still returned, so that `check_corpus` can say so.
    """
    if is_bundled(cfg.id):
        return None
    path = (relative_to or Path()) / cfg.id
    looks_local = (
        Path(cfg.id).is_absolute()
        or cfg.id.startswith(".")
        or cfg.id.endswith("/")
        or cfg.id.count("/") > 1
        or path.suffix.lower() in (*_readers.SUFFIXES, ".json", ".gz", ".zst", ".zip")
    )
    return path if looks_local or path.exists() else None


def check_corpus(cfg: CorpusConfig, relative_to: Path | None = None) -> None:
    """Everything that can be known to be wrong before any text is read.

    Raises `MissingFile` (no such file or folder, nothing readable in it) or `BadInput` (format,
    empty file, column), naming the key and the value. The hub is not contacted.
    """
    path = local_path(cfg, relative_to)
    if cfg.id.startswith(FORMAL):
        _formal_language(cfg)
    if path is None:
        return
    for file in _readers.text_files(path, key="corpus.id"):
        if file.suffix.lower() in _readers.TABLES:
            _readers.check_columns(file, {cfg.column: "corpus.column"})


def corpus_fingerprint(cfg: CorpusConfig, relative_to: Path | None = None) -> str:
    """Hash of what determines the text: equal for equal documents in equal order, 16 hex digits.

    Local files are hashed by their bytes, so a renamed folder is the same corpus; the world by its
    seed and the first documents of both its streams. A hub dataset
    is what its id, configuration, split and revision say. How much is taken, how it is cut into
    contexts and what is held out are not part of it.
    """
    path = local_path(cfg, relative_to)
    content: dict[str, Any]
    if is_bundled(cfg.id):
        name = "world" if cfg.id == WORLD else cfg.id
        content = {name: _bundled_identity(cfg.id, cfg.seed)}
    elif path is None:
        content = {
            "hub": cfg.id,
            "config": cfg.config,
            "split": cfg.split,
            "revision": cfg.revision,
            "column": cfg.column,
        }
    else:
        files = _readers.text_files(path, key="corpus.id")
        kinds = {file.suffix.lower() for file in files}
        content = {
            "files": [[file.suffix.lower(), _sha256(file)] for file in files],
            "column": cfg.column if kinds & set(_readers.TABLES) else None,
            "document_chars": cfg.document_chars if ".txt" in kinds else None,
        }
    return digest(content, length=16)


def held_out(cfg: CorpusConfig, number: int) -> bool:
    """Whether document ``number`` belongs to evaluation: a pure function of the config."""
    share = cfg.held_out_tokens / (cfg.held_out_tokens + cfg.tokens)
    key = f"{cfg.seed}:{number}".encode()
    drawn = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
    return drawn < share * 2**64


def documents(cfg: CorpusConfig, relative_to: Path | None = None) -> Iterator[str]:
    """Texts of the corpus in their order, streamed; for the world its training texts, endless.

    Texts without a visible character are left out. Raises `BadInput` naming file and line where
    a text cannot be read.
    """
    path = local_path(cfg, relative_to)
    if is_bundled(cfg.id):
        yield from _bundled_texts(cfg, "train")
    elif path is None:
        yield from _hub_texts(cfg)
    else:
        for file in _readers.text_files(path, key="corpus.id"):
            yield from _readers.texts(
                file,
                column=cfg.column,
                column_key="corpus.column",
                document_chars=cfg.document_chars,
            )


def split_documents(cfg: CorpusConfig, relative_to: Path | None = None) -> Iterator[CorpusDocument]:
    """The documents with the side each belongs to, in the order of the corpus."""
    if not is_bundled(cfg.id):
        for number, text in enumerate(documents(cfg, relative_to)):
            yield CorpusDocument("eval" if held_out(cfg, number) else "train", number, text)
        return
    streams: dict[Split, Iterator[tuple[int, str]]] = {
        split: enumerate(_bundled_texts(cfg, split)) for split in SPLITS
    }
    draw = 0
    while True:
        split: Split = "eval" if held_out(cfg, draw) else "train"
        yield CorpusDocument(split, *next(streams[split]))
        draw += 1


def is_bundled(corpus: str) -> bool:
    """Whether the text comes with the package, in two streams of its own for the two sides."""
    return corpus == WORLD or corpus.startswith(FORMAL)


def _formal_language(cfg: CorpusConfig) -> Any:
    from sae_lib.synthetic.formal.languages import LANGUAGES, named_language

    name = cfg.id.removeprefix(FORMAL)
    if name not in LANGUAGES:
        raise BadInput(
            f"there is no such formal language; there are {', '.join(LANGUAGES)}."
            f"{nearest(name, LANGUAGES)}",
            key="corpus.id",
            value=cfg.id,
        )
    return named_language(name).but(seed=cfg.seed)


def _bundled_texts(cfg: CorpusConfig, split: Split) -> Iterator[str]:
    if cfg.id.startswith(FORMAL):
        from sae_lib.synthetic.formal.language import formal_strings

        strings = formal_strings(_formal_language(cfg), split=WORLD_SPLITS[split])
        yield from (" ".join(one.tokens) for one in strings)
        return
    from sae_lib.synthetic.world.config import WorldConfig
    from sae_lib.synthetic.world.generate import documents, text

    yield from map(text, documents(WorldConfig(seed=cfg.seed), split=WORLD_SPLITS[split]))


@cache
def _bundled_identity(corpus: str, seed: int) -> str:
    """Hash of the first documents of both streams: a changed grammar is a changed corpus."""
    cfg = CorpusConfig(id=corpus, tokens=1, seed=seed)
    first = {split: list(islice(_bundled_texts(cfg, split), WORLD_SAMPLE)) for split in SPLITS}
    return digest({"seed": seed, **first}, length=16)


def _hub_texts(cfg: CorpusConfig) -> Iterator[str]:
    from datasets import load_dataset

    hint = nearest(cfg.id, [WORLD])
    try:
        stream = load_dataset(
            cfg.id, cfg.config, split=cfg.split, revision=cfg.revision, streaming=True
        )
    except (OSError, ValueError) as error:  # what datasets and the hub client raise derives so
        raise BadInput(
            f"the dataset could not be opened on the hub ({error}); check the id, the split"
            f" {cfg.split!r} and the configuration {cfg.config!r}, or name a local file.{hint}",
            key="corpus.id",
            value=cfg.id,
        ) from error
    for number, row in enumerate(stream):
        if cfg.column not in row:
            raise BadInput(
                f"row {number} of {cfg.id} has no such column. Columns: {', '.join(row)}."
                f"{nearest(cfg.column, row)}",
                key="corpus.column",
                value=cfg.column,
            )
        text = row[cfg.column]
        if text is None:
            continue
        if not isinstance(text, str):
            raise BadInput(
                f"row {number} of {cfg.id} holds {type(text).__name__}, not text.",
                key="corpus.column",
                value=cfg.column,
            )
        if text.strip():
            yield text


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
