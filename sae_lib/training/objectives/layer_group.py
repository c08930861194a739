"""Layer Group SAE: one coder for several neighbouring layers, at the cost of one.

At a place "A+B+C", for every token of a step one of the sites is drawn, each with the same chance,
and the coder gets that site's activation times that site's own scale; it is not told which. Draws
depend on nothing but the objective's seed and the number of the step. Which layers make a group is
for `sae_lib.activations.layer_groups` to say, or for the experiment.

Differs from the source: there the scale of a site makes its mean norm 1; here it is that of every
other training, unit mean square norm, which differs by a factor near 1 (sqrt(E|x|^2) / E|x|).
The scales are not folded at the end, since each site has its own: the result is a coder of scaled
activations, and `coder_for_site` gives that of the raw ones of one site.
"""

import copy
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Int64
from pydantic import Field, field_validator
from torch import Tensor

from sae_lib.errors import BadInput
from sae_lib.models.places import Place
from sae_lib.papers import Paper
from sae_lib.saes.base import SparseCoder, Step
from sae_lib.training.objectives.base import (
    Batch,
    Objective,
    ObjectiveConfig,
    SharedBatch,
    StepInfo,
    register,
)

MEMBER_TAG = 3
"""Keeps these draws apart from those of the order of the data, which have tags 1 and 2."""

AnyCoder = TypeVar("AnyCoder", bound=SparseCoder[Any])


@register
class LayerGroupConfig(ObjectiveConfig):
    """Description of the training of groups of layers."""

    papers = (Paper("Ghilardi et al. 2024", "https://arxiv.org/abs/2410.21508", "3"),)
    summary = "One SAE per group of similar layers: each token comes from one layer, at random."

    kind: Literal["layer_group"] = "layer_group"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    groups: int | tuple[tuple[str, ...], ...] = 1
    """How the sites are grouped: a number G of groups, which clustering by angular distance finds
    (1: all sites share one SAE; as many as sites: one SAE each), or the groups themselves."""

    seed: int = Field(default=0, ge=0)
    """Seed of the draws of sites."""

    @field_validator("groups")
    @classmethod
    def _are_groups(
        cls, groups: int | tuple[tuple[str, ...], ...]
    ) -> int | tuple[tuple[str, ...], ...]:
        if isinstance(groups, int):
            if groups < 1:
                raise ValueError(f"the number of groups must be at least 1; got {groups}")
        else:
            sites = [site for group in groups for site in group]
            if not groups or not all(groups):
                raise ValueError("every group needs at least one site")
            twice = sorted({site for site in sites if sites.count(site) > 1})
            if twice:
                raise ValueError(f"a site belongs to one group only; twice: {', '.join(twice)}")
        return groups

    def check_places(self, places: Sequence[str], d_model: int) -> None:
        if isinstance(self.groups, int):
            if self.groups > len(places):
                raise BadInput(
                    f"{len(places)} sites make at most {len(places)} groups.", value=self.groups
                )
            return
        named = {site for group in self.groups for site in group}
        if named != set(places):
            other = sorted(named ^ set(places))
            raise BadInput(
                f"the groups must hold exactly the sites it is trained at, {', '.join(places)}; "
                "they differ in the value below.",
                value=other,
            )

    def build(self, *, model: Any = None) -> Objective:
        return LayerGroup(self)


class LayerGroup(Objective):
    """Each token from one of the sites."""

    cfg: LayerGroupConfig

    def step(self, batch: Batch, info: StepInfo) -> Step:
        """``x`` is (batch, width): of each token the scaled activation at the site drawn for it.

        Raises:
            BadInput: the place maps one place to another, its sites differ in width, or a site has
                no scale.
        """
        shared = batch if isinstance(batch, SharedBatch) else SharedBatch(batch)
        sites = members(info.site)
        if len(sites) == 1:
            return super().step(shared, info)
        check_members(sites, {site: shared.x[site].shape[1] for site in sites})
        missing = [site for site in sites if site not in info.scales]
        if missing:
            raise BadInput("a site of the group has no scale.", key="scales", value=missing[0])
        first = shared.x[sites[0]]
        drawn = drawn_members(len(sites), len(first), seed=self.cfg.seed, number=info.number)
        x = torch.empty_like(first)
        for member, site in enumerate(sites):
            rows = (drawn == member).nonzero().squeeze(1).to(first.device)
            x[rows] = shared.x[site][rows] * info.scales[site]
        return Step(
            x=x,
            target=x,
            dead=info.dead,
            progress=info.progress,
            warmup=info.warmup,
            number=info.number,
        )


def members(place: str) -> tuple[str, ...]:
    """The sites of a group's place. Raises `BadInput` where it maps one place to another."""
    parsed = Place.parse(place)
    if parsed.is_map:
        raise BadInput(
            "layer_group reconstructs the site it reads; name the sites of a group as A+B+C.",
            key="sites",
            value=place,
        )
    return parsed.reads


def check_members(sites: tuple[str, ...], widths: dict[str, int]) -> None:
    """Raise `BadInput` unless all sites of a group have one width."""
    if len({widths[site] for site in sites}) > 1:
        told = ", ".join(f"{site} {widths[site]}" for site in sites)
        raise BadInput(
            f"the sites of a layer group must have the same width; they have {told}.", key="sites"
        )


def drawn_members(
    num_members: int, batch: int, *, seed: int, number: int
) -> Int64[Tensor, " batch"]:
    """Which member each token of step ``number`` comes from, on the CPU."""
    generator = np.random.default_rng([MEMBER_TAG, seed, number])
    return torch.from_numpy(generator.integers(num_members, size=batch))


@torch.no_grad()
def coder_for_site(coder: AnyCoder, scale: float) -> AnyCoder:
    """A copy of a group's coder for the raw activations of the site of this scale.

    Exact: encoding ``scale`` times x with the group's coder and dividing what it decodes by
    ``scale`` is the same reconstruction, and latents are those divided by ``scale``.
    """
    mine = copy.deepcopy(coder)
    mine.scale_(1 / scale)
    return mine
