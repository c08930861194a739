"""Forward passes with the activations of one site replaced, and the losses they cause.

    ce_t = -log softmax(logits_t)[token_{t+1}]                        nats
    kl_t = sum_v P_clean(v) (log P_clean(v) - log P_replaced(v))      nats

Log-softmax in float32 over a few positions at a time: a float32 copy of all logits would be the
largest tensor of the evaluation, and softmax followed by log turns underflow into NaN.
"""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from sae_lib.models.places import Place

CHUNK_ELEMENTS = 2**24
"""Logits in float32 at one time: 64 MiB, of which a handful are alive."""

Positions = Literal["kept", "all"]


@runtime_checkable
class Model(Protocol):
    """The part of `LanguageModel` that an evaluation uses."""

    tokenizer: Any
    is_causal: bool
    has_lm_head: bool

    @property
    def device(self) -> Any: ...

    def width(self, site: str) -> int: ...

    def capture(
        self, tokens: Tensor, sites: Sequence[str], *, mask: Tensor | None = None
    ) -> dict[str, Tensor]: ...

    def capture_and_logits(
        self, tokens: Tensor, sites: Sequence[str], *, mask: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor]: ...

    def logits(self, tokens: Tensor, *, mask: Tensor | None = None) -> Tensor: ...

    def intervene(
        self, edits: Mapping[str, Callable[[Tensor], Tensor]]
    ) -> AbstractContextManager[Any]: ...


class Losses(NamedTuple):
    """Losses at the counted positions of a batch."""

    ce: Float[Tensor, " positions"]
    """Surprise at the next token, nats."""

    kl: Float[Tensor, " positions"]
    """Divergence of the replaced from the clean prediction, KL(clean || replaced), nats."""


def counted_positions(
    tokens: Int[Tensor, "batch seq"],
    mask: Bool[Tensor, "batch seq"],
    keep: Bool[Tensor, "batch seq"],
    not_predicted: Collection[int],
) -> Bool[Tensor, "batch seq"]:
    """Positions whose loss counts: the input is kept, the next token is text or the end of it.

    ``not_predicted`` are the ids that no model is asked to foresee: BOS and PAD.
    """
    target = mask[:, 1:] & ~torch.isin(
        tokens[:, 1:], torch.tensor(sorted(not_predicted), dtype=tokens.dtype, device=tokens.device)
    )
    counted = torch.zeros_like(keep)
    counted[:, :-1] = keep[:, :-1] & target
    return counted


class CleanPass:
    """The undisturbed predictions of a batch, to which the disturbed ones are compared."""

    def __init__(
        self,
        logits: Float[Tensor, "batch seq vocab"],
        tokens: Int[Tensor, "batch seq"],
        counted: Bool[Tensor, "batch seq"],
    ) -> None:
        self.logits = logits
        row, column = counted.nonzero(as_tuple=True)
        self._position = row, column
        self._target = tokens[row, (column + 1).clamp(max=tokens.shape[1] - 1)].long()
        self.context: Int[Tensor, " positions"] = row
        self.ce: Float[Tensor, " positions"] = self.compare(logits).ce

    def compare(self, logits: Float[Tensor, "batch seq vocab"]) -> Losses:
        """Losses of other predictions for the same tokens, in float64."""
        row, column = self._position
        size = max(1, CHUNK_ELEMENTS // logits.shape[-1])
        ce = torch.zeros(len(row), dtype=torch.float64, device=logits.device)
        kl = torch.zeros_like(ce)
        for start in range(0, len(row), size):
            part = slice(start, start + size)
            log_q = _log_softmax(logits[row[part], column[part]])
            ce[part] = -log_q.gather(-1, self._target[part, None]).squeeze(-1).double()
            if logits is self.logits:
                continue
            log_p = _log_softmax(self.logits[row[part], column[part]])
            each = F.kl_div(log_q, log_p, reduction="none", log_target=True)
            # a token the clean model excludes has log_p = -inf and adds nothing
            kl[part] = each.masked_fill(log_p == -torch.inf, 0.0).sum(-1, dtype=torch.float64)
        return Losses(ce, kl)


def _log_softmax(logits: Float[Tensor, "positions vocab"]) -> Float[Tensor, "positions vocab"]:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _replace(where: Tensor, replacement: Tensor, x: Tensor) -> Tensor:
    return torch.where(where, replacement.to(x), x)


class SitePasses:
    """The model run on one batch with the activations of one site replaced."""

    def __init__(
        self,
        model: Model,
        place: Place,
        *,
        tokens: Int[Tensor, "batch seq"],
        mask: Bool[Tensor, "batch seq"],
        keep: Bool[Tensor, "batch seq"],
        captured: Mapping[str, Float[Tensor, "batch seq _"]],
        clean: CleanPass,
    ) -> None:
        """``captured`` holds at least the sites of ``place``."""
        self.clean = clean
        self._model, self._tokens, self._mask = model, tokens, mask
        self._reads = [captured[site] for site in place.reads]
        self._writes = {site: captured[site] for site in place.writes}
        self._where: dict[Positions, Tensor] = {"kept": keep, "all": mask}
        self._memory: dict[Hashable, Losses] = {}

    @property
    def model(self) -> Model:
        """The model that is run."""
        return self._model

    def activations(self, positions: Positions) -> Float[Tensor, "rows d_in"]:
        """Clean activations that the coder reads, at the kept positions or all but padding."""
        where = self._where[positions]
        return torch.cat([values[where] for values in self._reads], -1)

    def replaced(self, rows: Float[Tensor, "rows d_out"], positions: Positions) -> Losses:
        """Losses with ``rows``, one per position, in the place of the activations there."""
        return self.clean.compare(self.logits(rows, positions))

    def logits(
        self, rows: Float[Tensor, "rows d_out"], positions: Positions
    ) -> Float[Tensor, "batch seq vocab"]:
        """What the model predicts with ``rows`` in the place of the activations there."""
        where = self._where[positions]
        widths = [values.shape[-1] for values in self._writes.values()]
        edits = {}
        for (site, values), part in zip(self._writes.items(), rows.split(widths, -1), strict=True):
            replacement = torch.zeros_like(values)
            replacement[where] = part.to(replacement)
            edits[site] = partial(_replace, where.unsqueeze(-1), replacement)
        with self._model.intervene(edits):
            return self._model.logits(self._tokens, mask=self._mask)

    def ablated(self, name: str, vector: Float[Tensor, " d_out"], positions: Positions) -> Losses:
        """Losses with ``vector`` at all those positions; run once for all coders of the site."""
        key = name, positions
        if key not in self._memory:
            rows = vector.expand(int(self._where[positions].sum()), -1)
            self._memory[key] = self.replaced(rows, positions)
        return self._memory[key]
