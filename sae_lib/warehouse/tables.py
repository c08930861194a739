"""The tables of the warehouse as data: what each holds, and what every column means.

The writer validates rows against these descriptions, the publisher creates the tables and their
comments from them. A column may be added at any time (files that lack it read as NULL); changing
the meaning or the type of one needs a new name.
"""

from typing import Any, Literal, NamedTuple

import polars as pl

from sae_lib.errors import UnknownName

Kind = Literal["text", "int", "float", "bool", "time", "json", "texts", "floats"]

DTYPES: dict[str, tuple[Any, str]] = {
    "text": (pl.String(), "VARCHAR"),
    "int": (pl.Int64(), "BIGINT"),
    "float": (pl.Float64(), "DOUBLE"),
    "bool": (pl.Boolean(), "BOOLEAN"),
    "time": (pl.Datetime("us"), "TIMESTAMP"),
    "json": (pl.String(), "VARCHAR"),
    "texts": (pl.List(pl.String()), "VARCHAR[]"),
    "floats": (pl.List(pl.Float32()), "FLOAT[]"),
}
"""How each kind of column is stored: polars type in Parquet, type in DuckDB."""


class Column(NamedTuple):
    """One column: its name, what it can hold, and a sentence about it."""

    name: str
    kind: Kind
    description: str
    optional: bool = False
    """Whether a row may leave it empty (NULL)."""

    @property
    def dtype(self) -> Any:  # polars types are classes that beartype cannot read
        return DTYPES[self.kind][0]

    @property
    def sql_type(self) -> str:
        return DTYPES[self.kind][1]


class Table(NamedTuple):
    """One table: its partition columns, its provenance columns, and its own."""

    name: str
    description: str
    columns: tuple[Column, ...]
    """What a row itself brings."""

    partition: tuple[str, ...]
    """Columns that name the Parquet file; a write replaces exactly one partition."""

    provenance: tuple[str, ...]
    """Columns that are the same for all rows of one write."""

    keeps_history: bool = False
    """Whether rows computed from another version of the model stay beside the new ones."""

    @property
    def all_columns(self) -> tuple[Column, ...]:
        shared = tuple(SHARED[name] for name in (*self.partition, *self.provenance))
        return (*shared, *self.columns)

    @property
    def schema(self) -> Any:  # see above
        return pl.Schema({column.name: column.dtype for column in self.all_columns})

    @property
    def is_declarable(self) -> bool:
        """Whether its rows belong to an experiment, which may or may not declare them."""
        return "experiment" in self.partition


_shared = (
    Column("experiment", "text", "Name of the experiment."),
    Column("site", "text", "Place in the model; empty for rows about all sites."),
    Column("variant", "text", "Id of the SAE within the site; empty for rows about all of them."),
    Column("sae_id", "text", "Hash of the SAE artefact.", optional=True),
    Column("artifact_id", "text", "Hash of the artefact these rows are.", optional=True),
    Column("model", "text", "Name of the language model."),
    Column("model_fingerprint", "text", "Hash of the model's weights, config and tokenizer."),
    Column("seed", "int", "Seed of the run; of the initial weights for an SAE.", optional=True),
    Column("created_at", "time", "When the rows were computed, UTC."),
)
SHARED: dict[str, Column] = {column.name: column for column in _shared}
"""Columns that several tables share, by name."""

CELL = ("experiment", "site", "variant")
"""What names one cell of an experiment's grid."""

CONTEXT = ("sae_id", "artifact_id", "model", "model_fingerprint", "seed", "created_at")

MEASUREMENT = (
    Column("name", "text", "What was measured: fvu, l0, accuracy, ..."),
    Column("definition", "text", "Which definition of it."),
    Column("version", "int", "Grows when the definition's code changes its numbers."),
    Column("value", "float", "The number; NULL where it does not apply.", optional=True),
    Column("stderr", "float", "Standard error over sampled units.", optional=True),
    Column("n", "int", "Number of units it was computed from.", optional=True),
    Column("unit", "text", "What was sampled: contexts, texts, latents.", optional=True),
    Column("params", "json", "Settings that change the number, as a JSON object."),
    Column("reason", "text", "Why there is no value.", optional=True),
)


def _cells(name: str, description: str, *columns: Column, keeps_history: bool = False) -> Table:
    return Table(name, description, columns, CELL, CONTEXT, keeps_history)


_tables = (
    _cells(
        "metrics",
        "One number per row: what evaluations found about an SAE, or about a site.",
        *MEASUREMENT,
        keeps_history=True,
    ),
    _cells(
        "applications",
        "One number per row: what probing, steering, selection, ... came to.",
        Column("application", "text", "probing, steering, selection, ..."),
        Column("method", "text", "What was tried: an SAE's latents, a baseline, a control."),
        Column("task", "text", "Concept, label set or target."),
        *MEASUREMENT,
        keeps_history=True,
    ),
    _cells(
        "latents",
        "One row per latent of an SAE: how often and how strongly it fires.",
        Column("latent", "int", "Index of the latent: row of W_dec."),
        Column("density", "float", "Share of tokens on which it fires, in [0, 1]."),
        Column("mean_activation", "float", "Mean over tokens on which it fires.", optional=True),
        Column("max_activation", "float", "Largest activation over the corpus."),
        Column("label", "text", "Short readable name.", optional=True),
        Column("std_activation", "float", "Standard deviation of these tokens.", optional=True),
        Column("histogram", "floats", "Tokens by activation, exact to 2^24.", optional=True),
        Column("histogram_edges", "floats", "Ends of its buckets, one more.", optional=True),
    ),
    _cells(
        "latent_pairs",
        "Other latents near to each latent that fires: by decoder row, and by firing together.",
        Column("latent", "int", "Index of the latent: row of W_dec."),
        Column("other", "int", "The latent near to it."),
        Column("kind", "text", "decoder or cofire."),
        Column("rank", "int", "0 is the nearest of the kind."),
        Column("value", "float", "Cosine of decoder rows; Jaccard of the tokens both fire on."),
        Column("num_tokens", "int", "Tokens both fire on, of those looked at.", optional=True),
        Column("share", "float", "That number over the tokens latent fires on.", optional=True),
        Column("lift", "float", "Factor over independent latents.", optional=True),
        Column("is_exact", "bool", "Whether no pair was left out of counting.", optional=True),
    ),
    _cells(
        "latent_scores",
        "One score of one latent per row, by metrics that score latents one by one.",
        Column("latent", "int", "Index of the latent: row of W_dec."),
        Column("metric", "text", "Metric that scored it."),
        Column("name", "text", "What was measured."),
        Column("definition", "text", "Which definition of it."),
        Column("value", "float", "The score; NULL where there is none.", optional=True),
        Column("n", "int", "Texts, tokens or questions it was computed from.", optional=True),
        Column("method", "text", "What was scored: a method, a control.", optional=True),
        Column("reason", "text", "Why there is no value.", optional=True),
    ),
    _cells(
        "explanations",
        "What one explanation method says about one latent.",
        Column("latent", "int", "Index of the latent: row of W_dec."),
        Column("method", "text", "Explanation method."),
        Column("text", "text", "One line for people."),
        Column("keywords", "texts", "Tokens, most telling first."),
        Column("keyword_scores", "floats", "One per keyword, in the method's own unit."),
        Column("score", "float", "How well it does, in [0, 1], if measured.", optional=True),
        Column("score_definition", "text", "Which score that is.", optional=True),
    ),
    _cells(
        "examples",
        "Stretches of text that show what a latent does; those of kind top strongest first.",
        Column("latent", "int", "Index of the latent: row of W_dec."),
        Column("rank", "int", "0 is the strongest; of other kinds a number."),
        Column("document", "int", "Document in the corpus."),
        Column("position", "int", "Position of the peak within the document's tokens."),
        Column("peak", "int", "Index within tokens of the one it was chosen for."),
        Column("tokens", "texts", "The text, token by token."),
        Column("activations", "floats", "Activation of the latent on each token."),
        Column("max_activation", "float", "Activation at the peak."),
        Column("kind", "text", "top (NULL: top), quantile, silent, near_miss.", optional=True),
        Column("interval", "int", "quantile: interval, from the weakest.", optional=True),
        Column("low", "float", "quantile: lower end of the interval.", optional=True),
        Column("high", "float", "quantile: its upper end.", optional=True),
        Column("share", "float", "quantile: share of firing tokens in it.", optional=True),
        Column("other", "int", "near_miss: the latent that is strong there.", optional=True),
    ),
    _cells(
        "curves",
        "Training curves: numbers by step.",
        Column("step", "int", "Training step, from 0."),
        Column("tokens", "int", "Tokens seen so far."),
        Column("name", "text", "loss, fvu, l0, dead_share, lr, ..."),
        Column("value", "float", "The number; NULL where it was not finite.", optional=True),
    ),
    _cells(
        "saes",
        "One row per SAE: what it is and how its training went.",
        Column("kind", "text", "Architecture."),
        Column("objective", "text", "Training strategy.", optional=True),
        Column("d_in", "int", "Width of the activations."),
        Column("d_sae", "int", "Number of latents."),
        Column("config", "json", "Resolved description of the architecture."),
        Column("train", "json", "Resolved training settings."),
        Column("status", "text", "complete, diverged, ..."),
        Column("reason", "text", "Why the status is not complete.", optional=True),
        Column("steps", "int", "Training steps done.", optional=True),
        Column("tokens", "int", "Tokens trained on.", optional=True),
        Column("seconds", "float", "Training time.", optional=True),
        Column("cpu_seconds", "float", "CPU time of its own training steps.", optional=True),
        Column("flops", "float", "Operations of its products of matrices.", optional=True),
        Column("device", "text", "Where it was trained.", optional=True),
        Column("peak_memory_bytes", "int", "Largest memory in use.", optional=True),
        Column("packages", "json", "Versions of the packages that can change a number."),
        Column("path", "text", "Folder of the artefact.", optional=True),
    ),
    _cells(
        "chosen_contexts",
        "Contexts that a specialised SAE was trained on, the nearest to its domain first.",
        Column("rank", "int", "0 is the best."),
        Column("context", "int", "Number of the context in the training tokens."),
        Column("score", "float", "By the retrieval that ranked it; more is nearer."),
        Column("text", "text", "Beginning of its text."),
    ),
    _cells(
        "site_distances",
        "How far apart the activations of two sites point.",
        Column("site_a", "text", "One site."),
        Column("site_b", "text", "The other."),
        Column("distance", "float", "Mean angle over pi, in [0, 1]; 0.5 is orthogonal."),
        Column("num_tokens", "int", "Tokens it is a mean over."),
    ),
    _cells(
        "layer_groups",
        "Groups of layers that complete linkage finds, at every number of groups.",
        Column("num_groups", "int", "Groups the sites were cut into."),
        Column("group", "int", "Which of them, from 0."),
        Column("member", "text", "A site of the group."),
        Column("amad", "float", "Mean over groups of the largest distance inside."),
    ),
    _cells(
        "selections",
        "Documents that a selector chose, in the order in which it chose them.",
        Column("method", "text", "Selector: sae_greedy, random, longest, ..."),
        Column("rank", "int", "0 is the first choice."),
        Column("document", "int", "Document in the corpus."),
        Column("gain", "int", "Latents it covers that no earlier choice did."),
        Column("num_latents", "int", "Latents present in it."),
        Column("num_tokens", "int", "Tokens in it."),
        Column("covered", "float", "Share of all present latents covered so far, in [0, 1]."),
        Column("text", "text", "Beginning of the document."),
    ),
    Table(
        "claims",
        "What the results of an experiment say about claims of papers, refuted ones included.",
        (
            Column("claim", "text", "Name of the claim."),
            Column("statement", "text", "The claim as a sentence."),
            Column("verdict", "text", "supported, refuted, undecided, not comparable or no data."),
            Column("place", "text", "Site; empty where no site has both kinds of SAEs."),
            Column("a", "text", "SAEs the claim is about, by their ids without seeds."),
            Column("b", "text", "SAEs they are compared with, or a number."),
            Column("quantity", "text", "What is compared."),
            Column("direction", "text", "What a must be to support the claim: lower or higher."),
            Column("is_relative", "bool", "Whether the effect is a / b - 1; else it is a - b."),
            Column("least", "float", "Smallest gain that counts; below 0: loss that is let pass."),
            Column("effect", "float", "Mean over seeds.", optional=True),
            Column("low", "float", "Lower end of its 95 % interval over seeds.", optional=True),
            Column("high", "float", "Upper end.", optional=True),
            Column("value_a", "float", "The quantity of a, where compared.", optional=True),
            Column("value_b", "float", "The same of b.", optional=True),
            Column("l0_a", "float", "Mean measured L0 of a.", optional=True),
            Column("l0_b", "float", "The same of b.", optional=True),
            Column("n", "int", "Pairs of seeds; of both sides together where not paired."),
            Column("comparison", "text", "paired, welch, one sample; none without an interval."),
            Column("reason", "text", "The verdict in words."),
        ),
        ("experiment",),
        ("artifact_id", "model", "model_fingerprint", "created_at"),
    ),
    Table(
        "experiments",
        "One row per experiment: what was asked.",
        (
            Column("description", "text", "What the experiment is about.", optional=True),
            Column("config", "json", "The resolved experiment, as a JSON object."),
            Column("packages", "json", "Versions of the packages that can change a number."),
            Column("path", "text", "File it was read from.", optional=True),
        ),
        ("experiment",),
        ("created_at",),
    ),
    Table(
        "models",
        "One row per version of a language model that was seen; the newest one is in use.",
        (
            Column("path", "text", "Hub id or folder it was loaded from.", optional=True),
            Column("revision", "text", "Revision on the hub.", optional=True),
            Column("family", "text", "Architecture of the language model.", optional=True),
            Column("num_layers", "int", "Number of layers.", optional=True),
            Column("d_model", "int", "Width of the residual stream.", optional=True),
            Column("vocab_size", "int", "Number of token ids.", optional=True),
            Column("num_parameters", "int", "Number of parameters.", optional=True),
            Column("has_lm_head", "bool", "Whether it predicts tokens.", optional=True),
        ),
        ("model", "model_fingerprint"),
        ("created_at",),
    ),
    Table(
        "abilities",
        "What a model has learned of the bundled world: losses, accuracies, policies.",
        (
            Column("what", "text", "loss, floor, excess, or the name of a task."),
            Column("part", "text", "Kind of document, or what a share is broken down by; all."),
            Column("value", "float", "The number."),
            Column("stderr", "float", "Standard error over n.", optional=True),
            Column("n", "int", "Documents, prompts or choices it was computed from."),
            Column("unit", "text", "share, nats per token, nats per choice."),
            Column("goal", "float", "What a model that learned the world reaches.", optional=True),
            Column("reached", "bool", "Whether the goal is reached.", optional=True),
            Column("description", "text", "What the number says."),
        ),
        ("model",),
        ("model_fingerprint", "created_at"),
        keeps_history=True,
    ),
    Table(
        "concept_probes",
        "How well the truth of each concept of the world can be read off a model, linearly.",
        (
            Column("concept", "text", "Id of the concept."),
            Column("scope", "text", "token: the word alone decides; context: other words do."),
            Column("site", "text", "Site of the best probe; empty where none was scored."),
            Column("auc", "float", "Area under the ROC curve, held-out text.", optional=True),
            Column("num_true", "int", "Held-out tokens at which the concept is active."),
            Column("by_site", "json", "The same area at every site."),
        ),
        ("model",),
        ("model_fingerprint", "created_at"),
        keeps_history=True,
    ),
    Table(
        "word_geometry",
        "Whether concepts of the world are directions of a model's word vectors or lists of words.",
        (
            Column("embedding", "text", "input or output."),
            Column("what", "text", "explained, held_out_auc or held_out_high."),
            Column("value", "float", "The number, in [0, 1]."),
            Column("control", "float", "The same for vectors dealt to other words at random."),
            Column("n", "int", "Words or concepts it was computed from."),
            Column("unit", "text", "What n counts: words or concepts."),
            Column("description", "text", "What the number says."),
        ),
        ("model",),
        ("model_fingerprint", "created_at"),
        keeps_history=True,
    ),
    Table(
        "concepts",
        "The inventory of the bundled world: what can be true of a token.",
        (
            Column("concept", "text", "Id of the concept."),
            Column("name", "text", "The same for readers."),
            Column("scope", "text", "token: the word alone decides; context: other words do."),
            Column("parents", "texts", "More general concepts that hold whenever it does."),
            Column("description", "text", "When it is active."),
            Column("frequency", "float", "Share of the words of default documents, in [0, 1]."),
            Column("num_words", "int", "Words that carry it; 0 for concepts of the context."),
        ),
        (),
        ("created_at",),
    ),
    Table(
        "published",
        "Numbers that others have published about SAEs they released, with what is against them.",
        (
            Column("source", "text", "Paper and table."),
            Column("line", "text", "Row of that table."),
            Column("place", "int", "Place of the row in it, from 0."),
            Column("sae", "text", "The SAE as that table calls it."),
            Column("released_as", "text", "Name by which an experiment imports the SAE."),
            Column("language_model", "text", "Hub id of its language model."),
            Column("hub", "text", "Hub id and folder of its weights."),
            Column("printed", "text", "The number as it is printed."),
            Column("value", "float", "The number; NULL where none was measured.", optional=True),
            Column("name", "text", "Name of our metric that measures the same."),
            Column("definitions", "texts", "Its definitions; of several the first measured."),
            Column("k", "int", "Latents used, where that is a setting.", optional=True),
            Column("is_comparable", "bool", "Whether our number may be laid beside it."),
            Column("caveat", "text", "What is known against the number.", optional=True),
        ),
        (),
        ("created_at",),
    ),
    Table(
        "runs",
        "What the graph did: one row per run, the newest ones; with the cause where one failed.",
        (
            Column("run_id", "text", "Id of the run in the orchestrator."),
            Column("experiment", "text", "Experiment of its assets; empty for those of several."),
            Column("stages", "texts", "What it was to build: saes, metrics, ..."),
            Column("partitions", "text", "Cells it was to build, as a range.", optional=True),
            Column("status", "text", "SUCCESS, FAILURE, CANCELED, STARTED, QUEUED, ..."),
            Column("cause", "text", "Why it failed, in a line.", optional=True),
            Column("started_by", "text", "sae run, backfill, automation, or the UI."),
            Column("retry_of", "text", "Run that it repeats.", optional=True),
            Column("queued_at", "time", "When it was asked for, UTC."),
            Column("started_at", "time", "When it started, UTC.", optional=True),
            Column("ended_at", "time", "When it ended, UTC.", optional=True),
            Column("seconds", "float", "From its start to its end.", optional=True),
        ),
        (),
        ("created_at",),
    ),
    Table(
        "definitions",
        "What each measurement means.",
        (
            Column("name", "text", "What is measured."),
            Column("definition", "text", "Which definition of it."),
            Column("version", "int", "Grows when the definition's code changes its numbers."),
            Column("text", "text", "Formula and unit in one line."),
            Column("better", "text", "higher, lower or neither."),
            Column("low", "float", "Smallest value; NULL where there is none.", optional=True),
            Column("high", "float", "Largest value; NULL where there is none.", optional=True),
            Column("role", "text", "score, floor, ceiling, or part of a score.", optional=True),
            Column("metric", "text", "Metric that computes it.", optional=True),
        ),
        (),
        ("created_at",),
    ),
)
TABLES: dict[str, Table] = {table.name: table for table in _tables}
"""Every table that rows can be written to, by name."""

DECLARED = "declared"
"""Table of the cells that experiments declare; the publisher fills it."""


def table(name: str) -> Table:
    """The table called ``name``; raises `UnknownName` with the nearest name."""
    if name not in TABLES:
        raise UnknownName("table", name, TABLES)
    return TABLES[name]
