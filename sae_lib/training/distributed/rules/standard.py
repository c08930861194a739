"""Standard by several processes: see `sae_lib/saes/standard.py` for the loss."""

import torch

from sae_lib.saes._codes import Code
from sae_lib.saes._ops import latents_of
from sae_lib.saes.base import Step, Terms
from sae_lib.saes.standard import Standard
from sae_lib.training.distributed.collectives import all_sum_
from sae_lib.training.distributed.rules._parts import share_of, squared_error
from sae_lib.training.distributed.rules.base import rule
from sae_lib.training.distributed.split import Split


@rule("standard", by_latent=("W_enc", "W_dec", "b_enc"))
def terms(coder: Standard, step: Step, split: Split) -> Terms:
    """The penalty is a sum over tokens and latents; its coefficient follows everybody's L0."""
    x, target = split.rows(step.x), split.rows(step.target)
    centre = split.common(coder.b_dec) if coder.has_unit_rows else None
    z = latents_of(x, coder.W_enc, coder.b_enc, centre)
    num_on = all_sum_((z.detach() > 0).sum())
    coder.control.steer_(num_on.to(z.dtype) / len(step.x), step.warmup)
    error = target - split.over_latents(z @ coder.W_dec) - coder.b_dec
    weights = torch.ones_like(coder.b_enc) if coder.has_unit_rows else coder.W_dec.norm(dim=-1)
    penalty = split.over_all(z.sum(0) @ weights) / len(step.x)
    coefficient = step.warmup * coder.control.coefficient
    return Terms(
        share_of(Code(z), split),
        error,
        squared_error(error, split),
        {"l1": coefficient.clone() * penalty},
    )
