"""Meta-SAE: are the decoder's directions themselves sums of a few others?

A BatchTopK coder with a quarter as many latents and k = 4 on average is trained on the decoder's
rows, brought to unit length, and gives reconstructions w_hat:

    explained = 1 - sum_i |w_i - w_hat_i|^2 / sum_i |w_i - mean|^2

High: the directions are compositional, hence less atomic. Rows are few and the meta-coder sees each
many times, so part of what it explains it has learned by heart; the floor `random_rows`, the same
on as many random directions, says how much. `excess` is the difference.

Source: Leask et al. 2025; SAEBench `meta_structure` (evaluation.md, section 17): width ratio 0.25,
k 4, 1,500 steps of 1,024 rows, learning rate 5e-4. Differs from SAEBench: fewer steps at a larger
rate, enough for SAEs this small at these widths; the floor; latents whose row is zero are
left out. Rows of latents that never fire are among them.
"""

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sae_lib.evaluate._moments import Estimate
from sae_lib.evaluate.base import Definition, register
from sae_lib.evaluate.bench import Bench, Measured, OnProgress, TaskMetric
from sae_lib.papers import Paper
from sae_lib.saes.base import SparseCoder, Step
from sae_lib.saes.batch_topk import BatchTopKConfig

EXPLAINED = Definition(
    "meta_variance_explained",
    "decoder_rows",
    "share of the variance of the unit decoder rows that a small BatchTopK coder of them explains",
    "lower",
    high=1.0,
)
RANDOM = EXPLAINED._replace(
    definition="random_rows", text="the same for as many random unit rows", role="floor"
)
EXCESS = Definition(
    "meta_variance_excess",
    "decoder_less_random",
    "decoder_rows minus random_rows: what the directions have in common",
    "lower",
)
L0 = Definition("meta_l0", "mean_of_rows", "latents on per row when scored", "neither", 0.0)

DEAD_AFTER_STEPS = 100


class MetaRecipe(NamedTuple):
    """How a meta-coder is built and trained."""

    width_ratio: float = 0.25
    k: int = 4
    steps: int = 600
    batch_rows: int = 1024
    lr: float = 2e-3
    seed: int = 0


class MetaFound(NamedTuple):
    """How well a meta-coder does on the rows it was trained on."""

    explained: float
    l0: float
    d_sae: int


def meta_sae(rows: Float[Tensor, "latents d"], recipe: MetaRecipe = MetaRecipe()) -> MetaFound:  # noqa: B008
    """Train a meta-coder on the directions of ``rows`` and score it on all of them.

    The score has the budget of training: the k largest per row on average, over all rows.
    """
    rows = rows.detach().float().cpu()
    rows = F.normalize(rows[rows.norm(dim=1) > 0], dim=1)
    num, width = rows.shape
    d_sae = max(recipe.k, round(recipe.width_ratio * num))
    coder = BatchTopKConfig(d_in=width, d_sae=d_sae, k=recipe.k, seed=recipe.seed).build()
    coder.initialise_(rows)
    optimiser = torch.optim.Adam(coder.parameters(), lr=recipe.lr, fused=True)
    generator = torch.Generator().manual_seed(recipe.seed)
    silent = torch.zeros(d_sae, dtype=torch.long)
    with torch.enable_grad():
        for number in range(recipe.steps):
            # the last fifth runs the rate down, so that the score is not that of a noisy step
            left = (recipe.steps - number) / max(1, recipe.steps // 5)
            for group in optimiser.param_groups:
                group["lr"] = recipe.lr * min(1.0, left)
            chosen = torch.randperm(num, generator=generator)[: recipe.batch_rows]
            x = rows[chosen]
            step = Step(x, x, silent >= DEAD_AFTER_STEPS, number / recipe.steps, number=number)
            terms = coder.terms(step)
            optimiser.zero_grad()
            terms.loss.backward()
            coder.before_update()
            optimiser.step()
            coder.after_update()
            silent = torch.where((terms.z > 0).any(0), 0, silent + 1)
    with torch.no_grad():
        terms = coder.terms(Step(rows, rows, silent >= DEAD_AFTER_STEPS, 1.0))
        lost = terms.error.double().square().sum()
        total = (rows - rows.mean(0)).double().square().sum()
        l0 = (terms.z > 0).sum(1).double().mean().item()
    return MetaFound(float(1 - lost / total), l0, d_sae)


@register
class MetaSaeConfig(TaskMetric):
    """How the meta-coder is built and trained."""

    papers = (
        Paper("Leask et al. 2025", "https://arxiv.org/abs/2502.04878", "meta-SAEs"),
        Paper("Karvonen et al. 2025", "https://arxiv.org/abs/2503.09532", "meta structure"),
    )
    summary = "Are the decoder's directions themselves sums of a few others?"
    survey = ("Feature Geometry Analysis",)

    name: Literal["meta_sae"] = "meta_sae"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    width_ratio: float = Field(default=0.25, gt=0, le=1)
    """Latents of the meta-coder per latent of the coder."""

    k: int = Field(default=4, ge=1)
    """Meta-latents on per row, on average."""

    steps: int = Field(default=600, ge=1)
    """Steps of training. SAEBench: 1,500."""

    batch_rows: int = Field(default=1024, ge=1)
    """Decoder rows per step, or all where there are fewer."""

    lr: float = Field(default=2e-3, gt=0)
    """Learning rate of Adam, run down to 0 over the last fifth. SAEBench: 5e-4."""

    seed: int = Field(default=0, ge=0)
    """Seed of the initial weights, of the batches and of the random rows."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        return [EXPLAINED, EXCESS, L0, RANDOM]

    @property
    def recipe(self) -> MetaRecipe:
        return MetaRecipe(self.width_ratio, self.k, self.steps, self.batch_rows, self.lr, self.seed)

    def measure(self, bench: Bench, on_progress: OnProgress) -> dict[str, Measured]:
        floors: dict[tuple[int, int], MetaFound] = {}
        measured = {}
        for done, (name, coder) in enumerate(bench.coders.items()):
            on_progress(done, len(bench.coders))
            rows = coder.W_dec.detach().flatten(1).float().cpu()
            rows = rows[rows.norm(dim=1) > 0]
            if round(self.width_ratio * len(rows)) < 2 * self.k:
                reason = f"{len(rows)} directions are too few for a meta-coder with k = {self.k}"
                measured[name] = Measured(self.absent(reason))
                continue
            shape = (len(rows), rows.shape[1])
            if shape not in floors:
                generator = torch.Generator().manual_seed(self.seed)
                floors[shape] = meta_sae(torch.randn(*shape, generator=generator), self.recipe)
            measured[name] = self._rows(coder, meta_sae(rows, self.recipe), floors[shape], shape[0])
        on_progress(len(bench.coders), len(bench.coders))
        return measured

    def _rows(
        self, coder: SparseCoder[Any], found: MetaFound, floor: MetaFound, num: int
    ) -> Measured:
        params = {
            "k": self.k,
            "meta_d_sae": found.d_sae,
            "d_sae": coder.d_sae,
            "steps": self.steps,
            "seed": self.seed,
        }
        excess = found.explained - floor.explained
        return Measured(
            [
                EXPLAINED.row(Estimate(found.explained, None, num, "latents"), **params),
                EXCESS.row(Estimate(excess, None, num, "latents"), **params),
                L0.row(Estimate(found.l0, None, num, "latents"), **params),
                RANDOM.row(Estimate(floor.explained, None, num, "latents"), **params),
            ]
        )
