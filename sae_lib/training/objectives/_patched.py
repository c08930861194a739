"""The model run on from reconstructions, with gradients, for objectives that look behind the site.

Only kept positions are replaced: BOS and padding keep what is there, as in the metric
`loss_recovered`.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lib.activations.contexts import ContextBatch
from sae_lib.errors import BadInput
from sae_lib.training.objectives.base import Batch, SharedBatch


@runtime_checkable
class Patchable(Protocol):
    """The part of `LanguageModel` that such objectives use."""

    model: Any

    def sites(self) -> list[str]: ...

    def intervene(self, edits: Any) -> AbstractContextManager[None]: ...

    def capture_and_logits(
        self, tokens: Tensor, sites: Sequence[str], mask: Tensor | None = None, *, with_grad: bool
    ) -> tuple[dict[str, Tensor], Tensor]: ...


def frozen(model: Any) -> Patchable:
    """``model``, whose weights will get no gradients."""
    if model is None:
        raise BadInput("this objective runs the language model, and none was given.", key="model")
    model.model.requires_grad_(False)
    return model


def whole_contexts(batch: Batch) -> ContextBatch:
    """The contexts behind a batch; raises `BadInput` where it is rows from everywhere."""
    found = batch.source if isinstance(batch, SharedBatch) else batch
    if not isinstance(found, ContextBatch):
        raise BadInput("this objective needs batches of whole contexts (`ContextBatches`).")
    return found


def run_on(
    model: Patchable,
    batch: ContextBatch,
    site: str,
    rows: Float[Tensor, "rows d_in"],
    later: Sequence[str] = (),
) -> tuple[dict[str, Float[Tensor, "rows _"]], Float[Tensor, "rows vocab"]]:
    """Activations at ``later`` sites and float32 logits at the kept positions, with ``rows`` there.

    ``rows`` are raw activations, one for each kept position, and carry gradients.
    """

    def replace(x: Tensor) -> Tensor:
        return x.masked_scatter(batch.keep.unsqueeze(-1), rows.to(x.dtype))

    with model.intervene({site: replace}):
        captured, logits = model.capture_and_logits(
            batch.tokens, list(later), batch.mask, with_grad=torch.is_grad_enabled()
        )
    found = {name: captured[name][batch.keep].float() for name in later}
    return found, logits[batch.keep].float()
