"""Explain every latent of every coder at a site, in one pass over the corpus.

The pass measures (see `statistics`), with one run of the model per batch for all coders, and keeps
the codes on disk (`code_log`). Of them the stretches of text that are shown get the activation of
each of their tokens. Where the codes take too much room, the model reads those stretches again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lib.explain.base import Evidence, ExplainerConfig, OnProgress, explain_all
from sae_lib.explain.code_log import CodeLog, find
from sae_lib.explain.codes import Hits, entries_per_token, hits_of
from sae_lib.explain.cofiring import decoder_neighbours
from sae_lib.explain.examples import ContextSource, ExamplesConfig
from sae_lib.explain.max_act import MaxActConfig
from sae_lib.explain.places import (
    Near,
    Places,
    choose_places,
    example_rows,
    keep_silent,
    pair_rows,
)
from sae_lib.explain.statistics import LatentStatistics
from sae_lib.explain.vocabulary import Vocabulary, read_vocabulary
from sae_lib.saes.base import SparseCoder
from sae_lib.warehouse.rows import ExampleRow, ExplanationRow, LatentPairRow, LatentRow

_CHUNK_CODES = 2**24
"""Codes (tokens x latents) held at a time: 64 MiB."""

_LOG_BYTES = 2**33
"""Room for the codes of all coders on disk; beyond it texts are read again."""

_CHUNK_LATENTS = 2**12
"""Latents whose stretches of text are looked at together."""


class Explained(NamedTuple):
    """All that was found out about the latents of one coder."""

    latents: list[LatentRow]
    """One per latent, dead ones with density 0."""

    explanations: list[ExplanationRow]
    examples: list[ExampleRow]
    """The strongest stretches of every latent first, then those of other kinds."""

    not_applicable: dict[str, str]
    """Methods that have no meaning here, and why."""

    pairs: Sequence[LatentPairRow] = ()
    """Latents near to each other."""


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
    total = 2 * num_contexts  # the second half is what comes after the pass
    vocabulary = read_vocabulary(model.tokenizer, model.vocab_size, model.special_ids)
    max_act = next((method for method in methods if isinstance(method, MaxActConfig)), None)
    shown = max_act.examples if max_act else ExamplesConfig()
    extras = shown.extras(split, num_contexts)
    statistics = {
        name: LatentStatistics(coder.d_sae, vocabulary.size, shown.num_candidates, extras)
        for name, coder in coders.items()
    }
    with ExitStack() as stack:
        logs = {
            name: stack.enter_context(CodeLog(coder.d_sae, _LOG_BYTES // len(coders)))
            for name, coder in coders.items()
        }
        read_all(
            read_contexts(model, split, site, torch.arange(num_contexts), batch_contexts),
            coders,
            statistics,
            logs,
            apart=shown.apart,
            on_progress=lambda done: on_progress(done, total),
        )
        explained = {}
        for number, (name, coder) in enumerate(coders.items(), start=1):
            measured = statistics[name]
            near = _near(shown, coder, measured)
            if logs[name].is_whole:
                look_up, chunk = _from_log(logs[name]), _CHUNK_LATENTS
            else:
                look_up, chunk = _by_reading(model, split, site, coder, batch_contexts), None
            examples, rows = _examples(shown, split, measured, near, look_up, vocabulary, chunk)
            evidence = Evidence(
                model=model,
                site=site,
                coder=coder,
                statistics=measured,
                examples=examples,
                vocabulary=vocabulary,
                alive=measured.alive,
                corpus=split,
            )
            explained[name] = _conclude(evidence, methods)._replace(
                examples=rows, pairs=pair_rows(near, is_exact=measured.pairs.is_exact)
            )
            on_progress(num_contexts + num_contexts * number // len(coders), total)
    return explained


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


def read_all(
    batches: Iterable[Contexts],
    coders: Mapping[str, SparseCoder[Any]],
    statistics: Mapping[str, LatentStatistics],
    logs: Mapping[str, CodeLog],
    *,
    apart: str,
    on_progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Add the kept tokens of ``batches`` to ``statistics``, and their codes to ``logs``.

    Unless places may repeat a document (``apart`` is "buffer"), those of one document within one
    context contend for one candidate. Coders are read side by side, a thread for each as far as
    there are any: counting is many small steps, which several threads do no faster.
    """

    def read(name: str, batch: Contexts) -> None:
        for part, hits in _codes(coders[name], batch):
            _count(statistics[name], part, hits, apart, logs[name])

    done = 0
    with _side_by_side(len(coders)) as for_each:
        for batch in batches:
            for_each(partial(read, batch=batch), coders)
            done += len(batch.rows)
            on_progress(done)


ForEach = Callable[[Callable[[str], None], Iterable[str]], None]
"""Does something for each of some names."""


@contextmanager
def _side_by_side(num: int) -> Iterator[ForEach]:
    """Work for ``num`` names in threads that share the threads of torch."""
    threads = torch.get_num_threads()
    workers = min(num, threads)

    def in_turn(work: Callable[[str], None], names: Iterable[str]) -> None:
        for name in names:
            work(name)

    def together(work: Callable[[str], None], names: Iterable[str]) -> None:
        list(pool.map(work, names))  # raises what the first of them raised

    if workers < 2:
        yield in_turn
        return
    share = partial(torch.set_num_threads, max(1, threads // workers))  # of the calling thread
    try:
        with ThreadPoolExecutor(workers, initializer=share) as pool:
            yield together
    finally:
        torch.set_num_threads(threads)  # what threads that begin later take over


def _count(
    statistics: LatentStatistics, part: Contexts, hits: Hits, apart: str, log: CodeLog
) -> None:
    rows, document = part.rows[part.keep], part.document[part.keep]
    context = rows // part.rows.shape[1]
    segments = rows if apart == "buffer" else context * 2**32 + document
    statistics.update_hits(hits, rows, part.token_ids[part.keep], segments)
    log.add(hits, rows)


def _codes(coder: SparseCoder[Any], batch: Contexts) -> Iterator[tuple[Contexts, Hits]]:
    """Whole contexts at a time, so that the codes stay small, with the codes of kept tokens."""
    chunk = max(1, _CHUNK_CODES // (entries_per_token(coder) * batch.rows.shape[1]))
    for low in range(0, len(batch.rows), chunk):
        part = Contexts(*(field[low : low + chunk] for field in batch))
        yield part, hits_of(coder, part.x[part.keep.to(part.x.device)])


def _near(shown: ExamplesConfig, coder: SparseCoder[Any], statistics: LatentStatistics) -> Near:
    """The latents near to each latent that fires, among those that fire."""
    alive = torch.tensor(statistics.alive, dtype=torch.int64)
    directions = coder.W_dec.detach().flatten(1)
    return Near(
        alive,
        *decoder_neighbours(directions, alive, shown.num_partners),
        statistics.pairs.partners(alive, shown.num_partners),
    )


LookUp = Callable[[Places], Float[Tensor, "places width"]]
"""What the latents of some places do on the tokens there; 0 outside of the windows."""


def _examples(
    shown: ExamplesConfig,
    split: ContextSource,
    statistics: LatentStatistics,
    near: Near,
    look_up: LookUp,
    vocabulary: Vocabulary,
    chunk: int | None,
) -> tuple[dict[int, list[ExampleRow]], list[ExampleRow]]:
    """The strongest stretches by latent; and all rows, those first."""
    by_latent: dict[int, list[ExampleRow]] = {}
    others: list[ExampleRow] = []
    step = chunk or max(1, len(near.latents))
    for low in range(0, len(near.latents), step):
        places = choose_places(shown, split, statistics, near.part(low, low + step))
        for row in example_rows(*keep_silent(shown, places, look_up(places)), vocabulary):
            if row.kind == "top":
                by_latent.setdefault(row.latent, []).append(row)
            else:
                others.append(row)
    return by_latent, [row for rows in by_latent.values() for row in rows] + others


def _from_log(log: CodeLog) -> LookUp:
    def look_up(places: Places) -> Float[Tensor, "places width"]:
        found = log.look_up(places.latent, places.windows.rows)
        return torch.where(places.windows.inside, found, 0.0)

    return look_up


def _by_reading(
    model: Any, split: ContextSource, site: str, coder: SparseCoder[Any], batch_contexts: int
) -> LookUp:
    def look_up(places: Places) -> Float[Tensor, "places width"]:
        found = torch.zeros(places.windows.rows.shape)
        own = places.windows.rows[:, 0] // split.context
        for batch in read_contexts(model, split, site, own.unique(), batch_contexts):
            for part, hits in _codes(coder, batch):
                here = torch.isin(own, part.rows[:, 0] // split.context).nonzero().flatten()
                keys = part.rows[part.keep][hits.token] * coder.d_sae + hits.latent
                wanted = places.windows.rows[here] * coder.d_sae + places.latent[here, None]
                value = find(keys.numpy(), hits.value.numpy(), wanted)
                found[here] = torch.where(places.windows.inside[here], value, 0.0)
        return found

    return look_up


def _conclude(evidence: Evidence, methods: Sequence[ExplainerConfig]) -> Explained:
    explanations, not_applicable = explain_all(evidence, methods)
    return Explained(
        latents=_latent_rows(evidence.statistics, _labels(methods, explanations)),
        explanations=explanations,
        examples=[row for rows in evidence.examples.values() for row in rows],
        not_applicable=not_applicable,
    )


def _labels(
    methods: Sequence[ExplainerConfig], explanations: Sequence[ExplanationRow]
) -> dict[int, str]:
    """The name by the most trusted method that has one, by latent."""
    by_name = {method.method: method for method in methods}
    labels: dict[int, str] = {}
    for row in sorted(explanations, key=lambda row: by_name[row.method].trust):
        if label := by_name[row.method].label(row):
            labels[row.latent] = label
    return labels


def _latent_rows(statistics: LatentStatistics, labels: Mapping[int, str]) -> list[LatentRow]:
    columns = zip(
        statistics.density.tolist(),
        statistics.mean_activation.tolist(),
        statistics.max_activation.tolist(),
        statistics.fired.tolist(),
        statistics.variance.sqrt().tolist(),
        _histograms(statistics),
        strict=True,
    )
    return [
        LatentRow(
            latent,
            density,
            mean if fired else None,
            largest,
            labels.get(latent),
            std if fired else None,
            *histogram,
        )
        for latent, (density, mean, largest, fired, std, histogram) in enumerate(columns)
    ]


def _histograms(
    statistics: LatentStatistics,
) -> Iterator[tuple[list[float] | None, list[float] | None]]:
    """Counts and edges of each latent's buckets, from the first that is used."""
    for some in torch.arange(statistics.d_sae).split(_CHUNK_LATENTS):
        counts = statistics.histogram.counts[some]
        first = (counts > 0).long().argmax(1).tolist()
        edges = statistics.histogram.edges(some).tolist()
        is_alive = (counts.sum(1) > 0).tolist()
        for low, own, ends, fires in zip(first, counts.tolist(), edges, is_alive, strict=True):
            yield ([float(n) for n in own[low:]], ends[low:]) if fires else (None, None)
