"""TopK by several processes: see `sae_lib/saes/topk.py` for the loss."""

from sae_lib.saes.base import Step, Terms
from sae_lib.saes.topk import TopK
from sae_lib.training.distributed.rules._parts import (
    aux,
    parameters,
    share_of,
    squared_error,
    top_k,
)
from sae_lib.training.distributed.rules.base import rule
from sae_lib.training.distributed.split import Split


@rule("topk", by_latent=("W_enc", "W_dec", "b_enc"))
def terms(coder: TopK, step: Step, split: Split) -> Terms:
    """The k largest of a token are chosen among everybody's k largest."""
    cfg, encoder, W_dec = coder.cfg, parameters(coder, split), coder.W_dec
    x, target = split.rows(step.x), split.rows(step.target)
    code = top_k(x, encoder, cfg.k, split)
    error = target - split.over_latents(code.times(W_dec)) - coder.b_dec
    extra = {}
    if cfg.aux_weight:
        share = aux(error, x, step.dead, encoder, W_dec, cfg.aux_k, split)
        extra["aux"] = cfg.aux_weight * coder.x_variance * share
    if cfg.multi_weight:
        more = top_k(x, encoder, min(cfg.multi_multiple * cfg.k, cfg.d_sae), split)
        error_of_more = target - split.over_latents(more.times(W_dec)) - coder.b_dec
        extra["multi"] = cfg.multi_weight * squared_error(error_of_more, split)
    return Terms(share_of(code, split), error, squared_error(error, split), extra)
