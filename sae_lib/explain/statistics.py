"""What every latent of a coder does on a corpus, in one pass and in bounded memory.

For all latents at once: how often each fires, how strongly, on which token types, and the top n
places where it is strongest (explanations.md, sections 0 and 1). A place is held as one integer,

    key = bits(activation as float32) << 32 | (2**32 - 1 - row),

which for positive activations sorts by activation and then by the earlier row. So the top n is a
plain top-k of integers without ties, and ``merge`` of two halves is exactly the one pass.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lib.errors import BadInput
from sae_lib.explain.tally import TokenTally

_LAST_ROW = 2**32 - 1
_CHUNK_KEYS = 2**22
"""Keys that are laid out densely at a time: 32 MiB."""


class Candidates(NamedTuple):
    """Places where latents are strongest, strongest first, ties by the earlier row."""

    activation: Float[Tensor, "latents places"]
    """0 where a latent has fewer places than there are columns."""

    row: Int[Tensor, "latents places"]
    """Index of the token in the corpus, context * context length + position; -1 for none."""


class LatentStatistics:
    """Running statistics of all latents of one coder over the kept tokens of a corpus."""

    def __init__(self, d_sae: int, vocab_size: int, num_candidates: int) -> None:
        self.d_sae = d_sae
        self.num_candidates = num_candidates
        self.num_tokens = 0
        self.fired: Int[Tensor, " d_sae"] = torch.zeros(d_sae, dtype=torch.int64)
        """Tokens on which each latent fires."""
        self.total: Float[Tensor, " d_sae"] = torch.zeros(d_sae, dtype=torch.float64)
        """Sum of its activations."""
        self.max_activation: Float[Tensor, " d_sae"] = torch.zeros(d_sae)
        self.token_counts: Int[Tensor, " vocab"] = torch.zeros(vocab_size, dtype=torch.int64)
        """Occurrences of each token type among the kept tokens."""
        self.tally = TokenTally(vocab_size)
        self._keys = torch.zeros(d_sae, num_candidates, dtype=torch.int64)

    def update(
        self,
        z: Float[Tensor, "tokens d_sae"],
        rows: Int[Tensor, " tokens"],
        token_ids: Int[Tensor, " tokens"],
        segments: Int[Tensor, " tokens"],
    ) -> None:
        """Take in ``z`` of kept tokens; ``rows`` are their places in the corpus.

        Neighbours with equal ``segments`` contend for one candidate per latent, so a segment
        must come whole. Each row being its own segment, every token is a candidate.
        """
        where, latents = (z > 0).nonzero(as_tuple=True)
        values = z[where, latents].float().cpu()
        where, latents = where.cpu(), latents.cpu()
        if not bool(torch.isfinite(values).all()) or bool(z.isnan().any()):
            raise BadInput(
                "the coder gives activations that are not finite; it cannot be explained."
            )
        self.num_tokens += len(z)
        self.fired += torch.bincount(latents, minlength=self.d_sae)
        self.total.index_add_(0, latents, values.double())
        self.max_activation.scatter_reduce_(0, latents, values, "amax")
        self.token_counts += torch.bincount(token_ids.cpu(), minlength=len(self.token_counts))
        self.tally.add(latents, token_ids.cpu()[where], values)
        self._contend(latents, values, rows.cpu()[where], _number_runs(segments.cpu())[where])

    def merge(self, other: "LatentStatistics") -> "LatentStatistics":
        """Add what ``other`` saw on other tokens; returns this object."""
        self.num_tokens += other.num_tokens
        self.fired += other.fired
        self.total += other.total
        self.max_activation = torch.maximum(self.max_activation, other.max_activation)
        self.token_counts += other.token_counts
        self.tally.merge(other.tally)
        self._keys = _top_keys(self._keys, other._keys, self.num_candidates)
        return self

    @property
    def density(self) -> Float[Tensor, " d_sae"]:
        """Share of tokens on which each latent fires, in [0, 1]."""
        return self.fired.double() / max(self.num_tokens, 1)

    @property
    def mean_activation(self) -> Float[Tensor, " d_sae"]:
        """Mean activation over the tokens on which a latent fires; NaN where it never does."""
        return self.total / self.fired

    @property
    def alive(self) -> list[int]:
        """Latents that fired at least once, ascending."""
        return self.fired.nonzero().flatten().tolist()

    def candidates(self, latents: Int[Tensor, " latents"]) -> Candidates:
        """The strongest places of ``latents``."""
        keys = self._keys[latents]
        activation = (keys >> 32).to(torch.int32).view(torch.float32)
        row = torch.where(keys > 0, _LAST_ROW - (keys & _LAST_ROW), -1)
        return Candidates(activation, row)

    def _contend(
        self,
        latents: Int[Tensor, " hits"],
        values: Float[Tensor, " hits"],
        rows: Int[Tensor, " hits"],
        units: Int[Tensor, " hits"],
    ) -> None:
        """Let the best row of each unit compete with the places held so far."""
        if not len(values):
            return
        if int(rows.max()) > _LAST_ROW:
            raise BadInput(
                f"a corpus may have at most {_LAST_ROW + 1} tokens.", value=int(rows.max())
            )
        # positive floats sort like their bits; the earlier row has the larger remainder
        keys = (values.contiguous().view(torch.int32).long() << 32) | (_LAST_ROW - rows)
        num_units = int(units.max()) + 1
        chunk = max(1, _CHUNK_KEYS // num_units)
        for low in range(0, self.d_sae, chunk):
            high = min(low + chunk, self.d_sae)
            here = (latents >= low) & (latents < high)
            best = torch.zeros(high - low, num_units, dtype=torch.int64)
            cell = (latents[here] - low) * num_units + units[here]
            best.view(-1).scatter_reduce_(0, cell, keys[here], "amax")
            self._keys[low:high] = _top_keys(self._keys[low:high], best, self.num_candidates)


def _top_keys(
    held: Int[Tensor, "latents held"], new: Int[Tensor, "latents new"], k: int
) -> Int[Tensor, "latents k"]:
    return torch.cat([held, new], dim=1).topk(k, dim=1).values


def _number_runs(segments: Int[Tensor, " tokens"]) -> Int[Tensor, " tokens"]:
    """0, 1, 2, ... for each run of equal neighbours."""
    return torch.unique_consecutive(segments, return_inverse=True)[1]
