"""One vector per text, from the activations or encodings of its tokens."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from sae_lib.activations.harvest import CapturesSites
from sae_lib.errors import BadInput

Pool = Literal["mean", "max", "last"]

Encode = Callable[[Float[Tensor, "rows d_in"]], Float[Tensor, "rows d"]]


@runtime_checkable
class EncodesText(CapturesSites, Protocol):
    """What pooling asks of a model; `sae_lib.models.LanguageModel` does it."""

    @property
    def special_ids(self) -> frozenset[int]: ...

    @property
    def is_causal(self) -> bool: ...

    @property
    def tokenizer(self) -> Any: ...

    def encode_text(
        self, texts: list[str], *, max_tokens: int, padding_side: Literal["left", "right"]
    ) -> tuple[Int[Tensor, "batch seq"], Bool[Tensor, "batch seq"]]: ...


def pooled(
    model: EncodesText,
    texts: Sequence[str],
    sites: Sequence[str],
    *,
    pool: Pool = "mean",
    encode: Encode | Mapping[str, Encode] | None = None,
    batch_texts: int = 16,
    max_tokens: int = 128,
) -> dict[str, Float[Tensor, "texts _"]]:
    """One vector per text and site, float32 on the CPU.

    Each text is cut to ``max_tokens`` tokens. A causal model sees it behind BOS if the tokenizer
    has one, as in the contexts that SAEs are trained on, also where the tokenizer does not put it
    there itself. Special tokens and padding take no part. ``encode``
    (one for all sites, or one per site) turns rows (rows, d_in) into rows (rows, d) before they
    are pooled, so the mean is that of encodings and not the encoding of a mean. ``last`` is the
    last token of the text. Raises `BadInput` for a text without a token of its own.
    """
    if not texts:
        raise BadInput("there are no texts to pool.", key="texts")
    encoders = encode if isinstance(encode, Mapping) else dict.fromkeys(sites, encode)
    found: dict[str, list[Tensor]] = {site: [] for site in sites}
    special = torch.tensor(sorted(model.special_ids), dtype=torch.int64)
    for start in range(0, len(texts), batch_texts):
        batch = list(texts[start : start + batch_texts])
        tokens, mask = _encoded(model, batch, max_tokens)
        keep = mask.bool() & ~torch.isin(tokens, special)
        counts = keep.sum(1)
        if not counts.all():
            number = start + int((counts == 0).nonzero()[0])
            raise BadInput(
                f"text {number} has no token that is not a special one.",
                key="texts",
                value=texts[number],
            )
        captured = model.capture(tokens, sites, mask=mask.bool())
        for site in sites:
            x = captured[site]
            rows = x[keep.to(x.device)]
            encoder = encoders[site]
            z = rows if encoder is None else encoder(rows)
            found[site].append(_pool(z.float(), counts.to(z.device), pool).cpu())
    return {site: torch.cat(parts) for site, parts in found.items()}


def _encoded(
    model: EncodesText, texts: list[str], max_tokens: int
) -> tuple[Int64[Tensor, "texts seq"], Bool[Tensor, "texts seq"]]:
    bos = model.tokenizer.bos_token_id if model.is_causal else None
    room = max_tokens if bos is None else max_tokens - 1
    tokens, mask = model.encode_text(texts, max_tokens=room, padding_side="right")
    if bos is not None and not (tokens[:, 0] == bos).all():
        first = torch.full((len(texts), 1), bos, dtype=tokens.dtype)
        tokens = torch.cat([first, tokens], dim=1)
        mask = torch.cat([torch.ones_like(first, dtype=mask.dtype), mask], dim=1)
    return tokens, mask


def _pool(
    z: Float[Tensor, "rows d"], counts: Int64[Tensor, " texts"], pool: Pool
) -> Float[Tensor, "texts d"]:
    """One row per text from its ``counts`` consecutive rows."""
    if pool == "last":
        return z[counts.cumsum(0) - 1]
    return torch.segment_reduce(z, pool, lengths=counts, axis=0)
