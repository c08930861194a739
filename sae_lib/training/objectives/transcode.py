"""Reconstruct one place from another: x = c_A x_A, target = c_B x_B at the place "A>B".

Each side has a scale of its own; both are folded when training is over, so the finished coder takes
raw activations of A to raw activations of B.
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
class TranscodeConfig(ObjectiveConfig):
    """Description of the objective of transcoders."""

    takes = "map"

    papers = (Paper("Dunefsky et al. 2024", "https://arxiv.org/abs/2406.11944", "3"),)
    summary = "Reconstruct the activations of another place than is read."

    kind: Literal["transcode"] = "transcode"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    def check(self, sae_cfg: SaeConfig) -> None:
        super().check(sae_cfg)
        if sae_cfg.needs_objective != self.kind:
            raise BadInput(
                f"{sae_cfg.kind} reconstructs what it reads; the variant that maps one place to "
                "another is transcoder.",
                key="kind",
                value=sae_cfg.kind,
            )

    def build(self, *, model: Any = None) -> Objective:
        return Transcode(self)


class Transcode(Objective):
    """From the one site to the other."""

    def step(self, batch: Batch, info: StepInfo) -> Step:
        source, target = ends(info.site)
        shared = batch if isinstance(batch, SharedBatch) else SharedBatch(batch)
        return Step(
            x=shared.scaled(source, info.scales.get(source, 1.0)),
            target=shared.scaled(target, info.scales.get(target, 1.0)),
            dead=info.dead,
            progress=info.progress,
            warmup=info.warmup,
            number=info.number,
        )

    @torch.no_grad()
    def finish_(self, coder: SparseCoder[Any]) -> None:
        source, target = (self.scales.get(site, 1.0) for site in ends(self.site))
        folded: Any = coder  # a transcoder: `check` refuses all others
        folded.scale_(1 / source)
        folded.scale_output_(source / target)


def ends(site: str) -> tuple[str, str]:
    """The site that is read and the one that is reconstructed at the place ``site``."""
    place = Place.parse(site)
    if len(place.reads) != 1 or len(place.writes) != 1:
        raise BadInput("transcode takes one site to one site: FROM>TO.", key="site", value=site)
    return place.reads[0], place.writes[0]
