"""Directions along which to steer toward a concept, each of length 1.

    latent                 decoder row of the latent that best detects the concept
    difference_in_means    mean over the tokens of positive texts - mean over those of negative ones
    random                 Gaussian, the control

The difference is AxBench's: all tokens but special ones, each counting the same, so long texts
count more. The latent is chosen on the same training texts, from each text's largest code.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lib.apply.probes import Labels, column_aucs
from sae_lib.apply.reading import Pooled
from sae_lib.errors import NotApplicable
from sae_lib.saes.base import SparseCoder


class SteeringVector(NamedTuple):
    """A direction, and where it comes from."""

    method: str
    direction: Float[Tensor, " d_in"]
    """Length 1; float32."""

    params: dict[str, Any]
    """What was chosen, for the record: latent, its score on the training texts, ..."""


def difference_in_means(pooled: Pooled, labels: Labels) -> SteeringVector:
    """AxBench DiffMean of texts with ``labels`` 1 and 0."""
    is_positive = torch.from_numpy(labels == 1)
    positive, negative = (
        pooled.x_sum[which].sum(0) / pooled.num_tokens[which].sum()
        for which in (is_positive, ~is_positive)
    )
    direction = positive - negative
    length = float(direction.norm())
    if length == 0:
        raise NotApplicable(
            "difference_in_means", "positive and negative texts have the same mean activation."
        )
    return SteeringVector(
        "difference_in_means", (direction / length).float(), {"difference_norm": length}
    )


def best_latent(
    coder: SparseCoder[Any],
    z_max: Float[Tensor, "texts d_sae"],
    labels: Labels,
    *,
    select_by: Literal["auroc", "mean_difference"],
) -> SteeringVector:
    """The decoder row of the latent that tells the texts apart best, positives being higher.

    Of latents equal in the first respect the one with the larger mean difference is taken, then
    the one with the smaller number.
    """
    codes = z_max.double().numpy()
    difference = codes[labels == 1].mean(0) - codes[labels == 0].mean(0)
    areas = column_aucs(codes, labels)
    order = (difference,) if select_by == "mean_difference" else (difference, areas)
    latent = int(np.lexsort((-np.arange(len(difference)), *order))[-1])
    if difference[latent] <= 0:
        raise NotApplicable("latent", "no latent is stronger on the positive texts.")
    row = coder.W_dec.detach()[latent].float().cpu()
    if not float(row.norm()):
        raise NotApplicable("latent", f"the decoder row of latent {latent} is zero.")
    return SteeringVector(
        "latent",
        row / row.norm(),
        {
            "latent": latent,
            "select_by": select_by,
            "train_auroc": float(areas[latent]),
            "max_activation": float(codes[:, latent].max()),
            "decoder_norm": float(row.norm()),
        },
    )


def random_direction(width: int, *, seed: int) -> SteeringVector:
    """A direction that has nothing to do with the concept."""
    direction = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return SteeringVector("random", direction / direction.norm(), {"direction_seed": seed})
