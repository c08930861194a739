"""All metrics of many coders in one pass over the evaluation tokens.

Per batch of contexts: one clean forward pass for all sites and all coders (which ends early where
no metric asks for the model's loss), one pass per site and ablation, one per coder with its
reconstruction spliced in. A metric that has no value for a coder, because it has no meaning there
or because numbers stopped being finite, says so in its rows; the others go on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lib.activations.tokens import TokenRows
from sae_lib.errors import BadInput, SaeError
from sae_lib.evaluate._passes import CleanPass, Model, SitePasses, counted_positions
from sae_lib.evaluate.base import (
    Accumulator,
    EvalBatch,
    EvalContext,
    MetricConfig,
    NotFinite,
    SiteAccumulator,
    StreamingMetric,
    TableMetric,
)
from sae_lib.models.places import Place
from sae_lib.saes.base import SparseCoder
from sae_lib.warehouse.rows import LatentRow, Measurement

OnProgress = Callable[[int, int], None]


@runtime_checkable
class EvaluationTokens(Protocol):
    """The part of `TokenSplit` that an evaluation uses."""

    num_contexts: int

    def batches(self, batch_contexts: int) -> Iterator[tuple[range, TokenRows]]: ...


class EvaluationResult(NamedTuple):
    """What the metrics found for one coder."""

    measurements: list[Measurement]
    per_latent: list[LatentRow]
    """Statistics by latent, where a metric keeps them."""

    boundary: list[Measurement]
    """Reference points of the site; the same for all its coders."""


class _Running:
    """One metric of one coder: its sums, or why there will be none."""

    def __init__(self, metric: StreamingMetric, context: EvalContext) -> None:
        self.metric = metric
        self.reason: str | None = None
        self._accumulator: Accumulator | None = None
        try:
            self._accumulator = metric.start(context)
        except SaeError as error:
            self._fail(error)

    @property
    def needs_batches(self) -> bool:
        return self._accumulator is not None and self.metric.needs != "weights"

    def update(self, batch: EvalBatch) -> None:
        if self._accumulator is None:
            return
        try:
            self._accumulator.update(batch)
        except SaeError as error:
            self._fail(error)

    def _fail(self, error: SaeError) -> None:
        self.reason = str(getattr(error, "reason", error))
        self._accumulator = None

    def stop(self, error: NotFinite) -> None:
        if self.needs_batches:
            self._fail(error)

    def rows(self) -> list[Measurement]:
        if self._accumulator is None:
            return self.metric.absent(self.reason or "not computed")
        return self._accumulator.rows()

    def per_latent(self) -> list[LatentRow]:
        return [] if self._accumulator is None else self._accumulator.per_latent()


class _Coder(NamedTuple):
    coder: SparseCoder[Any]
    metrics: list[_Running]


class _Site(NamedTuple):
    coders: dict[str, _Coder]
    boundary: list[SiteAccumulator]


@torch.no_grad()
def evaluate_site(
    model: Model,
    split: EvaluationTokens,
    sites_saes: Mapping[str, Mapping[str, SparseCoder[Any]]],
    metrics: Sequence[MetricConfig],
    *,
    mean_activation: Mapping[str, Float[Tensor, " _"]],
    batch_contexts: int = 16,
    unit: str = "contexts",
    on_progress: OnProgress = lambda done, total: None,
) -> dict[tuple[str, str], EvaluationResult]:
    """Every metric of every coder, by site and name.

    Args:
        model: A `LanguageModel`; coders are on its device.
        split: Contexts to evaluate on, all of them.
        sites_saes: For each site its coders by name. A coder reads raw activations.
        metrics: What to compute. Those that compare coders (``frontier``) only contribute the
            reference points of the sites here; call them on the table of results afterwards.
        mean_activation: For each site the mean over training tokens, for mean ablation.
        batch_contexts: Contexts per forward pass.
        unit: What a row of tokens is, the unit of the standard errors: contexts or documents.
        on_progress: Is told contexts done and contexts in all.

    Raises:
        BadInput: there is nothing to evaluate on, a coder does not fit its site, or the mean
            activation of a site is missing or of another width.
    """
    if split.num_contexts == 0:
        raise BadInput("there are no contexts to evaluate on.", key="corpus.eval_tokens")
    streaming = [metric for metric in metrics if isinstance(metric, StreamingMetric)]
    missing = _no_language_model(model)
    needs_loss = missing is None and any(m.needs == "language_model" for m in streaming)
    sites: dict[str, _Site] = {}
    for site, coders in sites_saes.items():
        _check(model, site, coders, mean_activation)
        mean = mean_activation[site].to(model.device)
        sites[site] = _Site(
            {
                name: _Coder(
                    coder, _start(streaming, site, coder, mean, unit, batch_contexts, missing)
                )
                for name, coder in coders.items()
            },
            [m.start_site(site, mean) for m in metrics if isinstance(m, TableMetric)],
        )
    is_reading = any(
        site.boundary or any(r.needs_batches for c in site.coders.values() for r in c.metrics)
        for site in sites.values()
    )
    if is_reading:
        _read(model, split, sites, needs_loss, batch_contexts, on_progress)
    return {
        (site, name): EvaluationResult(
            [row for running in found.metrics for row in running.rows()],
            [row for running in found.metrics for row in running.per_latent()],
            boundary,
        )
        for site, running_site in sites.items()
        for boundary in [[row for own in running_site.boundary for row in own.rows()]]
        for name, found in running_site.coders.items()
    }


def _read(
    model: Model,
    split: EvaluationTokens,
    sites: Mapping[str, _Site],
    needs_loss: bool,
    batch_contexts: int,
    on_progress: OnProgress,
) -> None:
    not_predicted = _not_predicted(model.tokenizer)
    places = {name: Place.parse(name) for name in sites}
    names = list(dict.fromkeys(site for place in places.values() for site in place.sites))
    for numbers, rows in split.batches(batch_contexts):
        tokens = rows.tokens.to(model.device)
        keep = rows.keep.to(model.device)
        document = rows.document.to(model.device)
        mask = document >= 0
        clean = None
        if needs_loss:
            captured, logits = model.capture_and_logits(tokens, names, mask=mask)
            clean = CleanPass(logits, tokens, counted_positions(tokens, mask, keep, not_predicted))
        else:
            captured = model.capture(tokens, names, mask=mask)
        context = keep.nonzero()[:, 0]
        for site, running in sites.items():
            place, passes = places[site], None
            if clean is not None:
                passes = SitePasses(
                    model,
                    place,
                    tokens=tokens,
                    mask=mask,
                    keep=keep,
                    captured=captured,
                    clean=clean,
                )
            x = _precise(torch.cat([captured[one][keep] for one in place.reads], -1))
            y = None
            if place.is_map:
                y = _precise(torch.cat([captured[one][keep] for one in place.writes], -1))
            problem = _not_finite(x, f"activations at {site}", numbers)
            if problem is None and y is not None:
                problem = _not_finite(y, f"activations at {site}", numbers)
            for own in running.boundary:
                own.update(x if y is None else y)
            for coder in running.coders.values():
                _add(coder, problem, numbers, (tokens, keep, document), (x, y), context, passes)
        on_progress(numbers.stop, split.num_contexts)


def _add(
    running: _Coder,
    problem: NotFinite | None,
    numbers: range,
    text: tuple[Tensor, Bool[Tensor, "batch seq"], Tensor],
    activations: tuple[Tensor, Tensor | None],
    context: Tensor,
    passes: SitePasses | None,
) -> None:
    if not any(metric.needs_batches for metric in running.metrics):
        return
    if problem is None:
        x, y = activations
        z = running.coder.encode(x)
        x_hat = running.coder.reconstruct(x, z)
        problem = _not_finite(z, "latents", numbers) or _not_finite(
            x_hat, "reconstruction", numbers
        )
        if problem is None:
            tokens, keep, document = text
            batch = EvalBatch(tokens, keep, x, z, x_hat, context, passes, y, document)
            for metric in running.metrics:
                metric.update(batch)
            return
    for metric in running.metrics:
        metric.stop(problem)


def _start(
    metrics: Sequence[StreamingMetric],
    site: str,
    coder: SparseCoder[Any],
    mean: Tensor,
    unit: str,
    batch_contexts: int,
    missing: str | None,
) -> list[_Running]:
    context = EvalContext(site, coder, mean, batch_contexts, unit, missing)
    return [_Running(metric, context) for metric in metrics]


def _precise(x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
    """At least float32, which is what coders compute in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _not_finite(values: Float[Tensor, "rows width"], what: str, numbers: range) -> NotFinite | None:
    # a finite sum has finite terms, and needs no mask of the same size
    if values.sum().isfinite():
        return None
    bad = int((~values.isfinite()).any(-1).sum())
    if bad == 0:  # the sum itself ran over
        return None
    return NotFinite(
        f"the {what} hold NaN or infinity on {bad} of {len(values)} tokens of the contexts"
        f" {numbers.start} to {numbers.stop - 1}"
    )


def _no_language_model(model: Model) -> str | None:
    if not model.has_lm_head:
        return "the model has no language-model head, so it has no next-token loss"
    if not model.is_causal:
        return "the model is not causal: it sees the next token before it predicts it"
    return None


def _not_predicted(tokenizer: Any) -> frozenset[int]:
    """Ids that no position is asked to predict: BOS and PAD.

    Where PAD shares its id with EOS, padding is told by the mask and the end of a text counts.
    """
    bos, eos, pad = (getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad"))
    return frozenset(i for i in (bos, None if pad == eos else pad) if i is not None)


def _check(
    model: Model,
    site: str,
    coders: Mapping[str, SparseCoder[Any]],
    mean_activation: Mapping[str, Tensor],
) -> None:
    place = Place.parse(site)
    d_in, width = (sum(map(model.width, sites)) for sites in place)
    if site not in mean_activation:
        raise BadInput(
            "there is no mean activation for the site; there is one for"
            f" {', '.join(mean_activation) or 'none'}.",
            key="mean_activation",
            value=site,
        )
    if mean_activation[site].shape != (width,):
        raise BadInput(
            f"what is reconstructed at {site} is {width} wide; its mean activation has shape"
            f" {tuple(mean_activation[site].shape)}.",
            key="mean_activation",
        )
    for name, coder in coders.items():
        if (coder.d_in, coder.d_out) != (d_in, width):
            raise BadInput(
                f"the site {site} is {d_in} wide, and the coder reads {coder.d_in} numbers."
                if coder.d_in != d_in
                else f"what is reconstructed at {site} is {width} wide, and the coder gives "
                f"{coder.d_out} numbers.",
                key="d_in",
                value=name,
            )
