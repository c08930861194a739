"""BatchTopK by several processes: see `sae_lib/saes/batch_topk.py` for the loss."""

from sae_lib.saes.base import Step, Terms
from sae_lib.saes.batch_topk import BatchTopK
from sae_lib.training.distributed.rules._parts import (
    aux,
    parameters,
    share_of,
    squared_error,
    top_of_batch,
)
from sae_lib.training.distributed.rules.base import rule
from sae_lib.training.distributed.split import Split


@rule("batch_topk", by_latent=("W_enc", "W_dec", "b_enc"))
def terms(coder: BatchTopK, step: Step, split: Split) -> Terms:
    """The budget is one for the whole batch, so the threshold is that of one process."""
    cfg, encoder, W_dec = coder.cfg, parameters(coder, split), coder.W_dec
    x, target = split.rows(step.x), split.rows(step.target)
    budget = cfg.k * len(step.x)
    code, kept = top_of_batch(x, encoder, budget, split)
    coder.observe_threshold_(kept, budget)
    error = target - split.over_latents(code.times(W_dec)) - coder.b_dec
    extra = {}
    if cfg.aux_weight:
        share = aux(error, x, step.dead, encoder, W_dec, cfg.aux_k, split)
        extra["aux"] = cfg.aux_weight * coder.x_variance * share
    return Terms(share_of(code, split), error, squared_error(error, split), extra)
