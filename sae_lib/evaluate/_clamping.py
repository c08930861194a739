"""One latent held at one value at every position, as strongly as a KL divergence says.

    x' = x + (value - z_j) W_dec,j          error and other latents are kept
    KL = mean over prompts and positions of KL(steered || unsteered), in nats

Values are whole multiples of a step. The search halves the range, which finds the target where KL
grows with the value; where it does not, a grid of values is tried.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lib.apply.interventions import at_positions, set_latent
from sae_lib.apply.reading import encode_texts
from sae_lib.models.language_model import Edit, LanguageModel
from sae_lib.saes.base import SparseCoder

_GRID = 24


def find_strength(
    kl: Callable[[int], float], target: float, *, tolerance: float, largest: int = 1000
) -> int | None:
    """A whole number from 1 to ``largest`` with ``target`` <= KL <= ``target + tolerance``.

    None where neither halving nor a grid in equal ratios finds one.
    """
    low, high = 1, largest
    while low <= high:
        middle = (low + high) // 2
        found = kl(middle)
        if target <= found <= target + tolerance:
            return middle
        if found < target:
            low = middle + 1
        else:
            high = middle - 1
    tried = sorted({round(largest ** (i / (_GRID - 1))) for i in range(_GRID)})
    return next((k for k in tried if target <= kl(k) <= target + tolerance), None)


class Steered(NamedTuple):
    """What holding a latent at a value did."""

    value: float
    kl: float
    texts: list[str]
    """Continuations of the prompts, without the prompts."""

    rise: Float[Tensor, " vocab"]
    """Mean rise of each token's logit over the prompts' positions."""


class Clamp:
    """Prompts, and the model's answers to them while nothing is changed."""

    def __init__(self, model: LanguageModel, site: str, prompts: list[str]) -> None:
        self.model, self.site = model, site
        room = model.info.max_context
        self.batch = encode_texts(model, prompts, max_tokens=room, padding_side="left")
        self.plain = self._logits({})

    def edits(self, coder: SparseCoder[Any], latent: int, value: float) -> dict[str, Edit]:
        """Hold ``latent`` at ``value`` at every position; good for one run over the prompts."""
        return {
            self.site: at_positions(
                lambda x: set_latent(x, coder, latent, value),
                "all",
                mask=self.batch.mask,
                keep=self.batch.keep,
            )
        }

    def kl(self, coder: SparseCoder[Any], latent: int, value: float) -> float:
        """Mean divergence of the next token's distribution."""
        steered = self._logits(self.edits(coder, latent, value)).log_softmax(-1)
        kl = (steered.exp() * (steered - self.plain.log_softmax(-1))).sum(-1)
        return float(kl.mean())

    def steer(
        self,
        coder: SparseCoder[Any],
        latent: int,
        *,
        target: float,
        tolerance: float,
        step: float,
        max_new_tokens: int,
        temperature: float,
        seed: int,
    ) -> Steered | None:
        """The latent held as strongly as ``target`` says; below 0 at negative values.

        None where no value reaches the target.
        """
        sign = -1.0 if target < 0 else 1.0
        k = find_strength(
            lambda k: self.kl(coder, latent, sign * k * step), abs(target), tolerance=tolerance
        )
        if k is None:
            return None
        value = sign * k * step
        rise = (self._logits(self.edits(coder, latent, value)) - self.plain).mean(0)
        with self.model.intervene(self.edits(coder, latent, value)):
            whole = self.model.generate(
                self.batch.tokens,
                mask=self.batch.mask,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed,
            )
        new = whole[:, self.batch.tokens.shape[1] :].cpu()
        texts = [self.model.tokenizer.decode(row, skip_special_tokens=True) for row in new]
        return Steered(value, self.kl(coder, latent, value), texts, rise)

    @torch.no_grad()
    def _logits(self, edits: dict[str, Edit]) -> Float[Tensor, "positions vocab"]:
        """float32 logits at every position that is not padding."""
        with self.model.intervene(edits):
            logits = self.model.logits(self.batch.tokens, mask=self.batch.mask)
        return logits.cpu()[self.batch.mask].float()
