"""The largest entries of each latent over a batch: the top-k selection, transposed.

Latents keep different numbers of tokens. They are taken in classes of like numbers, so that one
selection per class does; a class reaches from more than half a power of two to the whole.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from sae_lib.saes._codes import Code, is_sparse_faster, sparse_code
from sae_lib.saes._ops import latents_of
from sae_lib.saes._products import ragged_pattern
from sae_lib.saes._select import Choice, Encoder, largest_columns, largest_of_rows

ALIGNMENT = 8
"""Widths that products like are multiples of this."""


def num_on_by_latent(code: Code) -> Int64[Tensor, " d_sae"]:
    """Tokens for which each latent is on."""
    if code.dense is not None:
        return (code.dense.detach() > 0).sum(0)
    values, pattern = code.entries
    return torch.bincount(pattern.latents[values.detach() > 0], minlength=pattern.shape[1])


def top_of_columns_code(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    b_dec: Float[Tensor, " d_in"],
    counts: Int64[Tensor, " d_sae"],
) -> tuple[Code, Float[Tensor, " d_sae"]]:
    """For each latent its ``counts`` largest positive entries over the batch, and where it ends.

    A latent with fewer positive entries keeps those. The second result lies midway between the
    smallest entry that a latent keeps and the largest that it does not, a negative one being 0;
    it says nothing of a latent that keeps nothing. ``counts`` are at most the batch, on the CPU.
    """
    cuts = x.new_zeros(len(W_enc))
    if not is_sparse_faster(x, int(counts.sum()) / (len(x) * len(W_enc))):
        pre = latents_of(x, W_enc, b_enc, b_dec)
        with torch.no_grad():
            by_latent = pre.detach().mT

            def find(latents: Tensor, num: int) -> tuple[Tensor, Tensor]:
                return largest_columns(by_latent[latents].contiguous(), num)

            tokens, latents, _ = _largest(find, counts, len(x), cuts)
            is_kept = torch.zeros_like(pre, dtype=torch.bool)
            is_kept[tokens, latents] = True
        return Code(pre * is_kept), cuts

    def select(centred: Tensor, encoder: Encoder) -> Choice:
        # a latent's entries are products of its row, with its bias beside it, and the tokens,
        # with a one beside them: latents are the rows of this selection and tokens the columns
        padding = -(centred.shape[1] + 1) % ALIGNMENT
        rows = torch.cat([encoder.W, encoder.b.unsqueeze(1)], 1)
        rows = functional.pad(rows, (0, padding))
        columns = torch.cat([centred, centred.new_ones(len(centred), 1)], 1)
        columns = functional.pad(columns, (0, padding))
        tokens_as_latents = Encoder(columns, centred.new_zeros(len(centred)))

        def find(latents: Tensor, num: int) -> tuple[Tensor, Tensor]:
            choice = largest_of_rows(rows[latents], tokens_as_latents, num)
            return choice.pattern.latents.view(-1, num), choice.values.view(-1, num)

        tokens, latents, values = _largest(find, counts, len(centred), cuts)
        order = (tokens * len(rows) + latents).argsort()
        pattern = ragged_pattern(tokens[order], latents[order], (len(centred), len(rows)))
        return Choice(pattern, values[order])

    return sparse_code(x, W_enc, b_enc, b_dec, select), cuts


def _largest(
    find: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    counts: Tensor,
    num_tokens: int,
    cuts: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, latents and values of what is kept, latent by latent; fills ``cuts``."""
    parts = []
    for latents, largest in classes(counts):
        num = min(largest + 1, num_tokens)
        latents_here = latents.to(cuts.device)
        tokens, values = find(latents_here, num)
        values, order = values.relu().sort(1, descending=True)
        tokens = tokens.gather(1, order)
        wanted = counts[latents].to(cuts.device).unsqueeze(1)
        beyond = functional.pad(values, (0, 1))  # with all tokens kept, 0 comes next
        ends = beyond.gather(1, wanted - 1) + beyond.gather(1, wanted)
        cuts[latents_here] = ends.squeeze(1) / 2
        is_kept = (torch.arange(num, device=cuts.device) < wanted) & (values > 0)
        its_latents = latents_here.unsqueeze(1).expand_as(tokens)
        parts.append((tokens[is_kept], its_latents[is_kept], values[is_kept]))
    kept = [torch.cat(part) for part in zip(*parts, strict=True)]
    return kept[0], kept[1], kept[2]


def classes(counts: Int64[Tensor, " d_sae"]) -> list[tuple[Int64[Tensor, " some"], int]]:
    """Latents whose counts lie between the same powers of two, and the largest count there.

    Latents that keep nothing are in no class.
    """
    found = []
    top, largest = 1, int(counts.max())
    while top // 2 < largest:
        latents = ((counts > top // 2) & (counts <= top)).nonzero().squeeze(1)
        if len(latents):
            found.append((latents, int(counts[latents].max())))
        top *= 2
    return found
