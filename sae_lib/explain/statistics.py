"""What every latent of a coder does on a corpus, in one pass and in bounded memory.

For all latents at once: how often each fires, how strongly and on which token types, where it is
strongest, where it fires at every strength, where it is silent, and which latents fire with it
(explanations.md, sections 0, 1 and 6). A place is held as one integer,

    key = bits(activation as float32) << 32 | (2**32 - 1 - row),

which for positive activations sorts by activation and then by the earlier row. So the top n is a
plain top-k of integers without ties, and ``merge`` of two halves is exactly the one pass: what is
drawn is drawn by hashes (`keeper`), and what is summed is summed exactly (`histogram`, `tally`).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lib.errors import BadInput
from sae_lib.explain.codes import Hits, hits_in
from sae_lib.explain.cofiring import PairCounts
from sae_lib.explain.histogram import Histogram, bucket_of
from sae_lib.explain.keeper import LAST_ROW, Keeper, best_of_cells, pack, rows_of
from sae_lib.explain.near_miss import POOL, SilentPool
from sae_lib.explain.quantiles import Intervals, Reservoirs
from sae_lib.explain.tally import TokenTally


class Candidates(NamedTuple):
    """Places where latents are strongest, strongest first, ties by the earlier row."""

    activation: Float[Tensor, "latents places"]
    """0 where a latent has fewer places than there are columns."""

    row: Int[Tensor, "latents places"]
    """Index of the token in the corpus, context * context length + position; -1 for none."""


class Extras(NamedTuple):
    """What is found out beside counts, sums and the strongest places; nothing, by default."""

    per_bucket: int = 0
    """Tokens drawn from each bucket of the histogram."""

    silent_pool: int = 0
    """Contexts drawn, of which it is known which latents are silent in them."""

    pair_share: float = 0.0
    """Share of tokens on which it is counted which latents fire together."""

    context: int = 1
    """Tokens per context of the corpus."""

    seed: int = 0


FULL = Extras(per_bucket=3, silent_pool=POOL, pair_share=1.0)
"""Everything, as many as experiments ask for by default."""


class LatentStatistics:
    """Running statistics of all latents of one coder over the kept tokens of a corpus."""

    def __init__(
        self, d_sae: int, vocab_size: int, num_candidates: int, extras: Extras | None = None
    ) -> None:
        self.d_sae = d_sae
        self.num_candidates = num_candidates
        self.extras = extras = extras or Extras()
        self.num_tokens = 0
        self.token_counts: Int[Tensor, " vocab"] = torch.zeros(vocab_size, dtype=torch.int64)
        """Occurrences of each token type among the kept tokens."""
        self.tally = TokenTally(vocab_size, d_sae=d_sae)
        self.histogram = Histogram(d_sae)
        self.pairs = PairCounts(d_sae, extras.pair_share, extras.seed)
        self._reservoirs = Reservoirs(d_sae, extras.per_bucket, extras.seed)
        self._silent = SilentPool(d_sae, extras.seed, extras.silent_pool)
        self._strongest = Keeper(d_sae, num_candidates)

    def update(
        self,
        z: Float[Tensor, "tokens d_sae"],
        rows: Int[Tensor, " tokens"],
        token_ids: Int[Tensor, " tokens"],
        segments: Int[Tensor, " tokens"],
    ) -> None:
        """Take in ``z`` of kept tokens; see `update_hits`."""
        self.update_hits(hits_in(z), rows, token_ids, segments)

    def update_hits(
        self,
        hits: Hits,
        rows: Int[Tensor, " tokens"],
        token_ids: Int[Tensor, " tokens"],
        segments: Int[Tensor, " tokens"],
    ) -> None:
        """Take in what fires on kept tokens; ``rows`` are their places in the corpus.

        Neighbours with equal ``segments`` contend for one candidate per latent, so a segment
        must come whole, as must a context. Each row being its own segment, every token is a
        candidate.
        """
        where, latents, values = hits
        rows, token_ids, segments = rows.cpu(), token_ids.cpu(), segments.cpu()
        if not bool(torch.isfinite(values).all()):
            raise BadInput(
                "the coder gives activations that are not finite; it cannot be explained."
            )
        if len(rows) and int(rows.max()) > LAST_ROW:
            raise BadInput(
                f"a corpus may have at most {LAST_ROW + 1} tokens.", value=int(rows.max())
            )
        self.num_tokens += len(rows)
        self.token_counts += torch.bincount(token_ids, minlength=len(self.token_counts))
        self._silent.add(where, latents, rows, rows // self.extras.context)
        if not len(values):
            self.pairs.add(where, latents, rows)
            return
        buckets = bucket_of(values)
        self._reservoirs.move(*self.histogram.raise_top(latents, buckets))
        slots = self.histogram.slot(latents, buckets)
        self.histogram.add(latents, values, slots)
        self._reservoirs.add(where, latents, slots, rows)
        self.tally.add(latents, token_ids[where], values)
        self.pairs.add(where, latents, rows)
        self._contend(hits, rows, _number_runs(segments))

    def merge(self, other: "LatentStatistics") -> "LatentStatistics":
        """Add what ``other`` saw on other tokens; returns this object."""
        self.num_tokens += other.num_tokens
        self.token_counts += other.token_counts
        self.tally.merge(other.tally)
        self.pairs.merge(other.pairs)
        self._silent.merge(other._silent)
        self._strongest.merge(other._strongest)
        top = torch.maximum(self.histogram.top, other.histogram.top)
        for one in (self, other):
            one._reservoirs.move(*one.histogram.raise_to(top))
        self.histogram.merge(other.histogram)
        self._reservoirs.merge(other._reservoirs)
        return self

    @property
    def fired(self) -> Int[Tensor, " d_sae"]:
        """Tokens on which each latent fires."""
        return self.histogram.counts.sum(1)

    @property
    def total(self) -> Float[Tensor, " d_sae"]:
        """Sum of each latent's activations."""
        return self.histogram.total

    @property
    def max_activation(self) -> Float[Tensor, " d_sae"]:
        """Largest activation; 0 where a latent never fires."""
        return _activation_of(self._strongest.keys[:, 0])

    @property
    def density(self) -> Float[Tensor, " d_sae"]:
        """Share of tokens on which each latent fires, in [0, 1]."""
        return self.fired.double() / max(self.num_tokens, 1)

    @property
    def mean_activation(self) -> Float[Tensor, " d_sae"]:
        """Mean activation over the tokens on which a latent fires; NaN where it never does."""
        return self.total / self.fired

    @property
    def second_moment(self) -> Float[Tensor, " d_sae"]:
        """Mean squared activation over the same tokens."""
        return self.histogram.total_squares / self.fired

    @property
    def variance(self) -> Float[Tensor, " d_sae"]:
        """Variance of the activation over the same tokens, as a population; at least 0."""
        return (self.second_moment - self.mean_activation.square()).clamp(min=0)

    @property
    def alive(self) -> list[int]:
        """Latents that fired at least once, ascending."""
        return self.fired.nonzero().flatten().tolist()

    def candidates(self, latents: Int[Tensor, " latents"]) -> Candidates:
        """The strongest places of ``latents``."""
        keys = self._strongest.keys[latents]
        return Candidates(_activation_of(keys), rows_of(keys))

    def intervals(self, latents: Int[Tensor, " latents"], num: int) -> Intervals:
        """``num`` intervals of activation of each of ``latents``, with tokens drawn from each."""
        maximum = self.max_activation[latents]
        return self._reservoirs.intervals(self.histogram, latents, maximum, num)

    def silent_rows(self, latents: Int[Tensor, " latents"], k: int) -> Int[Tensor, "latents k"]:
        """Tokens drawn from contexts in which a latent does not fire; -1 for none."""
        return self._silent.rows(latents, k)

    def num_bytes(self) -> int:
        """Bytes of the tensors held."""
        return sum(part.nbytes for part in _tensors_of(self))

    def _contend(
        self, hits: Hits, rows: Int[Tensor, " tokens"], units: Int[Tensor, " tokens"]
    ) -> None:
        """Let the best row of each unit compete with the places held so far."""
        least = _activation_of(self._strongest.keys[:, -1])
        some = (hits.value >= least[hits.latent]).nonzero().flatten()
        latents, where = hits.latent[some], hits.token[some]
        # positive floats sort like their bits; the earlier row has the larger remainder
        keys = pack(hits.value[some].view(torch.int32).long(), rows[where])
        num_units = int(units[-1]) + 1
        cells = latents * num_units + units[where]
        cells, keys = best_of_cells(cells, keys, self.d_sae * num_units)
        self._strongest.offer(cells // num_units, keys)


def _activation_of(keys: Int[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    return (keys >> 32).to(torch.int32).view(torch.float32)


def _number_runs(segments: Int[Tensor, " tokens"]) -> Int[Tensor, " tokens"]:
    """0, 1, 2, ... for each run of equal neighbours."""
    return torch.unique_consecutive(segments, return_inverse=True)[1]


def _tensors_of(thing: object) -> list[Tensor]:
    """All tensors that an object of this package holds, also in lists and in its parts."""
    if isinstance(thing, Tensor):
        return [thing]
    if isinstance(thing, list | tuple):
        return [tensor for part in thing for tensor in _tensors_of(part)]
    if type(thing).__module__.startswith("sae_lib.explain"):
        return [tensor for part in vars(thing).values() for tensor in _tensors_of(part)]
    return []
