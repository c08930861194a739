"""Stretches of text on which latents fire weakly and middling, read again from the corpus."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sae_lib.explain.base import Evidence
from sae_lib.explain.examples import Windows, read_windows
from sae_lib.warehouse.rows import ExampleRow

_BATCH_CONTEXTS = 32
_CHUNK_CODES = 2**24
"""Codes (tokens x latents) held at a time: 64 MiB."""


def weaker_examples(
    evidence: Evidence, latents: list[int], *, num_intervals: int, per_interval: int, radius: int
) -> dict[int, list[ExampleRow]]:
    """By latent up to ``per_interval`` stretches from each interval below the strongest one.

    The intervals are of equal length between 0 and the latent's maximum (`quantiles`); the
    strongest come first. Nothing where the corpus is not at hand or no tokens were drawn.
    """
    if evidence.corpus is None or not latents or num_intervals < 2 or per_interval < 1:
        return {}
    owner = torch.tensor(latents, dtype=torch.int64)
    drawn = evidence.statistics.intervals(owner, num_intervals)
    row = drawn.row[:, :-1, :per_interval].flip(1)
    there = row >= 0
    which, interval, _ = there.nonzero(as_tuple=True)
    windows = read_windows(evidence.corpus, row[there], radius)
    owners = owner[which]
    activations = _read(evidence, owners, windows)
    text, found = evidence.vocabulary.text, {}
    for i, (latent, at) in enumerate(zip(owners.tolist(), interval.tolist(), strict=True)):
        inside = windows.inside[i]
        centre = int(inside[: inside.numel() // 2].sum())
        values = activations[i][inside].tolist()
        held = found.setdefault(latent, [])
        held.append(
            ExampleRow(
                latent=latent,
                rank=len(held),
                document=int(windows.document[i]),
                position=int(windows.position[i]),
                peak=centre,
                tokens=[text[t] for t in windows.token_ids[i][inside].tolist()],
                activations=values,
                max_activation=values[centre],
                kind="quantile",
                interval=num_intervals - 2 - at,
            )
        )
    return found


@torch.no_grad()
def _read(
    evidence: Evidence, latents: Int64[Tensor, " windows"], windows: Windows
) -> Float[Tensor, "windows width"]:
    """What each window's latent does on its tokens, read within their contexts."""
    model, corpus, coder = evidence.model, evidence.corpus, evidence.coder
    assert corpus is not None
    found = torch.zeros(windows.rows.shape)
    context = windows.rows[:, 0] // corpus.context
    for part in context.unique().split(_BATCH_CONTEXTS):
        held = corpus.rows(part)
        is_text = (held.document >= 0).to(model.device)
        x = model.capture(held.tokens.to(model.device), [evidence.site], mask=is_text)
        x = x[evidence.site].flatten(0, 1)
        own = torch.isin(context, part).nonzero().flatten()
        start = torch.searchsorted(part, context[own]) * corpus.context
        place = start[:, None] + windows.rows[own] % corpus.context
        counts = windows.inside[own] & held.keep.flatten()[place]
        which, column = counts.nonzero(as_tuple=True)
        size = max(1, _CHUNK_CODES // coder.d_sae)
        for some in torch.arange(len(which)).split(size):
            rows = place[which[some], column[some]].to(x.device)
            z = coder.encode(x[rows].to(coder.W_dec.device, torch.float32))
            at = latents[own[which[some]]].to(z.device)
            value = z.gather(1, at[:, None])[:, 0].float().cpu()
            found[own[which[some]], column[some]] = value
    return found
