"""Reconstruct several sites together: x = [c_A x_A; c_B x_B; ...] at the place "A+B+...".

Each site has a scale of its own, or the loss would favour the loudest and the penalty the softest;
all are folded when training is over, so the finished coder takes raw activations, concatenated.
"""

from typing import Any, Literal

import torch

from sae_lib.errors import BadInput
from sae_lib.models.places import Place
from sae_lib.papers import Paper
from sae_lib.saes.base import SaeConfig, SparseCoder, Step
from sae_lib.training.objectives.base import (
    Batch,
    Objective,
    ObjectiveConfig,
    SharedBatch,
    StepInfo,
    register,
)


@register
class CrosscodeConfig(ObjectiveConfig):
    """Description of the objective of crosscoders."""

    takes = "several"

    papers = (
        Paper(
            "Lindsey et al. 2024",
            "https://transformer-circuits.pub/2024/crosscoders/index.html",
            "Motivations and Setup",
        ),
    )
    summary = "Reconstruct the activations of several sites from one set of latents."

    kind: Literal["crosscode"] = "crosscode"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    def check(self, sae_cfg: SaeConfig) -> None:
        super().check(sae_cfg)
        if sae_cfg.needs_objective != self.kind:
            raise BadInput(
                f"{sae_cfg.kind} knows nothing of several sources; the variant that does is "
                "crosscoder.",
                key="kind",
                value=sae_cfg.kind,
            )

    def build(self, *, model: Any = None) -> Objective:
        return Crosscode(self)


class Crosscode(Objective):
    """All sites of a place, one after the other."""

    def join(self, coder: SparseCoder[Any]) -> None:
        num = len(sources(self.site))
        if coder.cfg.num_sources != num:
            raise BadInput(
                f"the coder has {coder.cfg.num_sources} sources, and {self.site} names {num} "
                "sites.",
                key="num_sources",
                value=coder.cfg.num_sources,
            )

    def step(self, batch: Batch, info: StepInfo) -> Step:
        shared = batch if isinstance(batch, SharedBatch) else SharedBatch(batch)
        sites = sources(info.site)
        x = torch.cat([shared.scaled(site, info.scales.get(site, 1.0)) for site in sites], dim=-1)
        return Step(
            x=x,
            target=x,
            dead=info.dead,
            progress=info.progress,
            warmup=info.warmup,
            number=info.number,
        )

    @torch.no_grad()
    def finish_(self, coder: SparseCoder[Any]) -> None:
        sites = sources(self.site)
        folded: Any = coder  # a crosscoder: `check` refuses all others
        folded.scale_sources_([1 / self.scales.get(site, 1.0) for site in sites])


def sources(site: str) -> tuple[str, ...]:
    """The sites of the place ``site``."""
    place = Place.parse(site)
    if place.is_map:
        raise BadInput("crosscode reconstructs what it reads: A+B.", key="site", value=site)
    return place.reads
