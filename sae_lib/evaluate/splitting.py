"""Feature splitting: what becomes of a narrow coder's latents in a wider one?

For a latent i of the narrow coder let n_i be the number of latents of the wide one with
cos(W_dec_i, V_dec_j) >= tau (0.7):

    lost   share of latents with n_i = 0
    kept   share with n_i = 1
    split  share with n_i >= 2
    novel  share of the wide coder's latents whose largest cosine with a narrow one is below tau

Coders are compared that are of one kind with equal dials (k, target_l0, ...) and equal names but
for their width and seed, each with those of the next larger width. A value is the mean over these;
the standard error is over them where there are two or more, else over latents.

Sources: Bricken et al. 2023, Templeton et al. 2024, He et al. 2024; evaluation.md, section 13.
Differs from them: shares instead of inspected examples. A split latent is one that several wide
latents point along; siblings that each went further than acos(tau) count as lost and novel.
"""

from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sae_lib.evaluate._moments import Estimate
from sae_lib.evaluate.base import Definition, GridMetric, register
from sae_lib.evaluate.stability import CHUNK_ELEMENTS, decoder_rows, over_partners
from sae_lib.papers import Paper
from sae_lib.saes.base import SparseCoder
from sae_lib.warehouse.rows import Measurement

_TEXTS = {
    "lost": "share of latents that no latent of the next wider coder points along",
    "kept": "share of latents that exactly one latent of the next wider coder points along",
    "split": "share of latents that two or more latents of the next wider coder point along",
    "novel": "share of latents that point along none of the next narrower coder",
}
SHARES = {
    fate: Definition(
        f"splitting_{fate}", "mean_of_pairs", f"{text}; mean over such coders", "neither", 0.0, 1.0
    )
    for fate, text in _TEXTS.items()
}
OF_ONE = {
    fate: SHARES[fate]._replace(definition="pair_of_one", text=f"{text}; one coder", role="part")
    for fate, text in _TEXTS.items()
}


class Fates(NamedTuple):
    """What the narrow latents become, and how near the wide ones are to a narrow one."""

    heirs: Int[np.ndarray, " narrow"]
    """Number of wide latents that point along each narrow one."""

    nearest: Float[np.ndarray, " wide"]
    """For each wide latent the largest cosine with a narrow one."""

    def shares(self, tau: float) -> dict[str, np.ndarray]:
        """By fate, for each latent concerned, whether it is its own."""
        return {
            "lost": self.heirs == 0,
            "kept": self.heirs == 1,
            "split": self.heirs >= 2,
            "novel": self.nearest < tau,
        }


def fates(
    narrow: Float[Tensor, "narrow d"], wide: Float[Tensor, "wide d"], tau: float = 0.7
) -> Fates:
    """Compare directions; a row of zeros points along nothing."""
    a, b = (F.normalize(rows.detach().float().cpu(), dim=1, eps=1e-12) for rows in (narrow, wide))
    heirs, nearest = [], torch.full((len(b),), -1.0)
    for part in a.split(max(1, CHUNK_ELEMENTS // len(b))):
        cosine = part @ b.mT
        heirs.append((cosine >= tau).sum(1))
        nearest = torch.maximum(nearest, cosine.amax(0))
    return Fates(torch.cat(heirs).numpy(), nearest.double().numpy())


@register
class SplittingConfig(GridMetric):
    """From which cosine on a latent points along another."""

    papers = (
        Paper("Bricken et al. 2023", "https://transformer-circuits.pub/2023/monosemantic-features",
              "feature splitting"),
        Paper("He et al. 2024", "https://arxiv.org/abs/2410.20526", "geometry across widths"),
    )  # fmt: skip
    summary = "What becomes of a narrow coder's latents in a wider one?"
    survey = ("Feature Geometry Analysis",)

    name: Literal["splitting"] = "splitting"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    threshold: float = Field(default=0.7, gt=0, lt=1)
    """Cosine from which on a wide latent points along a narrow one."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        return [*SHARES.values(), *OF_ONE.values()]

    def compare(
        self, coders: Mapping[str, SparseCoder[Any]], families: Mapping[str, str]
    ) -> dict[str, list[Measurement]]:
        wider = next_wider(coders, families)
        pairs: dict[str, dict[str, dict[str, dict[str, np.ndarray]]]] = {
            "wider": defaultdict(dict),
            "narrower": defaultdict(dict),
        }
        for name, others in wider.items():
            for other in others:
                found = fates(
                    decoder_rows(coders[name]), decoder_rows(coders[other]), self.threshold
                ).shares(self.threshold)
                pairs["wider"][name][other] = found
                pairs["narrower"][other][name] = found
        rows = {}
        for name in coders:
            own = []
            for fate, row in SHARES.items():
                side = "narrower" if fate == "novel" else "wider"
                found = pairs[side].get(name, {})
                own.append(row.row(_over(found, fate, side), threshold=self.threshold))
            for fate, row in OF_ONE.items():
                side = "narrower" if fate == "novel" else "wider"
                for other, shares in sorted(pairs[side].get(name, {}).items()):
                    params = {side: other, "d_sae": coders[other].d_sae}
                    one = over_partners([shares[fate]])
                    own.append(row.row(one, threshold=self.threshold, **params))
            rows[name] = own
        return rows


def next_wider(
    coders: Mapping[str, SparseCoder[Any]], families: Mapping[str, str]
) -> dict[str, list[str]]:
    """By name of the coder, those of the next larger width that are otherwise described alike."""
    groups: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for name, coder in coders.items():
        dials = tuple(getattr(coder.cfg, dial) for dial in _dials(coder))
        # variants' ids have their width as w512: without it, coders of one line agree
        line = families[name].replace(f"w{coder.d_sae}", "w")
        written = decoder_rows(coder).shape[1]
        groups[coder.cfg.kind, dials, line, written].append(name)
    found: dict[str, list[str]] = {name: [] for name in coders}
    for members in groups.values():
        widths = sorted({coders[name].d_sae for name in members})
        for narrow, wide in pairwise(widths):
            for name in members:
                if coders[name].d_sae == narrow:
                    found[name] = [other for other in members if coders[other].d_sae == wide]
    return found


def _dials(coder: SparseCoder[Any]) -> tuple[str, ...]:
    return type(coder.cfg).dials


def _over(found: Mapping[str, dict[str, np.ndarray]], fate: str, side: str) -> Estimate:
    if not found:
        return Estimate(None, reason=f"there is no {side} coder that is otherwise alike")
    return over_partners([shares[fate] for shares in found.values()])
