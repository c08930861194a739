"""Ground-truth recovery: which true concepts of the bundled world does a coder find?

A latent predicts a concept where its activation exceeds a threshold. Thresholds and matches are
chosen on one half of the text and scored on the other (`sae_lib.apply.concepts` has the details):

    coverage      share of all concepts whose latent reaches F1 >= tau, matched one to one
    purity        mean over live latents of the best F1 with any concept
    split         latents that correlate with a concept more than with any other, at 0.3 or more;
                  mean over concepts that have one
    correlation   mean over concepts of the correlation of concept and matched activation, matched
                  one to one by correlation (MCC)
    auc           mean over concepts of the area under the ROC curve of their matched latent
    direction     cosine of a concept's supervised direction, mean(x | concept) - mean(x | not),
                  with decoder rows: the nearest (MMCS), and one to one (Hungarian method)

Concepts are those that are true of enough tokens of either half, but for coverage, where a concept
that hardly occurs counts as not recovered. The floor `random_sae` has random directions of equal
width and L0; `linear_probes` is the ceiling of one direction per concept, `coordinates` are the
neurons.

Sources: Huben et al. 2023, Sharkey et al. 2022 (MMCS), Karvonen et al. 2024 (coverage); MCC is from
the literature on independent components (evaluation.md, section 17). Differs from them: matches are
chosen on other text than is scored. A difference of means mixes in what occurs together with the
concept, so even a perfect dictionary stays below cosine 1.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

from sae_lib.activations.world_tokens import WorldTokens, enough_documents, read_world
from sae_lib.apply.concepts import PROBE_TEXT, Recovery, recover
from sae_lib.apply.logistic import fit_logistic
from sae_lib.apply.reading import Encode, encoder
from sae_lib.errors import NotApplicable
from sae_lib.evaluate._baselines import random_coder
from sae_lib.evaluate._class_probes import unsuitable
from sae_lib.evaluate._moments import Estimate
from sae_lib.evaluate.base import Definition, Role, register
from sae_lib.evaluate.bench import Bench, Measured, OnProgress, TaskMetric
from sae_lib.papers import Paper
from sae_lib.saes.base import SparseCoder
from sae_lib.warehouse.rows import Measurement

CHUNK_ROWS = 4096
LEAST_CORRELATION = 0.3
"""Correlation from which on a latent is counted to the concept it correlates with most."""

LEAST_CHANCE = 0.05
"""Chance of a concept from which on its linear probe is on."""

_FLOOR = "of a random coder of the same width and L0"


def _definition(
    name: str,
    definition: str,
    text: str,
    *,
    role: Role = "score",
    better: Literal["higher", "lower", "neither"] = "higher",
    high: float = 1.0,
) -> Definition:
    return Definition(name, definition, text, better, 0.0, high, role=role)


_COVERAGE = "share of all concepts whose latent reaches the F1"
COVERAGE = {
    "one_to_one": _definition("recovery_coverage", "one_to_one", f"{_COVERAGE}, one to one"),
    "shared": _definition("recovery_coverage", "shared", f"{_COVERAGE}; a latent may serve many"),
    "union": _definition(
        "recovery_coverage", "union", f"{_COVERAGE}, the best few latents taken together"
    ),
    "random_sae": _definition(
        "recovery_coverage", "random_sae", f"one_to_one {_FLOOR}", role="floor"
    ),
    "coordinates": _definition(
        "recovery_coverage", "coordinates", "one_to_one of both signs of coordinates", role="floor"
    ),
    "linear_probes": _definition(
        "recovery_coverage", "linear_probes", "one_to_one of logistic probes", role="ceiling"
    ),
}


def _with_floor(name: str, definition: str, text: str) -> tuple[Definition, Definition]:
    own = _definition(name, definition, text)
    return own, own._replace(definition="random_sae", text=f"{text}; {_FLOOR}", role="floor")


PURITY, PURITY_FLOOR = _with_floor(
    "recovery_purity", "best_f1", "mean over live latents of the best F1 with any concept"
)
SPLIT = _definition(
    "recovery_split",
    "correlating_latents",
    f"latents per found concept that correlate with it most, at {LEAST_CORRELATION} or more",
    better="neither",
    high=math.inf,
)
MCC, MCC_FLOOR = (
    row._replace(low=-1.0)
    for row in _with_floor(
        "recovery_correlation", "one_to_one", "mean correlation of concepts and matched latents"
    )
)
AUC, AUC_FLOOR = _with_floor(
    "recovery_auc", "one_to_one", "mean area under the ROC curve of concepts' matched latents"
)
NEAREST, NEAREST_FLOOR = (
    row._replace(low=-1.0)
    for row in _with_floor(
        "recovery_direction", "nearest", "mean cosine of concepts' directions, nearest decoder row"
    )
)
ASSIGNED = NEAREST._replace(
    definition="one_to_one", text="mean cosine of concepts' directions and decoder rows, one to one"
)
CORRELATION_OF_ONE = MCC._replace(
    definition="of_one", text="correlation of a concept and its matched latent", role="part"
)


class Correlations(NamedTuple):
    """How activations go with truths over some tokens."""

    values: Float[Tensor, "concepts d_sae"]
    """Pearson correlations; 0 where either is constant."""

    num_true: Int[Tensor, " concepts"]


def correlations(
    encode: Encode, x: Float[Tensor, "tokens d_in"], truth: csr_matrix
) -> Correlations:
    """Pearson correlation of every latent with every concept, some tokens at a time."""
    num, concepts = len(x), truth.get_shape()[1]
    d_sae = encode(x[:1]).shape[1]
    both = torch.zeros(concepts, d_sae, dtype=torch.float64)
    total, squares = (torch.zeros(d_sae, dtype=torch.float64) for _ in range(2))
    for rows, z in _codes(encode, x):
        true = truth[rows].T.tocsr().astype(np.float32)
        both += torch.from_numpy(np.asarray(true @ z.numpy(), dtype=np.float64))
        total += z.double().sum(0)
        squares += z.double().square().sum(0)
    num_true = torch.from_numpy(np.asarray(truth.sum(0, dtype=np.int64)).ravel())
    share = num_true.double() / num
    covariance = both / num - share[:, None] * total / num
    spread = (squares / num - (total / num).square()).clamp_min(0).sqrt()
    scale = (share * (1 - share)).sqrt()[:, None] * spread
    is_constant = scale <= 1e-12
    values = (covariance / scale.masked_fill(is_constant, 1.0)).masked_fill(is_constant, 0.0)
    return Correlations(values.clamp(-1, 1), num_true)


def assign(values: Float[Tensor, "concepts d_sae"]) -> Int[Tensor, "concepts"]:
    """The one-to-one match with the largest sum; -1 for a concept for which no latent is left."""
    rows, columns = linear_sum_assignment(values.numpy(), maximize=True)
    found = torch.full((len(values),), -1)
    found[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return found


def split_counts(values: Float[Tensor, "concepts d_sae"]) -> Int[Tensor, " concepts"]:
    """Latents that correlate with each concept more than with any other, and clearly."""
    best = values.max(0)
    clear = best.indices[best.values >= LEAST_CORRELATION]
    return torch.bincount(clear, minlength=len(values))


def sparse_auc(values: Float[np.ndarray, " tokens"], true: Int[np.ndarray, " positives"]) -> float:
    """Area under the ROC curve of ``values`` as a detector of the tokens ``true``; ties half."""
    ranks = rankdata(values)
    positives, negatives = len(true), len(values) - len(true)
    above = ranks[true].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def concept_directions(
    x: Float[Tensor, "tokens d_in"], truth: csr_matrix
) -> Float[Tensor, "concepts d_in"]:
    """Mean where the concept is true minus mean where it is not; must be both somewhere."""
    total = x.double().sum(0)
    inside = torch.from_numpy(np.asarray(truth.T.astype(np.float64) @ x.double().numpy()))
    num = torch.from_numpy(np.asarray(truth.sum(0, dtype=np.float64)).ravel())[:, None]
    return inside / num.clamp_min(1) - (total - inside) / (len(x) - num).clamp_min(1)


class Found(NamedTuple):
    """What is found by correlation and by direction, for the concepts that occur often enough."""

    concepts: list[str]
    latents: list[int]
    correlation: Float[np.ndarray, " concepts"]
    auc: Float[np.ndarray, " concepts"]
    split: Float[np.ndarray, " concepts_found"]
    """Of concepts that have one latent or more."""

    nearest: Float[np.ndarray, " concepts"]
    assigned: Float[np.ndarray, " matched"]


@torch.no_grad()
def find(
    encode: Encode,
    W_dec: Float[Tensor, "d_sae d_in"],
    chosen: WorldTokens,
    scored: WorldTokens,
    site: str,
    *,
    min_true: int,
) -> Found:
    """Match on ``chosen`` and score on ``scored``; directions are fitted to ``chosen``."""
    first = correlations(encode, chosen.x[site], chosen.truth)
    second = correlations(encode, scored.x[site], scored.truth)
    num = min(len(chosen.x[site]), len(scored.x[site]))
    fewest = torch.minimum(first.num_true, second.num_true)
    most = torch.maximum(first.num_true, second.num_true)
    kept = ((fewest >= min_true) & (most <= num - min_true)).nonzero()[:, 0]
    latent = assign(first.values[kept])
    matched = latent >= 0
    rows, latent = kept[matched], latent[matched]
    correlation = second.values[rows, latent].numpy()
    codes = torch.cat([z[:, latent] for _, z in _codes(encode, scored.x[site])]).numpy()
    columns = scored.truth.tocsc()
    auc = [
        sparse_auc(codes[:, i], columns.indices[columns.indptr[row] : columns.indptr[row + 1]])
        for i, row in enumerate(rows.tolist())
    ]
    directions = F.normalize(concept_directions(chosen.x[site], chosen.truth)[kept], dim=1)
    cosine = directions @ F.normalize(W_dec.detach().double().cpu(), dim=1).mT
    ours, theirs = linear_sum_assignment(cosine.numpy(), maximize=True)
    split = split_counts(first.values[kept])
    return Found(
        [chosen.concepts[row] for row in rows.tolist()],
        latent.tolist(),
        correlation,
        np.array(auc, dtype=np.float64),
        split[split > 0].double().numpy(),
        cosine.amax(1).numpy(),
        cosine[ours, theirs].numpy(),
    )


@register
class RecoveryConfig(TaskMetric):
    """How much text, and what counts as found."""

    papers = (
        Paper("Huben et al. 2023", "https://arxiv.org/abs/2309.08600", "known features"),
        Paper("Karvonen et al. 2024", "https://arxiv.org/abs/2408.00113", "coverage"),
    )
    summary = "Which true concepts of the bundled world does a coder find?"

    name: Literal["recovery"] = "recovery"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    tokens: int = Field(default=20_000, ge=1000)
    """Words to choose matches on, and as many others to score them on."""

    f1: tuple[float, ...] = Field(default=(0.5, 0.7, 0.9), min_length=1)
    """Values of F1 from which on a concept counts as recovered."""

    union: int = Field(default=5, ge=1)
    """Latents that may share a concept where splitting is forgiven."""

    min_true: int = Field(default=10, ge=1)
    """Tokens of either half at which a concept must be true, and at which it must not be."""

    seed: int = Field(default=0, ge=0)
    """Seed of the random coder and of the linear probes."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        own = [COVERAGE["one_to_one"], PURITY, SPLIT, MCC, AUC, NEAREST, ASSIGNED]
        more = [row for name, row in COVERAGE.items() if name != "one_to_one"]
        return [*own, *more, PURITY_FLOOR, MCC_FLOOR, AUC_FLOOR, NEAREST_FLOOR, CORRELATION_OF_ONE]

    def check(self, bench: Bench) -> None:
        if bench.world is None:
            raise NotApplicable(
                self.name, "only the bundled world knows what is true of its tokens."
            )

    @torch.no_grad()
    def measure(self, bench: Bench, on_progress: OnProgress) -> dict[str, Measured]:
        def read(split: str, num_tokens: int) -> WorldTokens:
            assert bench.world is not None  # `check` came first
            docs = enough_documents(bench.world, num_tokens, split=f"recovery/{split}")
            return read_world(bench.model, [bench.site], docs)

        fitted = read("train", PROBE_TEXT * self.tokens)
        chosen, scored = read("validation", self.tokens), read("test", self.tokens)
        probes = fit_logistic(fitted.x[bench.site], fitted.truth, seed=self.seed)

        def linear(x: Tensor) -> Tensor:
            return (probes.log_odds(x).sigmoid() - LEAST_CHANCE).relu()

        def both_signs(x: Tensor) -> Tensor:
            return torch.cat([x.relu(), (-x).relu()], dim=-1)

        def recovered(encode: Encode, union: int) -> Recovery:
            return recover(encode, chosen, scored, bench.site, self.min_true, union)

        shared: list[Measurement] = []
        for method, encode in (("linear_probes", linear), ("coordinates", both_signs)):
            shared += self._coverage(method, [one.f1 for one in recovered(encode, 0).concepts])
        width = bench.model.width(bench.site)
        floors: dict[tuple[int, int], list[Measurement]] = {}
        measured = {}
        for done, (name, coder) in enumerate(bench.coders.items()):
            on_progress(done, len(bench.coders))
            if (reason := unsuitable(coder, width)) is not None:
                measured[name] = Measured(self.absent(reason))
                continue
            floor = random_coder(coder, fitted.x[bench.site][:4096], seed=self.seed)
            key = floor.cfg.d_sae, floor.cfg.num_on
            if key not in floors:
                floors[key] = self._floor_rows(
                    recovered(encoder(floor), 0), self._find(floor, chosen, scored, bench.site)
                )
            own = self._rows(
                recovered(encoder(coder), self.union),
                self._find(coder, chosen, scored, bench.site),
            )
            parts = [row for row in own if row.definition == "of_one"]
            own = [row for row in own if row.definition != "of_one"]
            measured[name] = Measured([*own, *floors[key], *shared, *parts])
        on_progress(len(bench.coders), len(bench.coders))
        return measured

    def _find(
        self, coder: SparseCoder[Any], chosen: WorldTokens, scored: WorldTokens, site: str
    ) -> Found:
        return find(encoder(coder), coder.W_dec, chosen, scored, site, min_true=self.min_true)

    def _coverage(self, definition: str, f1: list[float]) -> list[Measurement]:
        row, rows, n = COVERAGE[definition], [], len(f1)
        for tau in self.f1:
            share = sum(value >= tau for value in f1) / n
            estimate = Estimate(share, math.sqrt(share * (1 - share) / n), n, "concepts")
            rows.append(row.row(estimate, f1=tau, tokens=self.tokens))
        return rows

    def _rows(self, recovery: Recovery, found: Found) -> list[Measurement]:
        concepts = recovery.concepts
        params = {"tokens": self.tokens}
        rows = self._coverage("one_to_one", [one.f1 for one in concepts])
        rows += [
            PURITY.row(_purity(recovery), **params),
            SPLIT.row(_mean(found.split, "no concept has a latent"), **params),
            MCC.row(_mean(found.correlation), **params),
            AUC.row(_mean(found.auc), **params),
            NEAREST.row(_mean(found.nearest), **params),
            ASSIGNED.row(_mean(found.assigned), **params),
        ]
        rows += self._coverage("shared", [one.best_f1 for one in concepts])
        rows += [
            row._replace(params={**row.params, "latents": self.union})
            for row in self._coverage("union", [one.union_f1 for one in concepts])
        ]
        rows += [
            CORRELATION_OF_ONE.row(
                Estimate(float(value), None, self.tokens, "tokens"),
                concept=concept,
                latent=latent,
                auc=round(float(auc), 4),
            )
            for concept, latent, value, auc in zip(
                found.concepts, found.latents, found.correlation, found.auc, strict=True
            )
        ]
        return rows

    def _floor_rows(self, recovery: Recovery, found: Found) -> list[Measurement]:
        params = {"tokens": self.tokens}
        return [
            *self._coverage("random_sae", [one.f1 for one in recovery.concepts]),
            PURITY_FLOOR.row(_purity(recovery), **params),
            MCC_FLOOR.row(_mean(found.correlation), **params),
            AUC_FLOOR.row(_mean(found.auc), **params),
            NEAREST_FLOOR.row(_mean(found.nearest), **params),
        ]


def _purity(recovery: Recovery) -> Estimate:
    reason = None if recovery.num_live else "no latent fires"
    return Estimate(recovery.purity, None, recovery.num_live, "latents", reason)


def _mean(values: Float[np.ndarray, " concepts"], reason: str = "no concept is left") -> Estimate:
    n = len(values)
    if not n:
        return Estimate(None, n=0, unit="concepts", reason=reason)
    stderr = float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    return Estimate(float(values.mean()), stderr, n, "concepts")


def _codes(
    encode: Encode, x: Float[Tensor, "tokens d_in"]
) -> Iterator[tuple[slice, Float[Tensor, "part d_sae"]]]:
    for low in range(0, len(x), CHUNK_ROWS):
        rows = slice(low, min(low + CHUNK_ROWS, len(x)))
        yield rows, encode(x[rows]).float().cpu()
