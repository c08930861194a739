"""Selection: which documents cover the latents with the fewest documents?

SAE-GreedSelect (Yang et al. 2025; precise steps from applications.md, C.3). With A(x) the latents
present in document x:

    1. U = {}, S = []
    2. append argmax over the pool without S of |A(x) - U| (ties: larger |A(x)|, then lower
       number); U = U + A(x)
    3. when the best gain is 0, empty U and go on with the remaining documents
    4. stop at n documents

It is found lazily: a document's gain can only fall, so a stale gain in a heap is an upper bound.
Compared with random subsets and the longest documents, at equal numbers of documents and at equal
numbers of tokens.

Differs from the paper: presence is relative to each latent's largest activation over the pool
instead of one absolute threshold (10), which means something else for every coder.
"""

import heapq
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field
from scipy.stats import t as student_t
from torch import Tensor

from sae_lib.apply.base import ApplicationConfig, Applied, Bench, OnProgress, register
from sae_lib.apply.reading import encoder, pool_texts
from sae_lib.apply.tasks import DocumentPool, document_pool
from sae_lib.errors import NotApplicable
from sae_lib.papers import Paper
from sae_lib.warehouse.rows import ApplicationRow, Measurement, SelectionRow

GREEDY, RANDOM, LONGEST = "sae_greedy", "random", "longest_first"
_SHOWN_CHARACTERS = 200


class Choice(NamedTuple):
    """One step of a selector."""

    document: int
    gain: int
    """Latents it covers that no earlier choice of the same round did."""

    starts_round: bool
    """Whether everything had been covered, so that counting began anew."""


@register
class SelectionConfig(ApplicationConfig):
    """From which documents how many are chosen."""

    papers: ClassVar = (
        Paper("Yang et al. 2025", "https://arxiv.org/abs/2502.14050", "SAE-GreedSelect"),
    )
    summary: ClassVar = "Pick documents that together switch on as many latents as possible."
    needs: ClassVar = frozenset({"corpus"})
    headline: ClassVar = "coverage"
    dials: ClassVar = ("budgets", "presence", "pool_documents")

    kind: Literal["selection"] = "selection"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    pool_documents: int = Field(default=400, ge=2)
    """Documents to choose from."""

    budgets: tuple[int, ...] = (5, 10, 20, 50, 100)
    """Numbers of documents at which selectors are compared; those above the pool are left out."""

    presence: float = Field(default=0.0, ge=0, lt=1)
    """A latent is present where a token exceeds this share of its maximum; 0: wherever it fires."""

    random_seeds: int = Field(default=5, ge=2)
    """Random subsets that are averaged."""

    max_tokens: int = Field(default=128, gt=1)
    """Tokens of a document that are read, from its beginning."""

    seed: int = Field(default=0, ge=0)
    """First seed of the random subsets."""

    def check(self, bench: Bench) -> None:
        if bench.split is None and bench.world is None:
            raise NotApplicable(self.kind, "there is no corpus to select documents from.")

    def apply(self, bench: Bench, on_progress: OnProgress) -> dict[str, Applied]:
        self.check(bench)
        pool = document_pool(bench, self.pool_documents)
        pooled = pool_texts(
            bench.model,
            bench.site,
            pool.texts,
            {name: encoder(coder) for name, coder in bench.coders.items()},
            pool="max",
            max_tokens=self.max_tokens,
        )
        lengths = pooled.num_tokens.numpy()
        found = {}
        for done, name in enumerate(bench.coders):
            on_progress(done, len(bench.coders))
            found[name] = self._compare(
                present_latents(pooled.z[name], self.presence), lengths, pool
            )
        on_progress(len(bench.coders), len(bench.coders))
        return found

    def _compare(
        self,
        present: Bool[np.ndarray, "documents d_sae"],
        lengths: Int[np.ndarray, " documents"],
        pool: DocumentPool,
    ) -> Applied:
        num = len(present)
        budgets = sorted({n for n in self.budgets if n <= num})
        if not present.any():
            reason = "no latent fires on any document of the pool"
            row = Measurement("coverage", None, "share_of_present_latents", reason=reason)
            return Applied([ApplicationRow(self.kind, GREEDY, "documents", row)], [])
        greedy = greedy_select(present, max(budgets))
        orders = {
            GREEDY: [np.array([choice.document for choice in greedy])],
            LONGEST: [np.argsort(-lengths, kind="stable")],
            RANDOM: [
                np.random.default_rng(self.seed + i).permutation(num)
                for i in range(self.random_seeds)
            ],
        }
        rows = []
        for method, some in orders.items():
            for n in budgets:
                of_n = [order[:n] for order in some]
                rows += self._rows(method, n, "documents", of_n, present, lengths, pool)
                if method != GREEDY:
                    tokens = int(lengths[orders[GREEDY][0][:n]].sum())
                    as_many = [order[: within_tokens(lengths[order], tokens)] for order in some]
                    rows += self._rows(method, n, "tokens", as_many, present, lengths, pool)
        return Applied(rows, selection_rows(GREEDY, greedy, present, lengths, pool))

    def _rows(
        self,
        method: str,
        n: int,
        equal: str,
        chosen: list[Int[np.ndarray, " _"]],
        present: Bool[np.ndarray, "documents d_sae"],
        lengths: Int[np.ndarray, " documents"],
        pool: DocumentPool,
    ) -> list[ApplicationRow]:
        params = {
            "n": n,
            "equal": equal,
            "presence": self.presence,
            "documents": float(np.mean([len(some) for some in chosen])),
            "tokens": float(np.mean([lengths[some].sum() for some in chosen])),
        }
        values = {("coverage", "share_of_present_latents"): [coverage(present, c) for c in chosen]}
        if pool.labels is not None:
            labels = np.array(pool.labels)
            values["label_entropy", "share_of_pool_maximum"] = [
                label_entropy(labels[c], len(set(pool.labels))) for c in chosen
            ]
            if len(chosen) == 1:
                names, counts = np.unique(labels[chosen[0]], return_counts=True)
                params["labels"] = dict(zip(names.tolist(), counts.tolist(), strict=True))
        return [
            ApplicationRow(self.kind, method, "documents", _over_seeds(name, definition, v, params))
            for (name, definition), v in values.items()
        ]


def present_latents(
    z_max: Float[Tensor, "documents d_sae"], presence: float
) -> Bool[np.ndarray, "documents d_sae"]:
    """Which latents exceed ``presence`` times their maximum over the pool, in which document."""
    return (z_max > presence * z_max.max(0).values).numpy()


def greedy_select(present: Bool[np.ndarray, "documents d_sae"], n: int) -> list[Choice]:
    """The first ``n`` choices of SAE-GreedSelect (or all documents, where there are fewer)."""
    packed = np.packbits(present, axis=1)
    sizes = present.sum(1)
    covered = np.zeros_like(packed[0])
    chosen: list[Choice] = []
    left = list(range(len(present)))
    while left and len(chosen) < n:
        starts_round = True  # its first choice may have nothing to add: a document without latents
        heap = [(-int(sizes[i]), -int(sizes[i]), i) for i in left]
        heapq.heapify(heap)
        covered[:] = 0
        while heap and len(chosen) < n:
            _, size, i = heapq.heappop(heap)
            gain = int(np.bitwise_count(packed[i] & ~covered).sum())
            entry = (-gain, size, i)
            if heap and entry > heap[0]:
                heapq.heappush(heap, entry)
                continue
            if gain == 0 and not starts_round:
                heapq.heappush(heap, entry)
                break
            chosen.append(Choice(i, gain, starts_round))
            covered |= packed[i]
            starts_round = False
        left = [i for _, _, i in heap]
    return chosen


def coverage(
    present: Bool[np.ndarray, "documents d_sae"], chosen: Int[np.ndarray, " chosen"]
) -> float:
    """Share of the latents present anywhere in the pool that ``chosen`` have, in [0, 1]."""
    return float(present[chosen].any(0).sum() / present.any(0).sum())


def within_tokens(lengths: Int[np.ndarray, " documents"], tokens: int) -> int:
    """How many documents, taken in order, have at most ``tokens`` tokens together."""
    return int(np.searchsorted(lengths.cumsum(), tokens, side="right"))


def label_entropy(labels: np.ndarray, num_labels: int) -> float:
    """Entropy of ``labels`` as a share of that of ``num_labels`` equally common ones, in [0, 1]."""
    if num_labels < 2 or not len(labels):
        return 0.0
    share = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(-(share * np.log(share)).sum() / np.log(num_labels))


def selection_rows(
    method: str,
    chosen: list[Choice],
    present: Bool[np.ndarray, "documents d_sae"],
    lengths: Int[np.ndarray, " documents"],
    pool: DocumentPool,
) -> list[SelectionRow]:
    """The chosen documents in order, with what is covered after each."""
    some = np.array([choice.document for choice in chosen])
    covered = np.logical_or.accumulate(present[some], axis=0).sum(1) / present.any(0).sum()
    return [
        SelectionRow(
            method=method,
            rank=rank,
            document=pool.numbers[choice.document],
            gain=choice.gain,
            num_latents=int(present[choice.document].sum()),
            num_tokens=int(lengths[choice.document]),
            covered=float(covered[rank]),
            text=pool.texts[choice.document][:_SHOWN_CHARACTERS],
        )
        for rank, choice in enumerate(chosen)
    ]


def _over_seeds(
    name: str, definition: str, values: list[float], params: dict[str, Any]
) -> Measurement:
    """The mean; with several seeds also its standard error and a 95 % interval over them."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return Measurement(name, mean, definition, n=1, unit="selections", params=params)
    stderr = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    half = float(student_t.ppf(0.975, len(values) - 1)) * stderr
    params = {**params, "ci95": [mean - half, mean + half]}
    return Measurement(
        name, mean, definition, stderr=stderr, n=len(values), unit="seeds", params=params
    )
