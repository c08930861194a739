"""On how many devices SAEs are trained, and what is split among them."""

from typing import Any, Literal

from pydantic import Field

from sae_lib.config import Config


class DevicesConfig(Config):
    """Processes that train an SAE together, each on a device of its own."""

    count: int = Field(default=1, gt=0)
    """Devices of this machine: GPUs where the run is on ``cuda``, processes where it is on ``cpu``.
    One device trains all SAEs of a site together."""

    split: Literal["batch", "latents"] = "batch"
    """What is divided: ``batch``, the tokens of every step (each device holds the whole SAE), or
    ``latents``, the SAE itself (each holds a share of its rows and of the optimiser's memory)."""

    timeout_seconds: float = Field(default=600.0, gt=0)
    """How long devices wait for one that has stopped answering before they give up."""


def by_count(said: Any) -> Any:
    """A plain number is that many devices."""
    return {"count": said} if isinstance(said, int) and not isinstance(said, bool) else said
