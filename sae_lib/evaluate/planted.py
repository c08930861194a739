"""Metrics of coders whose values are known in advance: do the measurements come out right?

Every control (`sae_lib.synthetic.controls`) meets the same planted activations in one pass of the
metrics, as bags behind a beginning-of-sequence vector that is not counted. Beside what is measured
stands what must come out.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lib.apply.probes import fit, top_columns
from sae_lib.evaluate._absorbed_letters import absorption
from sae_lib.evaluate.base import EvalBatch, EvalContext, StreamingMetric
from sae_lib.evaluate.reconstruction import ReconstructionConfig
from sae_lib.evaluate.sparsity import SparsityConfig
from sae_lib.evaluate.weights import WeightsConfig
from sae_lib.saes.known import HandedInCoder, LinearThresholdCoder, coder_of
from sae_lib.synthetic.controls import COVERED, Control, controls, families, probed_features
from sae_lib.synthetic.dictionary import (
    DictionaryConfig,
    bags,
    best_matches,
    ground_truth_dictionary,
    moments,
    sparse_mixtures,
)
from sae_lib.synthetic.structure import Entities, Hierarchy, Independent, Pair, Siblings

ORTHONORMAL = DictionaryConfig(
    d_in=64,
    num_features=64,
    is_orthonormal=True,
    groups=(
        Independent(features=16),
        Siblings(copies=2, per_document=True),
        Pair(copies=2, per_document=True),
        Hierarchy(copies=4, chance=0.25, levels=((0.12,) * 5,)),
        Entities(entities=40, values=(3, 4, 5)),
    ),
)
"""One of everything, in directions that do not interfere: all that is known is exact."""

OVERCOMPLETE = ORTHONORMAL.but(
    is_orthonormal=False, num_features=256, mean_active=8.0, repulsion_steps=100
)
"""The same groups among 192 more features, in a quarter of the dimensions they would need."""

SAMPLES = 20
"""Positions of a bag, the first of which does not count."""

MOST_PROBED = 1000
"""Rows of each class that a probe uses, half of them for testing."""

MEASURED = {
    ("fvu", "ratio_of_sums"): "fvu",
    ("relative_reconstruction_bias", "ratio_of_sums"): "relative_reconstruction_bias",
    ("l2_ratio", "mean_of_ratios"): "l2_ratio",
    ("l0", "mean_of_tokens"): "l0",
    ("max_decoder_cosine", "mean_of_latents"): "max_decoder_cosine",
}
"""Rows of the metrics that are shown, and what `Control.known` calls them."""

Coder = LinearThresholdCoder | HandedInCoder


class PlantedRow(NamedTuple):
    """One number about one control."""

    coder: str
    metric: str
    value: float | None
    expected: float | None
    """None where no closed form is known."""
    stderr: float | None


@torch.no_grad()
def planted_rows(
    cfg: DictionaryConfig = ORTHONORMAL,
    some: Mapping[str, Control] | None = None,
    *,
    num_bags: int = 1000,
    batch_bags: int = 100,
    probe_tokens: int = 8000,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[PlantedRow]:
    """What the metrics find for each control, beside what they must find.

    Args:
        cfg: The planted activations.
        some: Controls by name; all of them by default.
        num_bags: Bags of 20 positions for the streaming metrics.
        batch_bags: Bags in memory at one time.
        probe_tokens: Other samples, for probes and absorption.
        on_progress: Is told bags done and bags in all.
    """
    some = controls(cfg) if some is None else some
    coders = {name: coder_of(control) for name, control in some.items()}
    found = _stream(cfg, coders, num_bags, batch_bags, on_progress)
    x, z = next(sparse_mixtures(cfg, probe_tokens))
    for name, coder in coders.items():
        _hand_in(coder, x, z)
        found[name] |= _without_stream(cfg, coder, x, z)
    return [
        PlantedRow(name, metric, value, some[name].known.get(metric), stderr)
        for name, values in found.items()
        for metric, (value, stderr) in values.items()
    ]


def _stream(
    cfg: DictionaryConfig,
    coders: Mapping[str, Coder],
    num_bags: int,
    batch_bags: int,
    on_progress: Callable[[int, int], None],
) -> dict[str, dict[str, tuple[float | None, float | None]]]:
    """The streaming metrics of every coder, in one pass."""
    metrics: list[StreamingMetric] = [ReconstructionConfig(), SparsityConfig(), WeightsConfig()]
    mean = moments(cfg).x_mean.float()
    running = {
        name: [m.start(EvalContext("planted", c, mean, batch_bags, "bags")) for m in metrics]
        for name, c in coders.items()
    }
    stream = bags(cfg, batch_bags, samples=SAMPLES)
    for done in range(0, num_bags, batch_bags):
        batch = next(stream)
        keep = batch.keep[: num_bags - done]
        x, truth = batch.x[: len(keep)][keep], batch.z[: len(keep)][keep]
        for name, coder in coders.items():
            _hand_in(coder, x, truth)
            z = coder.encode(x)
            seen = EvalBatch(
                torch.zeros_like(keep, dtype=torch.long),
                keep,
                x,
                z,
                coder.decode(z),
                keep.nonzero()[:, 0],
            )
            for accumulator in running[name]:
                accumulator.update(seen)
        on_progress(min(done + batch_bags, num_bags), num_bags)
    return {
        name: {
            MEASURED[row.name, row.definition]: (row.value, row.stderr)
            for accumulator in accumulators
            for row in accumulator.rows()
            if (row.name, row.definition) in MEASURED
        }
        for name, accumulators in running.items()
    }


def _without_stream(
    cfg: DictionaryConfig,
    coder: Coder,
    x: Float[Tensor, "tokens d_in"],
    truth: Float[Tensor, "tokens num_features"],
) -> dict[str, tuple[float | None, float | None]]:
    """Geometry, probes and absorption."""
    match = best_matches(ground_truth_dictionary(cfg), coder.W_dec)
    found = {
        "mmcs": match.mean().item(),
        "coverage": (match >= COVERED).double().mean().item(),
    }
    code = coder.encode(x)
    trees = families(cfg)
    for name, labels in {
        "probing": probed_features(cfg),
        "parent_probing": [tree.parent for tree in trees],
    }.items():
        if labels:
            accuracies = [probe_accuracy(code, truth[:, k] > 0) for k in labels]
            found[name] = float(np.mean(accuracies))
    if trees:
        projected = x - coder.b_dec
        by_tree = []
        for tree in trees:
            is_on = truth[:, tree.parent] > 0
            is_word = is_on & (truth[:, list(tree.children)] > 0).any(1)
            main = _main_latents(code * coder.W_dec.norm(dim=1), is_on)
            direction = ground_truth_dictionary(cfg)[tree.parent]
            at = projected[is_word] @ direction
            by_tree.append(absorption(code[is_word], coder.W_dec, direction, at, main))
        found["absorption"] = float(np.mean([one.fraction.mean().item() for one in by_tree]))
        found["full_absorption"] = float(
            np.mean([one.is_full.double().mean().item() for one in by_tree])
        )
    return {name: (value, None) for name, value in found.items()}


def probe_accuracy(code: Float[Tensor, "tokens d_sae"], is_on: Bool[Tensor, " tokens"]) -> float:
    """Test accuracy of a probe on one latent; half of the rows are positive, half are for testing.

    The latent is the one with the largest difference of means. Without any that differs the probe
    guesses.
    """
    rows = _balanced(is_on)
    features, labels = code[rows].double().numpy(), is_on[rows].long().numpy()
    train, test = slice(0, None, 2), slice(1, None, 2)
    chosen = top_columns(features[train], labels[train], 1)
    if not len(chosen):
        return 0.5
    fitted = fit(features[train][:, chosen], labels[train], features[test][:, chosen])
    return float(((fitted.values > 0) == (labels[test] == 1)).mean())


def _balanced(is_on: Bool[Tensor, " tokens"]) -> Int[Tensor, " rows"]:
    """As many positives as negatives; so are the rows at even and those at odd places."""
    on, off = is_on.nonzero()[:, 0], (~is_on).nonzero()[:, 0]
    num = min(len(on), len(off), MOST_PROBED) // 2 * 2
    pairs = torch.stack([on[:num].reshape(-1, 2), off[:num].reshape(-1, 2)], dim=1)
    return pairs.flatten()


def _main_latents(
    code: Float[Tensor, "tokens d_sae"], is_on: Bool[Tensor, " tokens"]
) -> Int[Tensor, " main"]:
    """The one latent that tells the concept best."""
    chosen = top_columns(code.double().numpy(), is_on.long().numpy(), 1)
    return torch.from_numpy(chosen.astype(np.int64))


def _hand_in(
    coder: Coder, x: Float[Tensor, "tokens d_in"], truth: Float[Tensor, "tokens num_features"]
) -> None:
    if isinstance(coder, HandedInCoder):
        coder.hand_in(x, truth)
