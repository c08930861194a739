"""A model whose places of several sites are read like sites."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lib.errors import NotApplicable
from sae_lib.models.places import Place


class PlacedModel:
    """``model``, asked for places: what a place reads comes side by side, as one activation.

    Everything but reading and intervening is the model's own.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def width(self, place: str) -> int:
        """Numbers per token that are read at ``place``."""
        return sum(self.model.width(site) for site in Place.parse(place).reads)

    def capture(
        self, tokens: Tensor, places: Sequence[str], **options: Any
    ) -> dict[str, Float[Tensor, "batch seq _"]]:
        """What each of ``places`` reads, from one forward pass; see `LanguageModel.capture`."""
        reads = {place: Place.parse(place).reads for place in places}
        sites = list(dict.fromkeys(site for names in reads.values() for site in names))
        found = self.model.capture(tokens, sites, **options)
        return {
            place: torch.cat([found[site] for site in names], -1) for place, names in reads.items()
        }

    def intervene(self, edits: Mapping[str, Any]) -> AbstractContextManager[None]:
        """As the model's; raises `NotApplicable` for a place of several sites."""
        for place in edits:
            if not Place.parse(place).is_single:
                raise NotApplicable(
                    "an intervention",
                    f"{place} is no single site, whose activations could be replaced.",
                )
        return self.model.intervene(edits)
