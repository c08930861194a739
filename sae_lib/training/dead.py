"""Dead latents: those that have not fired for a number of tokens (not of steps)."""

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


@torch.no_grad()
def advance_(
    silent_for: Int64[Tensor, " d_sae"], has_fired: Bool[Tensor, " d_sae"], num_tokens: int
) -> None:
    """Count ``num_tokens`` more tokens of silence; latents that fired start again at 0."""
    silent_for.add_(num_tokens).masked_fill_(has_fired, 0)
