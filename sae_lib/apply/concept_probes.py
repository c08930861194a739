"""Linear probes of every concept of the world, at every layer: is the truth in the model at all?

For all concepts at once, logistic regression of the concept's indicator on the activation, fitted
on one half of the text and scored on the other by the area under the ROC curve (chance that a true
token gets a higher score than a false one, ties half).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sae_lib.activations.harvest import CapturesSites
from sae_lib.activations.world_tokens import enough_documents, read_world
from sae_lib.apply.logistic import fit_logistic
from sae_lib.synthetic.world.concepts import CONCEPTS
from sae_lib.synthetic.world.config import WorldConfig

MOST_FALSE = 20_000
"""False tokens that a score is compared with; true ones are all used."""


class ConceptProbe(NamedTuple):
    """The best layer of one concept."""

    concept: str
    scope: str
    site: str
    auc: float | None
    """On held-out text; None where the concept is too rare to be scored."""
    num_true: int
    """Held-out tokens at which the concept is active."""
    by_site: dict[str, float]


def auc(true: np.ndarray, false: np.ndarray) -> float:
    """Chance that one of ``true`` is above one of ``false``, ties counting half."""
    false = np.sort(false)
    below = np.searchsorted(false, true, "left")
    not_above = np.searchsorted(false, true, "right")
    return float((below + not_above).mean() / (2 * len(false)))


def probe_concepts(
    model: CapturesSites,
    sites: Sequence[str],
    *,
    cfg: WorldConfig | None = None,
    tokens: int = 150_000,
    min_true: int = 10,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[ConceptProbe]:
    """Every concept's best layer among ``sites``, in the order of the inventory."""
    cfg = cfg or WorldConfig()
    draw = np.random.default_rng(seed)
    fitted, scored = (
        read_world(model, sites, enough_documents(cfg, tokens, split=f"probes/{split}"))
        for split in ("train", "test")
    )
    num_true = np.asarray(scored.truth.sum(0, dtype=np.int64)).ravel()
    enough = (num_true >= min_true) & (np.asarray(fitted.truth.sum(0)).ravel() >= min_true)
    columns = scored.truth.tocsc()
    found: list[dict[str, float]] = [{} for _ in scored.concepts]
    for done, site in enumerate(sites):
        probes = fit_logistic(fitted.x[site], fitted.truth, seed=seed)
        scores = probes.log_odds(scored.x[site]).numpy()
        for column in np.flatnonzero(enough):
            is_true = np.zeros(len(scores), dtype=bool)
            is_true[columns.indices[columns.indptr[column] : columns.indptr[column + 1]]] = True
            false = np.flatnonzero(~is_true)
            if len(false) == 0:
                continue
            if len(false) > MOST_FALSE:
                false = draw.choice(false, MOST_FALSE, replace=False)
            found[column][site] = auc(scores[is_true, column], scores[false, column])
        on_progress(done + 1, len(sites))
    best_sites = []
    for name, by_site, n in zip(scored.concepts, found, num_true, strict=True):
        best = max(by_site, key=by_site.__getitem__, default="")
        best_sites.append(
            ConceptProbe(name, CONCEPTS[name].scope, best, by_site.get(best), int(n), by_site)
        )
    return best_sites
