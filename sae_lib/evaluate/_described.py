"""Descriptions of latents that other metrics judge: from explanation methods, or a true concept."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor

from sae_lib.activations.corpus import WORLD_SPLITS
from sae_lib.errors import BadInput, NotApplicable
from sae_lib.evaluate._judges.base import Description
from sae_lib.evaluate._judges.oracle import world_truth
from sae_lib.evaluate._latent_windows import (
    ContextCodes,
    choose_latents,
    num_contexts_of,
    read_site,
)
from sae_lib.evaluate.bench import Bench
from sae_lib.explain._asked import NO_ANSWER, AskingConfig
from sae_lib.explain.base import ExplainerConfig, read_explainer
from sae_lib.explain.examples import ExamplesConfig
from sae_lib.explain.max_act import MaxActConfig
from sae_lib.explain.run import explain_site
from sae_lib.explain.vocabulary import Vocabulary, read_vocabulary
from sae_lib.llm import LocalChatConfig
from sae_lib.saes.base import SparseCoder
from sae_lib.synthetic.world.concepts import CONCEPTS, lexicon
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import document
from sae_lib.warehouse.rows import ExampleRow, ExplanationRow

Side = Literal["train", "eval"]

Method = str | dict[str, Any]
"""An explanation method by its name, or as a mapping with its settings, as under ``explain``."""

NUM_SPECIAL = 1
"""Special tokens before the first word of a document of the world."""

_CHECKED_DOCUMENTS = 50

BEST_CONCEPT = "best_concept"
"""Name of the descriptions that name the concept of the world which fits a latent best."""


class Described(NamedTuple):
    """What is said about the latents of one coder."""

    by_method: dict[str, dict[int, Description]]
    """Descriptions by method and latent."""

    examples: dict[int, list[ExampleRow]]
    """Training text that was shown to the methods, by latent."""

    fired: Float[Tensor, " d_sae"]
    """Share of training tokens on which each latent fires."""

    num_fired: Int[Tensor, " d_sae"]
    """Training tokens on which each latent fires."""

    largest: Float[Tensor, " d_sae"]
    """Largest activation on training tokens."""

    reasons: dict[str, str]
    """Methods that do not apply, and why."""

    def seen(self) -> dict[int, set[tuple[str, ...]]]:
        """Windows of training text that the methods saw, by latent."""
        return {latent: {tuple(r.tokens) for r in rows} for latent, rows in self.examples.items()}


def describe(
    model: Any,
    train: Any,
    site: str,
    coders: Mapping[str, SparseCoder[Any]],
    methods: Sequence[ExplainerConfig],
    *,
    num_contexts: int,
) -> dict[str, Described]:
    """Descriptions of all latents that fire on the first training contexts, by coder."""
    found = explain_site(model, train, site, coders, methods, max_contexts=num_contexts)
    num_tokens = int(train.rows(torch.arange(num_contexts)).keep.sum())
    described = {}
    for name, explained in found.items():
        by_method: dict[str, dict[int, Description]] = {method.method: {} for method in methods}
        for row in explained.explanations:
            if row.score_definition != NO_ANSWER:  # that is no explanation, and has no score
                by_method[row.method][row.latent] = description_of(row)
        examples: dict[int, list[ExampleRow]] = {}
        for example in explained.examples:
            if example.kind != "top":
                continue
            examples.setdefault(example.latent, []).append(example)
        fired = torch.tensor([row.density for row in explained.latents], dtype=torch.float64)
        described[name] = Described(
            by_method,
            examples,
            fired,
            (fired * num_tokens).round().long(),
            torch.tensor([row.max_activation for row in explained.latents]),
            explained.not_applicable,
        )
    return described


def description_of(row: ExplanationRow) -> Description:
    """An explanation as something to judge; suppressed words are left out."""
    pairs = [
        (word, float(score))
        for word, score in zip(row.keywords, row.keyword_scores, strict=True)
        if score > 0 and word.strip()
    ]
    return Description(row.text, tuple(w for w, _ in pairs), tuple(s for _, s in pairs))


def concept_description(id: str) -> Description:
    """The world's own words about a concept; its lexicon are the keywords, where it has one."""
    concept = CONCEPTS[id]
    words = tuple(lexicon(id)) if concept.scope == "token" else ()
    return Description(f"{concept.name}: {concept.description}", words, (1.0,) * len(words), id)


def check_is_world(
    codes: ContextCodes, vocabulary: Vocabulary, world: WorldConfig, side: Side
) -> None:
    """Raise `NotApplicable` where the corpus does not hold the world's documents by number."""
    _, first = np.unique(codes.document.numpy(), return_index=True)
    for at in first[:_CHECKED_DOCUMENTS].tolist():
        words = document(world, int(codes.document[at]), split=WORLD_SPLITS[side]).tokens
        place = int(codes.position[at]) - NUM_SPECIAL
        shown = vocabulary.text[int(codes.token[at])].strip()
        if not 0 <= place < len(words) or words[place] != shown:
            raise NotApplicable(
                "the oracle", "the corpus does not consist of the world's own documents."
            )


def best_concepts(
    z: Float[Tensor, "tokens latents"], truth: csr_matrix, concepts: list[str]
) -> list[tuple[str, float]]:
    """For each latent the concept whose places it fires at most exactly, with that F1.

    Ties go to the concept that comes first.
    """
    fires = csr_matrix((z > 0).numpy().astype(np.float64))
    held = truth.astype(np.float64)
    both = np.asarray((fires.T @ held).todense())
    total = np.asarray(fires.sum(0)).reshape(-1, 1) + np.asarray(held.sum(0)).reshape(1, -1)
    f1 = 2 * both / np.maximum(total, 1)
    best = f1.argmax(1)
    return [(concepts[int(c)], float(f1[i, c])) for i, c in enumerate(best)]


class ConceptTruth(NamedTuple):
    """Which concepts of the world hold at each kept token of some contexts."""

    matrix: csr_matrix
    """(tokens, concepts), ones where one holds."""

    ids: list[str]

    def describe(self, codes: ContextCodes, name: str) -> dict[int, Description]:
        """The concept that fits each chosen latent of a coder best."""
        best = best_concepts(codes.z[name], self.matrix, self.ids)
        return {
            latent: concept_description(id)
            for latent, (id, _) in zip(codes.latents[name].tolist(), best, strict=True)
        }


def concept_truth(codes: ContextCodes, world: WorldConfig) -> ConceptTruth:
    """The truth at each kept token of training text, looked up by document and position."""
    truth = world_truth(world, "train")
    ids = list(CONCEPTS)
    column = {id: i for i, id in enumerate(ids)}
    ends, columns = [0], []
    for number, position in zip(codes.document.tolist(), codes.position.tolist(), strict=True):
        columns += sorted(column[id] for id in truth(number)[position - NUM_SPECIAL])
        ends.append(len(columns))
    ones = np.ones(len(columns), dtype=np.int8)
    shape = (len(codes.row), len(ids))
    return ConceptTruth(
        csr_matrix((ones, np.array(columns, dtype=int), np.array(ends)), shape=shape), ids
    )


class Evidence(NamedTuple):
    """What is known of the latents that were drawn, by coder."""

    described: dict[str, Described]
    true: dict[str, dict[int, Description]]
    """The best concept of the world by latent; nothing where the text is another."""

    codes: ContextCodes
    """What the latents do on held-out text."""

    num_eligible: dict[str, int]

    def descriptions(self, name: str, method: str) -> list[Description | None]:
        """One per latent that was drawn; None where the method has none."""
        known = self.true.get(name, {})
        if method != BEST_CONCEPT:
            known = self.described[name].by_method[method]
        return [known.get(latent) for latent in self.codes.latents[name].tolist()]


def check_corpus(metric: str, bench: Bench) -> None:
    """Raise `NotApplicable` where there is no text to explain on and to score on."""
    if bench.train is None or bench.split is None:
        raise NotApplicable(metric, "it needs training and held-out text of a corpus.")
    if not bench.model.is_causal:
        raise NotApplicable(metric, "windows are cut from text that a causal model reads.")


def read_evidence(
    bench: Bench,
    methods: Sequence[Method],
    *,
    num_latents: int,
    at_least: int,
    train_tokens: int,
    held_out_tokens: int,
    batch_contexts: int,
    radius: int,
    with_truth: bool,
    seed: int,
) -> Evidence:
    """Descriptions from training text, and what the latents that are drawn do on held-out text.

    Methods that ask a language model are asked about the latents that are drawn alone.
    """
    assert bench.train is not None
    assert bench.split is not None
    model, site, coders = bench.model, bench.site, bench.coders
    num_train = num_contexts_of(bench.train, train_tokens)
    num_held_out = num_contexts_of(bench.split, held_out_tokens)
    found = explainers(methods, radius)
    free = [method for method in found if not isinstance(method, AskingConfig)]
    described = describe(model, bench.train, site, coders, free, num_contexts=num_train)
    held_out = read_site(
        model, bench.split, site, num_contexts=num_held_out, batch_contexts=batch_contexts
    )
    latents: dict[str, Int[Tensor, " _"]] = {}
    eligible: dict[str, int] = {}
    for name, coder in coders.items():
        counts = [described[name].num_fired, held_out.count_firing(coder)]
        latents[name], eligible[name] = choose_latents(
            counts, at_least=at_least, num=num_latents, seed=seed
        )
    for method in found:
        if isinstance(method, AskingConfig):
            for name, coder in coders.items():
                only = method.but(latents=tuple(latents[name].tolist()))
                shown = MaxActConfig(examples=_shown_when_asked(radius))
                more = describe(
                    model, bench.train, site, {name: coder}, [shown, only], num_contexts=num_train
                )[name]
                described[name].by_method[method.method] = more.by_method[method.method]
                described[name].reasons.update(more.reasons)
    codes = held_out.codes(coders, latents)
    true: dict[str, dict[int, Description]] = {}
    if with_truth and bench.world is not None:
        vocabulary = read_vocabulary(model.tokenizer, model.vocab_size, model.special_ids)
        trained = read_site(
            model, bench.train, site, num_contexts=num_train, batch_contexts=batch_contexts
        ).codes(coders, latents)
        try:
            check_is_world(trained, vocabulary, bench.world, "train")
            check_is_world(codes, vocabulary, bench.world, "eval")
            truth = concept_truth(trained, bench.world)
            true = {name: truth.describe(trained, name) for name in coders}
        except NotApplicable:  # another corpus that the world's model reads
            true = {}
    return Evidence(described, true, codes, eligible)


def _shown_when_asked(radius: int) -> ExamplesConfig:
    """Stretches of text of every strength, and nothing that only readers look at."""
    return ExamplesConfig(radius=radius, num_silent=0, num_partners=0, num_near_misses=0)


def names_of(methods: Sequence[Method]) -> tuple[str, ...]:
    """Names of methods, in order. Raises `BadInput` where two have the same."""
    names = tuple(m if isinstance(m, str) else str(m.get("method")) for m in methods)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInput("a method stands here twice.", key="methods", value=twice[0])
    return names


def chat_models(methods: Sequence[Method]) -> list[str]:
    """Language models on this machine whose weights decide what is explained."""
    found = [
        read_explainer(m)
        for m, n in zip(methods, names_of(methods), strict=True)
        if n != BEST_CONCEPT
    ]
    return [
        method.chat.model.id
        for method in found
        if isinstance(method, AskingConfig) and isinstance(method.chat, LocalChatConfig)
    ]


def explainers(methods: Sequence[Method], radius: int) -> list[ExplainerConfig]:
    """The methods as described; the stretches of text of max_act are as long as the windows."""
    found = [read_explainer(method) for method in methods]
    return [
        m.but(examples=ExamplesConfig(radius=radius).bare()) if isinstance(m, MaxActConfig) else m
        for m in found
    ]


def of_another(own: Sequence[Description | None], *, by: int = 1) -> list[Description | None]:
    """Descriptions moved on by ``by`` among the latents that have one; in random order."""
    having = [i for i, description in enumerate(own) if description is not None]
    found: list[Description | None] = [None] * len(own)
    if len(having) > 1:
        moved = having[by % len(having) or 1 :] + having[: by % len(having) or 1]
        for i, j in zip(having, moved, strict=True):
            found[i] = own[j]
    return found
