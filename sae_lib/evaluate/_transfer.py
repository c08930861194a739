"""What one coder does on unpacked documents, kept document by document.

A row of tokens is one document behind a BOS, so that a column is a place in the document. Sums are
kept for every document and every group of its tokens (places, or who speaks in a chat), so that
whatever is said about them can be drawn again from the documents.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lib.apply.reading import encode_texts
from sae_lib.errors import BadInput, NotApplicable
from sae_lib.evaluate._passes import CleanPass, Model, SitePasses, counted_positions
from sae_lib.models.language_model import LanguageModel
from sae_lib.models.places import Place
from sae_lib.saes.base import SparseCoder

COLUMNS = ("tokens", "error", "spread", "l0", "counted", "clean", "spliced", "ablated")
"""What is summed: over kept tokens the first four, over tokens whose loss counts the others."""

SMALLEST_GAP = 1e-3
"""Nats that an ablation must cost, or there is no score of what was recovered."""

Ablation = Literal["zero", "mean"]

NO_GROUP = -1


class Documents(NamedTuple):
    """Documents of a corpus as the model takes them, the shortest first."""

    tokens: Int[Tensor, "documents seq"]
    mask: Bool[Tensor, "documents seq"]
    """False on padding."""

    keep: Bool[Tensor, "documents seq"]
    """Tokens that count: text, and the marks of a chat."""

    group: Int[Tensor, "documents seq"]
    """Place in ``names``; `NO_GROUP` where a token is not kept."""

    names: tuple[str, ...]
    """What the groups are called."""

    def batches(self, size: int) -> Iterator[tuple[slice, "Documents"]]:
        """Some documents at a time, without the columns that are padding for all of them."""
        for low in range(0, len(self.tokens), size):
            part = slice(low, low + size)
            width = int(self.mask[part].sum(1).max())
            cut = (field[part, :width] for field in self[:4])
            yield part, Documents(*cut, self.names)  # type: ignore[arg-type]


class Sums(NamedTuple):
    """Sums of one coder over one corpus, document by document, in float64."""

    columns: Float[Tensor, "documents groups columns"]
    """In the order of `COLUMNS`."""

    x: Float[Tensor, "documents d_out"]
    """Sum of x - the training mean over kept tokens."""

    fired: Float[Tensor, "documents d_sae"]
    """Tokens on which each latent is on."""

    def of(self, groups: Sequence[int]) -> "Sums":
        """The same with only some groups in ``columns``."""
        return self._replace(columns=self.columns[:, list(groups)])


def position_edges(context: int, longest: int) -> list[int]:
    """Where groups of places begin: 0, 1, 8 and fractions and multiples by 4 of ``context``.

    The last is where none of ``longest`` tokens is.
    """
    edges = [0, 1, 8, max(1, context // 16), max(1, context // 4), context]
    while edges[-1] < longest:
        edges.append(4 * edges[-1])
    return sorted(set(edges))


def by_position(model: LanguageModel, texts: Sequence[str], context: int) -> Documents:
    """Documents whose tokens are grouped by their place, BOS being at 0."""
    batch = encode_texts(model, texts, max_tokens=model.info.max_context)
    longest = batch.tokens.shape[1]
    edges = position_edges(context, longest)
    place = torch.bucketize(torch.arange(longest), torch.tensor(edges), right=True) - 1
    group = place.expand_as(batch.tokens).masked_fill(~batch.keep, NO_GROUP)
    names = tuple(f"{low}-{high - 1}" for low, high in pairwise(edges))
    return _shortest_first(batch.tokens, batch.mask, batch.keep, group, names)


def by_speaker(
    model: LanguageModel, texts: Sequence[str], markers: Mapping[str, str], closing: Sequence[str]
) -> Documents:
    """Documents whose tokens are grouped by who speaks; marks are a group of their own.

    ``markers`` says with which text a speaker's turn begins, ``closing`` which texts belong to no
    one. Marks are kept though they be special tokens. What comes before the first mark is
    ``none``.
    """
    batch = encode_texts(model, texts, max_tokens=model.info.max_context)
    names = ("template", "none", *markers)
    speaker, is_mark = speakers(
        batch.tokens,
        {name: _ids(model, text) for name, text in markers.items()},
        [_ids(model, text) for text in closing],
    )
    keep = batch.mask & (batch.keep | is_mark)
    group = (speaker + 2).masked_fill(is_mark, 0).masked_fill(~keep, NO_GROUP)
    return _shortest_first(batch.tokens, batch.mask, keep, group, names)


def speakers(
    tokens: Int[Tensor, "documents seq"],
    markers: Mapping[str, list[int]],
    closing: Sequence[list[int]],
) -> tuple[Int[Tensor, "documents seq"], Bool[Tensor, "documents seq"]]:
    """The place of each token's speaker in ``markers`` (-1 before any), and what is a mark."""
    is_mark = torch.zeros_like(tokens, dtype=torch.bool)
    turn = torch.full_like(tokens, -1)  # column at which a turn begins, numbered by speaker
    num = max(len(markers), 1)
    columns = torch.arange(tokens.shape[1])
    for number, ids in enumerate([*markers.values(), *closing]):
        if len(ids) > tokens.shape[1]:
            continue
        begins = torch.zeros_like(is_mark)
        here = (tokens.unfold(1, len(ids), 1) == torch.tensor(ids)).all(-1)
        begins[:, : here.shape[1]] = here
        for offset in range(len(ids)):
            is_mark |= begins.roll(offset, dims=1)
        if number < len(markers):
            turn = torch.where(begins, columns * num + number, turn)
    latest = turn.cummax(1).values
    return torch.where(latest < 0, -1, latest % num), is_mark


def _ids(model: LanguageModel, text: str) -> list[int]:
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise BadInput("the mark of a chat has no token.", key="markers", value=text)
    return list(ids)


def _shortest_first(
    tokens: Tensor, mask: Tensor, keep: Tensor, group: Tensor, names: tuple[str, ...]
) -> Documents:
    order = mask.sum(1).argsort(stable=True)
    return Documents(tokens[order], mask[order], keep[order], group[order], names)


@torch.no_grad()
def transfer_sums(
    model: Model,
    site: str,
    coders: Mapping[str, SparseCoder[Any]],
    documents: Documents,
    mean: Float[Tensor, " d_out"],
    *,
    ablation: Ablation,
    batch_documents: int = 16,
) -> dict[str, Sums]:
    """Sums of every coder: one clean and one ablated forward pass for all, one for each.

    Raises `NotApplicable` where activations, codes or a reconstruction are not finite.
    """
    place = Place.parse(site)
    bos, eos, pad = (
        getattr(model.tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad")
    )
    not_predicted = {i for i in (bos, None if pad == eos else pad) if i is not None}
    vector = mean if ablation == "mean" else torch.zeros_like(mean)
    found: dict[str, list[Sums]] = {name: [] for name in coders}
    for _, batch in documents.batches(batch_documents):
        tokens, mask, keep = (field.to(model.device) for field in batch[:3])
        captured, logits = model.capture_and_logits(tokens, list(place.sites), mask=mask)
        counted = counted_positions(tokens, mask, keep, not_predicted)
        clean = CleanPass(logits, tokens, counted)
        passes = SitePasses(
            model, place, tokens=tokens, mask=mask, keep=keep, captured=captured, clean=clean
        )
        x = torch.cat([captured[one][keep] for one in place.reads], -1).float()
        y = torch.cat([captured[one][keep] for one in place.writes], -1).float()
        ablated = passes.ablated(ablation, vector.to(x), "kept").ce
        group = batch.group.to(model.device)
        of_kept = keep.nonzero()[:, 0], group[keep]
        of_counted = counted.nonzero()[:, 0], group[counted]
        centred = y.double() - mean.to(y).double()
        shape = (len(tokens), len(batch.names))
        at_mean = _by_document(of_kept[0], centred, len(tokens))
        for name, coder in coders.items():
            z = coder.encode(x)
            x_hat = coder.reconstruct(x, z)
            if not x_hat.isfinite().all():
                raise NotApplicable(
                    "generalizability", f"the reconstruction of {name} is not finite."
                )
            error = (y - x_hat).double().square().sum(1)
            is_on = z > 0
            kept = torch.stack(
                [
                    torch.ones_like(error),
                    error,
                    centred.square().sum(1),
                    is_on.sum(1).double(),
                ],
                1,
            )
            spliced = passes.replaced(x_hat, "kept").ce
            losses = torch.stack([torch.ones_like(spliced), clean.ce, spliced, ablated], 1)
            columns = torch.cat(
                [_by_group(*of_kept, kept, shape), _by_group(*of_counted, losses, shape)], -1
            )
            fired = _by_document(of_kept[0], is_on.double(), len(tokens))
            found[name].append(Sums(columns.cpu(), at_mean.cpu(), fired.cpu()))
    return {
        name: Sums(*(torch.cat(parts) for parts in zip(*sums, strict=True)))
        for name, sums in found.items()
    }


def _by_document(
    document: Int[Tensor, " rows"], values: Float[Tensor, "rows width"], num: int
) -> Float[Tensor, "documents width"]:
    return values.new_zeros(num, values.shape[1]).index_add_(0, document, values)


def _by_group(
    document: Int[Tensor, " rows"],
    group: Int[Tensor, " rows"],
    values: Float[Tensor, "rows width"],
    shape: tuple[int, int],
) -> Float[Tensor, "documents groups width"]:
    flat = values.new_zeros(shape[0] * shape[1], values.shape[1], dtype=torch.float64)
    flat.index_add_(0, document * shape[1] + group, values.double())
    return flat.view(*shape, -1)


QUANTITIES = (
    "fvu",
    "fvu_own_mean",
    "explained_variance",
    "explained_variance_own_mean",
    "ce_score",
    "delta_lm_loss",
    "l0",
)
"""What is drawn again from the documents."""


def quantities(
    sums: Sums, weights: Float[Tensor, "draws documents"]
) -> dict[str, Float[Tensor, " draws"]]:
    """Every one of `QUANTITIES` where a document counts as often as its weight says.

    NaN where there is no number. Where only some groups are in ``sums``, the own mean is still
    that of all.
    """
    total = torch.einsum("bd,dgc->bc", weights, sums.columns)
    at = {name: total[:, i] for i, name in enumerate(COLUMNS)}
    tokens, counted = at["tokens"], at["counted"]
    fvu = _share(at["error"], at["spread"])
    shift = (weights @ sums.x).square().sum(1) / tokens
    own = _share(at["error"], at["spread"] - shift)
    clean, spliced, ablated = (at[name] / counted for name in ("clean", "spliced", "ablated"))
    gap = ablated - clean
    score = torch.where(gap >= SMALLEST_GAP, (ablated - spliced) / gap, torch.nan)
    return {
        "fvu": fvu,
        "fvu_own_mean": own,
        "explained_variance": 1 - fvu,
        "explained_variance_own_mean": 1 - own,
        "ce_score": score,
        "delta_lm_loss": spliced - clean,
        "l0": at["l0"] / tokens,
    }


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / whole, torch.nan)


def firing_frequency(sums: Sums) -> Float[Tensor, " d_sae"]:
    """Share of kept tokens on which each latent is on."""
    return sums.fired.sum(0) / sums.columns[..., 0].sum()


def jensen_shannon(p: Float[Tensor, " latents"], q: Float[Tensor, " latents"]) -> Float[Tensor, ""]:
    """Divergence of two vectors of frequencies, each divided by its sum, in bits: 0 to 1.

    NaN where one is 0 everywhere.
    """
    p, q = p.double() / p.double().sum(), q.double() / q.double().sum()
    middle = (p + q) / 2

    def to_middle(one: Tensor) -> Tensor:
        return (one * (one / middle).clamp_min(1e-300).log2()).nan_to_num(0.0).sum()

    if not (p.isfinite().all() and q.isfinite().all()):
        return torch.tensor(torch.nan, dtype=torch.float64)
    return ((to_middle(p) + to_middle(q)) / 2).clamp(0.0, 1.0)


def resample(num: int, draws: int, seed: int) -> Float[Tensor, "draws documents"]:
    """How often each of ``num`` documents is drawn in each of ``draws`` bootstrap samples."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(0, num, (draws, num), generator=generator)
    return torch.zeros(draws, num, dtype=torch.float64).scatter_add_(
        1, chosen, torch.ones(draws, num, dtype=torch.float64)
    )
