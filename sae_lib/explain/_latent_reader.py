"""What single latents do on short texts that are read by themselves, many texts at a time.

Texts that several latents ask about are read once; texts of equal length share a forward pass, so
that there is no padding. Every text is read behind the model's BOS, which is never looked at.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lib.errors import NotApplicable
from sae_lib.explain.base import Evidence
from sae_lib.explain.examples import ExamplesConfig, Windows, choose_examples
from sae_lib.saes.base import SparseCoder

Tokens: TypeAlias = tuple[int, ...]
"""Token ids of a text without special tokens."""

_BATCH_TOKENS = 2**13
_CHUNK_CODES = 2**24
"""Codes (tokens x latents) held at a time: 64 MiB."""


class LatentReader:
    """Activations of latents of one coder on texts of one's own."""

    def __init__(self, model: Any, site: str, coder: SparseCoder[Any]) -> None:
        self.model, self.site, self.coder = model, site, coder
        bos = model.tokenizer.bos_token_id
        self._before = () if bos is None else (int(bos),)
        self._batch = max(1, min(_BATCH_TOKENS, _CHUNK_CODES // coder.d_sae))

    @torch.no_grad()
    def read(self, texts: Sequence[Tokens], latents: Sequence[int]) -> Float[Tensor, "texts width"]:
        """Activation of one latent per text on each of its tokens; 0 behind its end.

        ``width`` is the length of the longest text.
        """
        unique = sorted(set(texts), key=lambda text: (len(text), text))
        number = {text: i for i, text in enumerate(unique)}
        which = torch.tensor([number[text] for text in texts], dtype=torch.int64)
        owner = torch.tensor(latents, dtype=torch.int64)
        found = torch.zeros(len(texts), max(map(len, unique), default=0))
        order = which.argsort(stable=True)
        asked = which[order]
        low = 0
        while low < len(unique):
            length = len(unique[low])
            high = low + 1
            most = low + max(1, self._batch // (length + len(self._before)))
            while high < min(most, len(unique)) and len(unique[high]) == length:
                high += 1
            z = self._codes(unique[low:high])
            edges = torch.searchsorted(asked, torch.tensor([low, high]))
            mine = order[edges[0] : edges[1]]
            at = (which[mine] - low).to(z.device)
            # an index before and after a slice puts the pairs first: (pairs, length)
            found[mine, :length] = z[at, :, owner[mine].to(z.device)].float().cpu()
            low = high
        return found

    def _codes(self, texts: Sequence[Tokens]) -> Float[Tensor, "texts length d_sae"]:
        tokens = torch.tensor([self._before + text for text in texts], dtype=torch.int64)
        x = self.model.capture(tokens.to(self.model.device), [self.site])[self.site]
        x = x[:, len(self._before) :]
        return self.coder.encode(x.to(self.coder.W_dec.device, torch.float32))


def strongest_windows(
    method: str, evidence: Evidence, *, num: int, radius: int
) -> tuple[list[int], Windows, Float[Tensor, " chosen"]]:
    """Windows around the strongest places of every alive latent, one a document at most.

    Returns the latent of each window, by latent and then strongest first, the windows, and the
    activation in the corpus of the token in the middle. Raises `NotApplicable` for ``method``
    where the corpus is not at hand.
    """
    if evidence.corpus is None:
        raise NotApplicable(method, "it reads text again, and the corpus is not at hand.")
    latents = torch.tensor(evidence.alive, dtype=torch.int64)
    candidates = evidence.statistics.candidates(latents)
    cfg = ExamplesConfig(num_examples=num, radius=radius)
    owners, windows = choose_examples(cfg, evidence.corpus, latents, candidates)
    # of all candidates of a latent, the one at the row of the window's middle
    held = torch.full((evidence.statistics.d_sae,), -1).index_put(
        (latents,), torch.arange(len(latents))
    )
    middle = windows.rows[:, windows.rows.shape[1] // 2]
    is_it = candidates.row[held[owners]] == middle[:, None]
    activation = (candidates.activation[held[owners]] * is_it).sum(1)
    return owners.tolist(), windows, activation
