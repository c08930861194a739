"""A model whose places of several sites are read like sites."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lib.errors import NotApplicable
from sae_lib.models.language_model import Edit, LanguageModel
from sae_lib.models.places import Place


class PlacedModel(LanguageModel):
    """``model``, asked for places: what a place reads comes side by side, as one activation.

    It shares everything with ``model``, which goes on being used.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.__dict__.update(vars(model))
        self._whole = model

    def width(self, site: str) -> int:
        """Numbers per token that are read at a place."""
        return sum(self._whole.width(one) for one in Place.parse(site).reads)

    def capture(
        self,
        tokens: Int[Tensor, "batch seq"],
        sites: Sequence[str],
        *,
        mask: Bool[Tensor, "batch seq"] | Int[Tensor, "batch seq"] | None = None,
        with_grad: bool = False,
    ) -> dict[str, Float[Tensor, "batch seq _"]]:
        """What each place reads, from one forward pass; see `LanguageModel.capture`."""
        reads = {place: Place.parse(place).reads for place in sites}
        single = list(dict.fromkeys(site for names in reads.values() for site in names))
        found = self._whole.capture(tokens, single, mask=mask, with_grad=with_grad)
        return {
            place: torch.cat([found[site] for site in names], -1) for place, names in reads.items()
        }

    @contextmanager
    def intervene(self, edits: Mapping[str, Edit]) -> Iterator[None]:
        """As the model's; raises `NotApplicable` for a place of several sites."""
        for place in edits:
            if not Place.parse(place).is_single:
                raise NotApplicable(
                    "an intervention",
                    f"{place} is no single site, whose activations could be replaced.",
                )
        with self._whole.intervene(edits):
            yield

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """See `LanguageModel.reserved`."""
        with self._whole.reserved():
            yield


def placed(model: Any, place: str) -> Any:
    """``model`` itself for a single site, or one that reads the place."""
    return model if Place.parse(place).is_single else PlacedModel(model)
