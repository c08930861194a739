"""Typed rows that evaluations, explanations and applications return."""

from typing import Any, NamedTuple


class Measurement(NamedTuple):
    """One number, with what a reader needs in order to trust it."""

    name: str
    """What was measured: fvu, l0, loss_recovered, accuracy, ..."""

    value: float | None
    """The number; None where it does not apply, and then ``reason`` says why."""

    definition: str
    """Which definition: ratio_of_sums, zero_ablation, mean_of_tokens, ..."""

    version: int = 1
    """Grows when the definition's code changes its numbers."""

    stderr: float | None = None
    """Standard error over ``unit`` of sampling; None where there is no sampling."""

    n: int | None = None
    """How many units the number was computed from."""

    unit: str | None = None
    """What was sampled: contexts, documents, texts, latents."""

    params: dict[str, Any] = {}  # noqa: RUF012  (a NamedTuple's default is never changed)
    """Settings that change the number: thresholds, k, ablation, strength."""

    reason: str | None = None
    """Why there is no value."""


class LatentRow(NamedTuple):
    """Statistics of one latent over one corpus."""

    latent: int
    """Row of W_dec."""

    density: float
    """Share of tokens on which it fires, in [0, 1]."""

    mean_activation: float | None
    """Mean over the tokens on which it fires; None when it never does."""

    max_activation: float
    """Largest activation over the corpus; 0 when it never fires."""

    label: str | None
    """Readable short name, from the explanation that is trusted most."""

    std_activation: float | None = None
    """Standard deviation over the same tokens as the mean."""

    histogram: list[float] | None = None
    """Tokens by activation, from the first bucket in which there are any to the last."""

    histogram_edges: list[float] | None = None
    """Ends of these buckets, one more than there are: each from one edge up to the next."""


class LatentPairRow(NamedTuple):
    """A latent and one that is near to it, as seen from the first."""

    latent: int
    other: int
    kind: str
    """decoder: by the cosine of their decoder rows; cofire: by how often both fire."""

    rank: int
    """0 is the nearest of the kind."""

    value: float
    """decoder: the cosine. cofire: Jaccard, tokens on which both fire over those on which any."""

    num_tokens: int | None = None
    """cofire: tokens on which both fire, of those that were looked at."""

    share: float | None = None
    """cofire: that number over the tokens on which ``latent`` fires."""

    lift: float | None = None
    """cofire: by what factor this is more often than if the two were independent."""

    is_exact: bool | None = None
    """cofire: whether no pair had to be left out for want of memory."""


class LatentScoreRow(NamedTuple):
    """One score of one latent, by a metric that scores latents one by one."""

    latent: int
    metric: str
    """autointerp, sensitivity, ..."""

    name: str
    definition: str
    value: float | None
    n: int | None = None
    """Texts, tokens or questions it was computed from."""

    method: str | None = None
    """What was scored: the explanation method, a control."""

    reason: str | None = None
    """Why there is no value."""


class ExplanationRow(NamedTuple):
    """What one method says about one latent."""

    latent: int
    method: str
    text: str
    """One line for people."""

    keywords: list[str]
    """Tokens, most telling first."""

    keyword_scores: list[float]
    """One per keyword, in the method's own unit."""

    score: float | None = None
    """How well the explanation does, where that was measured, in [0, 1]."""

    score_definition: str | None = None


class ExampleRow(NamedTuple):
    """One stretch of text that shows what a latent does."""

    latent: int
    rank: int
    """0 is the strongest of the top ones; a number within its interval or kind for others."""

    document: int
    """Document in the corpus."""

    position: int
    """Position of the peak within the document's tokens."""

    peak: int
    """Index within ``tokens`` of the token it was chosen for."""

    tokens: list[str]
    activations: list[float]
    """One per token of ``tokens``."""

    max_activation: float
    """Activation at the peak; 0 where the latent is silent."""

    kind: str = "top"
    """top, quantile, silent or near_miss."""

    interval: int | None = None
    """quantile: which interval of activation, 0 is the weakest."""

    low: float | None = None
    """quantile: lower end of that interval."""

    high: float | None = None
    """quantile: its upper end."""

    share: float | None = None
    """quantile: share of the tokens on which the latent fires that are in it, in [0, 1]."""

    other: int | None = None
    """near_miss: the latent near to this one that is strong at the peak."""


class ApplicationRow(NamedTuple):
    """One number of an application, for one method at one setting."""

    application: str
    """probing, steering, selection, ..."""

    method: str
    """What was tried: sae_probe, dense_probe, difference_in_means, random, ..."""

    task: str
    """Concept, label set or target."""

    measurement: Measurement


class SelectionRow(NamedTuple):
    """One document that a selector chose."""

    method: str
    rank: int
    document: int
    gain: int
    """Latents it covers that no earlier choice did."""

    num_latents: int
    """Latents present in it."""

    num_tokens: int
    covered: float
    """Share of all present latents that are covered so far, in [0, 1]."""

    text: str
    """Beginning of the document."""
