"""Numbers of an SAE that claims are about, and where the results database has them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple


class Quantity(NamedTuple):
    """One number per SAE, as the results database holds it."""

    name: str
    text: str
    """What it is, in words that fit into a sentence."""

    source: Literal["metrics", "applications", "saes"]
    """The table; of ``saes`` the numbers are listed in `sae_lib.claims.cells`."""

    measured: str = ""
    """Column ``name`` of the row; of several definitions the first that was measured counts."""

    definitions: tuple[str, ...] = ()
    application: str = ""
    task: str = ""
    params: Mapping[str, float] = MappingProxyType({})
    """Settings that the row must have."""


L0 = Quantity("l0", "L0", "metrics", "l0", ("mean_of_tokens",))
FVU = Quantity("fvu", "unexplained variance", "metrics", "fvu", ("ratio_of_sums",))
LOSS_RECOVERED = Quantity(
    "loss_recovered",
    "loss recovered",
    "metrics",
    "loss_recovered",
    ("zero_ablation_kept", "zero_ablation_all"),
)
DELTA_LOSS = Quantity(
    "delta_lm_loss",
    "loss added to the model's",
    "metrics",
    "delta_lm_loss",
    ("splice_kept", "splice_all"),
)
GAMMA = Quantity(
    "gamma",
    "relative reconstruction bias",
    "metrics",
    "relative_reconstruction_bias",
    ("ratio_of_sums",),
)
DEAD = Quantity("dead_share", "share of dead latents", "metrics", "dead_share", ("never_fired",))
ALIVE = Quantity(
    "alive_share", "share of latents that ever fire", "metrics", "alive_share", ("fired_once",)
)
CAUSAL = Quantity(
    "causal_linearity",
    "distance of the logits from where moved latents should bring them",
    "metrics",
    "causal_linearity",
    ("half_way_to_nearest",),
)
CPU_PER_LAYER = Quantity("cpu_seconds_per_layer", "CPU-seconds of training per layer", "saes")
FLOPS_PER_LAYER = Quantity("flops_per_layer", "operations of training per layer", "saes")
FLOPS_PER_TOKEN = Quantity("flops_per_token", "operations per training token", "saes")
ABSORPTION = Quantity(
    "absorption",
    "share of first letters that other latents write",
    "metrics",
    "absorption_fraction",
    ("v0_6",),
)
FULL_ABSORPTION = ABSORPTION._replace(
    name="full_absorption",
    text="share of words whose letter another latent took over",
    measured="full_absorption",
)
LETTER_F1 = Quantity(
    "letter_f1", "F1 of a first letter's best latent", "metrics", "absorption_f1", ("k1",)
)
COVERAGE_F1 = 0.7
"""F1 from which a concept counts as recovered."""

COVERAGE = Quantity(
    "concept_coverage",
    "share of true concepts recovered",
    "applications",
    "coverage",
    ("one_to_one",),
    "concepts",
    "all",
    MappingProxyType({"f1": COVERAGE_F1}),
)
RARE_COVERAGE = COVERAGE._replace(
    name="rare_concept_coverage",
    text="share of the concepts true of 0.01 to 0.1 % of tokens that are recovered",
    task="frequency:0.0001-0.001",
)

QUANTITIES = {
    one.name: one
    for one in (
        L0,
        FVU,
        LOSS_RECOVERED,
        DELTA_LOSS,
        GAMMA,
        DEAD,
        ALIVE,
        CAUSAL,
        CPU_PER_LAYER,
        FLOPS_PER_LAYER,
        FLOPS_PER_TOKEN,
        COVERAGE,
        RARE_COVERAGE,
        ABSORPTION,
        FULL_ABSORPTION,
        LETTER_F1,
    )
}
