"""Explain every latent of every coder at a site, reading the corpus twice.

The first pass measures (see `statistics`), the second reads the chosen stretches of text again to
get the activation of each of their tokens. In both, the model runs once per batch for all coders.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lib.errors import NotApplicable
from sae_lib.explain.base import Evidence, ExplainerConfig, OnProgress
from sae_lib.explain.examples import (
    ContextSource,
    ExamplesConfig,
    Windows,
    choose_examples,
    example_rows,
)
from sae_lib.explain.max_act import MaxActConfig
from sae_lib.explain.statistics import LatentStatistics
from sae_lib.explain.vocabulary import read_vocabulary
from sae_lib.saes.base import SparseCoder
from sae_lib.warehouse.rows import ExampleRow, ExplanationRow, LatentRow

_CHUNK_CODES = 2**24
"""Codes (tokens x latents) held at a time: 64 MiB."""


class Explained(NamedTuple):
    """All that was found out about the latents of one coder."""

    latents: list[LatentRow]
    """One per latent, dead ones with density 0."""

    explanations: list[ExplanationRow]
    examples: list[ExampleRow]
    not_applicable: dict[str, str]
    """Methods that have no meaning here, and why."""


class Contexts(NamedTuple):
    """Some contexts of a corpus, with what the model holds at the site."""

    rows: Int[Tensor, "contexts seq"]
    """Index of each token in the corpus."""

    token_ids: Int[Tensor, "contexts seq"]
    document: Int[Tensor, "contexts seq"]
    keep: Bool[Tensor, "contexts seq"]
    x: Float[Tensor, "contexts seq d_in"]


def explain_site(
    model: Any,
    split: ContextSource,
    site: str,
    coders: Mapping[str, SparseCoder[Any]],
    methods: Sequence[ExplainerConfig],
    *,
    batch_contexts: int = 32,
    max_contexts: int | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> dict[str, Explained]:
    """Statistics, examples and explanations of the latents of ``coders``, all reading ``site``.

    ``model`` is a `LanguageModel`, ``split`` a `TokenSplit`; ``max_contexts`` reads only so many
    of its contexts. A method that does not apply is recorded with its reason.
    """
    num_contexts = min(split.num_contexts, max_contexts or split.num_contexts)
    total = 2 * num_contexts
    vocabulary = read_vocabulary(model.tokenizer, model.vocab_size, model.special_ids)
    max_act = next((method for method in methods if isinstance(method, MaxActConfig)), None)
    shown = max_act.examples if max_act else ExamplesConfig()
    statistics = {
        name: LatentStatistics(coder.d_sae, vocabulary.size, shown.num_candidates)
        for name, coder in coders.items()
    }
    everything = torch.arange(num_contexts)
    done = 0
    for batch in read_contexts(model, split, site, everything, batch_contexts):
        for name, coder in coders.items():
            measure(statistics[name], coder, batch, apart=shown.apart)
        done += len(batch.rows)
        on_progress(done, total)

    chosen: dict[str, tuple[Tensor, Windows]] = {}
    for name, measured in statistics.items():
        latents = torch.tensor(measured.alive, dtype=torch.int64)
        chosen[name] = choose_examples(shown, split, latents, measured.candidates(latents))
    needed = torch.cat([w.rows[:, 0] // split.context for _, w in chosen.values()]).unique()
    activations = {name: torch.zeros(w.rows.shape) for name, (_, w) in chosen.items()}
    done = total - len(needed)
    for batch in read_contexts(model, split, site, needed, batch_contexts):
        for name, coder in coders.items():
            _look_up(activations[name], *chosen[name], coder, batch)
        done += len(batch.rows)
        on_progress(done, total)

    return {
        name: _conclude(
            Evidence(
                model=model,
                site=site,
                coder=coder,
                statistics=statistics[name],
                examples=example_rows(*chosen[name], activations[name], vocabulary),
                vocabulary=vocabulary,
                alive=statistics[name].alive,
            ),
            methods,
        )
        for name, coder in coders.items()
    }


def read_contexts(
    model: Any,
    split: ContextSource,
    site: str,
    indices: Int[Tensor, " contexts"],
    batch_contexts: int,
) -> Iterator[Contexts]:
    """The contexts at ``indices``, captured in batches."""
    for batch in indices.split(batch_contexts) if len(indices) else ():
        held = split.rows(batch)
        is_text = (held.document >= 0).to(model.device)  # padding belongs to no document
        x = model.capture(held.tokens.to(model.device), [site], mask=is_text)[site]
        yield Contexts(
            rows=batch[:, None] * split.context + torch.arange(split.context),
            token_ids=held.tokens,
            document=held.document,
            keep=held.keep,
            x=x,
        )


def measure(
    statistics: LatentStatistics, coder: SparseCoder[Any], batch: Contexts, *, apart: str
) -> None:
    """Add the kept tokens of ``batch`` to ``statistics``.

    Unless places may repeat a document (``apart`` is "buffer"), those of one document within one
    context contend for one candidate.
    """
    for part, z in _codes(coder, batch):
        rows, document = part.rows[part.keep], part.document[part.keep]
        context = rows // part.rows.shape[1]
        segments = rows if apart == "buffer" else context * 2**32 + document
        statistics.update(z, rows, part.token_ids[part.keep], segments)


def _codes(
    coder: SparseCoder[Any], batch: Contexts
) -> Iterator[tuple[Contexts, Float[Tensor, "tokens d_sae"]]]:
    """Whole contexts at a time, so that the codes stay small, with the codes of kept tokens."""
    device = coder.W_dec.device
    chunk = max(1, _CHUNK_CODES // (coder.d_sae * batch.rows.shape[1]))
    for low in range(0, len(batch.rows), chunk):
        part = Contexts(*(field[low : low + chunk] for field in batch))
        with torch.no_grad():
            kept = part.x[part.keep.to(part.x.device)]
            yield part, coder.encode(kept.to(device, torch.float32))


def _look_up(
    found: Float[Tensor, "chosen width"],
    latents: Int[Tensor, " chosen"],
    windows: Windows,
    coder: SparseCoder[Any],
    batch: Contexts,
) -> None:
    """Fill in the activations of those windows whose context is in ``batch``."""
    length = batch.rows.shape[1]
    for part, z in _codes(coder, batch):
        place = torch.full(part.keep.shape, -1)
        place[part.keep] = torch.arange(len(z))
        contexts = part.rows[:, 0] // length
        own = windows.rows[:, 0] // length
        here = torch.isin(own, contexts).nonzero().flatten()
        index = torch.searchsorted(contexts, own[here])
        at = place[index[:, None], windows.rows[here] % length]
        value = z.cpu()[at.clamp(min=0), latents[here][:, None]].float()
        found[here] = torch.where((at >= 0) & windows.inside[here], value, 0.0)


def _conclude(evidence: Evidence, methods: Sequence[ExplainerConfig]) -> Explained:
    explanations: list[ExplanationRow] = []
    not_applicable = {}
    for method in methods:
        try:
            method.check(evidence)
            explanations += method.explain(evidence)
        except NotApplicable as error:
            not_applicable[method.method] = error.reason
    return Explained(
        latents=_latent_rows(evidence.statistics, _labels(methods, explanations)),
        explanations=explanations,
        examples=[row for rows in evidence.examples.values() for row in rows],
        not_applicable=not_applicable,
    )


def _labels(
    methods: Sequence[ExplainerConfig], explanations: Sequence[ExplanationRow]
) -> dict[int, str]:
    """The leading keywords of the most trusted method that has any, by latent."""
    trust = {method.method: method.trust for method in methods}
    labels: dict[int, str] = {}
    for row in sorted(explanations, key=lambda row: trust[row.method]):
        if row.keywords:
            labels[row.latent] = ", ".join(row.keywords[:3])
    return labels


def _latent_rows(statistics: LatentStatistics, labels: Mapping[int, str]) -> list[LatentRow]:
    columns = zip(
        statistics.density.tolist(),
        statistics.mean_activation.tolist(),
        statistics.max_activation.tolist(),
        statistics.fired.tolist(),
        strict=True,
    )
    return [
        LatentRow(latent, density, mean if fired else None, largest, labels.get(latent))
        for latent, (density, mean, largest, fired) in enumerate(columns)
    ]
