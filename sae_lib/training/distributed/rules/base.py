"""What a variant needs so that several processes can train one SAE, and who has it."""

from collections.abc import Callable
from typing import NamedTuple

from sae_lib.errors import BadInput
from sae_lib.registry import Registry
from sae_lib.saes.base import SaeConfig
from sae_lib.training.config import TrainConfig
from sae_lib.training.distributed.split import SplitTerms
from sae_lib.training.objectives.base import Objective, ObjectiveConfig


class Rule(NamedTuple):
    """How one variant is trained by several processes."""

    terms: SplitTerms
    """The same loss as the coder's ``terms`` on the whole batch, each process computing with its
    rows or its latents; every term comes out whole everywhere."""

    by_latent: tuple[str, ...]
    """Parameters that have a row for each latent."""


RULES: Registry[Rule] = Registry("rule for several devices")


def rule(kind: str, by_latent: tuple[str, ...]) -> Callable[[SplitTerms], SplitTerms]:
    """Decorator: this function splits the loss of the variant ``kind``."""

    def add(terms: SplitTerms) -> SplitTerms:
        RULES.add(kind, Rule(terms, by_latent))
        return terms

    return add


def check_split(train: TrainConfig, sae: SaeConfig, objective: ObjectiveConfig) -> None:
    """Refuse, by `BadInput`, what several devices would train otherwise than one does."""
    devices = train.devices
    if devices.count == 1:
        return
    if sae.kind not in RULES:
        raise BadInput(
            f"nobody has said how the loss of {sae.kind!r} is split among devices without "
            f"changing it. Train it on one, or one of: {', '.join(RULES)}.",
            key="devices",
            value=devices.count,
        )
    if train.resample is not None or getattr(sae, "revive", "none") != "none":
        what = "resample" if train.resample is not None else "revive"
        raise BadInput(
            f"{what}: nobody has said how dead latents are revived by several devices together. "
            "Train on one, or leave it out.",
            key="devices",
            value=devices.count,
        )
    adds = objective.needs_model or type(objective.build()).terms is not Objective.terms
    if adds:
        raise BadInput(
            f"the objective {objective.kind!r} changes the loss, and nobody has said how that is "
            "split among devices. Train on one, or with the plain objective.",
            key="devices",
            value=devices.count,
        )
    if devices.split == "latents" and sae.d_sae % devices.count:
        raise BadInput(
            f"d_sae={sae.d_sae} latents do not split evenly among {devices.count} devices; "
            f"make it a multiple, such as {_next_multiple(sae.d_sae, devices.count)}.",
            key="devices",
            value=devices.count,
        )


def _next_multiple(number: int, of: int) -> int:
    return -(-number // of) * of
