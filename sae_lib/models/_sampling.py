"""The next token of each row from its logits and one number in [0, 1) drawn beforehand.

    token = first t with  P(t_1) + ... + P(t) > u,   P = softmax(logits / temperature)

Drawing the numbers beforehand, one per row and step, makes samples **paired**: two runs with one
seed differ only where their probabilities do. It also makes them independent of device and of
what the other rows hold. For top-p the tokens are taken from the most probable on, and P is cut
to the smallest set of tokens whose probability reaches ``top_p`` (Holtzman et al. 2020).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lib.errors import BadInput


def check_sampling(max_new_tokens: int, temperature: float, top_p: float) -> None:
    """Raise BadInput for a number that is out of range."""
    if max_new_tokens < 1:
        raise BadInput("At least one.", key="max_new_tokens", value=max_new_tokens)
    if not 0 < temperature < float("inf"):
        raise BadInput(
            "A positive number was expected; for the most probable token, greedy=True.",
            key="temperature",
            value=temperature,
        )
    if not 0 < top_p <= 1:
        raise BadInput("A share above 0, up to 1.", key="top_p", value=top_p)


def next_token(
    logits: Float[Tensor, "batch vocab"],
    u: Float[Tensor, " batch"],
    *,
    temperature: float,
    top_p: float,
) -> Int[Tensor, " batch"]:
    """A token id per row; ``temperature`` > 0, ``top_p`` in (0, 1], ``u`` in [0, 1)."""
    share = torch.softmax(logits.double() / temperature, dim=-1)
    order = None
    if top_p < 1:
        share, order = share.sort(dim=-1, descending=True, stable=True)
        share = share * (share.cumsum(-1) - share < top_p)
    reached = share.cumsum(-1)
    # u < 1 keeps the target below the end in float64, so a token with a share is always found
    place = torch.searchsorted(reached, (u.double() * reached[:, -1]).unsqueeze(-1), right=True)
    return (place if order is None else order.gather(-1, place)).squeeze(-1)
