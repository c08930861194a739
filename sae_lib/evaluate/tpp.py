"""Targeted probe perturbation: can the latents of one class go without hurting other probes?

With A_j the accuracy of the probe of class j (against the rest, on pooled activations), and A_ij
what is left of it when the n latents of class i are ablated at every token:

    e_l         = max(0, mean_pos z_l - mean_neg z_l) <w_i, W_dec_l>   on the training texts
    latents     = the n largest e_l that are not 0
    intended    = mean_i (A_i - A_ii)
    unintended  = mean_i mean_{j != i} (A_j - A_ij)
    total       = intended - unintended                               in about [-0.5, 0.5]

Probes are not fitted again. Beside every coder stand a *random* coder of its width and L0, the
floor, and *difference in means*: along the difference of the class means every text is moved to
where the negatives are, which needs no coder and bounds what one direction can do.

Source: Karvonen et al. 2025 (evaluation.md, section 6). Repeats have texts and probes of their own,
and the standard error is over them: Chanin 2026 finds the metric unreliable, so read no difference
that the repeats do not bear out.

Differs from SAEBench: see `_class_probes`; activations are centred and scaled before a probe is
fitted, no comparison draws negatives anew, and the number of texts is smaller.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from sae_lib.activations.task_tables import table_files
from sae_lib.errors import BadInput
from sae_lib.evaluate._class_probes import (
    FEWEST,
    SIZES,
    ClassSet,
    ProbeRecipe,
    Probes,
    ablated_scores,
    accuracies,
    check_has_sets,
    class_set,
    class_texts,
    differences,
    fit_probes,
    floor_sample,
    floors,
    one_against_rest,
    over_repeats,
    part_of,
    pooled_codes,
    sizes_for,
    strongest,
    unit_decoder,
    unsuitable_coders,
    without_direction,
    world_class_sets,
)
from sae_lib.evaluate.base import Definition, register
from sae_lib.evaluate.bench import Bench, Measured, OnProgress, TaskMetric
from sae_lib.evaluate.reader import TextActivations
from sae_lib.papers import Paper
from sae_lib.saes.base import SparseCoder
from sae_lib.warehouse.rows import Measurement

PARTS = ("total", "intended", "unintended")
_TEXTS = {
    "total": "intended - unintended",
    "intended": "mean over classes i of A_i - A_ii: what ablating a class costs its own probe",
    "unintended": "mean over classes i and j != i of A_j - A_ij: what it costs the other probes",
}
_WHO = {
    "ablated_latents": "n latents of a class ablated, the error term kept; mean over data sets",
    "random_sae": "the same for a random coder of the same width and L0: the floor",
    "difference_in_means": "each text moved along the difference of class means to the negatives'"
    " mean; needs no coder",
    "ablated_latents_of_one": "ablated_latents for one data set",
}


def _definition(part: str, who: str) -> Definition:
    low = -2.0 if part == "total" else -1.0
    better: Literal["higher", "lower"] = "lower" if part == "unintended" else "higher"
    return Definition(f"tpp_{part}", who, f"{_TEXTS[part]}; {_WHO[who]}", better, low, -low)


DEFINITIONS = {(part, who): _definition(part, who) for who in _WHO for part in PARTS}
CLEAN = Definition(
    "tpp_probe_accuracy",
    "clean",
    "mean over classes of A_i, nothing ablated; mean over data sets",
    "neither",
    0.0,
    1.0,
)
CLEAN_OF_ONE = CLEAN._replace(
    definition="clean_of_one", text="mean over classes of A_i, nothing ablated; of one data set"
)


class Perturbation(NamedTuple):
    """What the probes lost, for each number of latents."""

    total: Float[Tensor, "*sizes"]
    intended: Float[Tensor, "*sizes"]
    unintended: Float[Tensor, "*sizes"]


class Repeat(NamedTuple):
    """Texts and probes of one repeat on one data set; rows begin with the positives."""

    probes: Probes
    train: Int[Tensor, " train_texts"]
    """Places of its training texts among all that were read."""
    test: Int[Tensor, " test_texts"]
    x_train: Float[Tensor, "train_texts d_in"]
    x_test: Float[Tensor, "test_texts d_in"]
    train_rows: Int[Tensor, "classes train_members"]
    """Per class, places in ``x_train``."""
    test_rows: Int[Tensor, "classes test_members"]


def effects(
    difference: Float[Tensor, "classes d_sae"], written: Float[Tensor, "d_sae classes"]
) -> Float[Tensor, "classes d_sae"]:
    """What each latent, where it is larger on the positives, adds to the class's own probe."""
    return difference.clamp_min(0) * written.mT


def perturbation(
    clean: Float[Tensor, " classes"], ablated: Float[Tensor, "*sizes classes classes"]
) -> Perturbation:
    """From accuracies: ``ablated[..., i, j]`` is that of probe j without the latents of class i."""
    lost = clean - ablated
    own = lost.diagonal(dim1=-2, dim2=-1)
    intended = own.mean(-1)
    num = len(clean)
    unintended = (lost.sum((-2, -1)) - own.sum(-1)) / (num * (num - 1))
    return Perturbation(intended - unintended, intended, unintended)


def perturb_latents(
    repeat: Repeat,
    z_train: Float[Tensor, "train_texts d_sae"],
    z_test: Float[Tensor, "test_texts d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    sizes: Sequence[int],
) -> tuple[Perturbation, Float[Tensor, " sizes"]]:
    """The probes without the latents of each class in turn, and how many there were to ablate."""
    written = W_dec.double() @ repeat.probes.weights.mT
    by_class = effects(differences(z_train, repeat.train_rows), written)
    scores = repeat.probes.scores(repeat.x_test)
    ablated, num_chosen = [], []
    for own in by_class:
        chosen = strongest(own, max(sizes))
        left = ablated_scores(scores, z_test, written, chosen, sizes)
        ablated.append(accuracies(left, repeat.test_rows))
        num_chosen.append([min(len(chosen), size) for size in sizes])
    clean = accuracies(scores, repeat.test_rows)
    found = perturbation(clean, torch.stack(ablated, dim=1))
    return found, torch.tensor(num_chosen, dtype=torch.float64).mean(0)


def perturb_means(repeat: Repeat) -> Perturbation:
    """The probes after each class in turn was moved to the mean of the rest, along one line."""
    half = repeat.train_rows.shape[1] // 2
    clean = accuracies(repeat.probes.scores(repeat.x_test), repeat.test_rows)
    ablated = []
    for own in repeat.train_rows:
        rest = repeat.x_train[own[half:]].mean(0)
        moved = without_direction(repeat.x_test, rest, repeat.x_train[own[:half]].mean(0) - rest)
        ablated.append(accuracies(repeat.probes.scores(moved), repeat.test_rows))
    return perturbation(clean, torch.stack(ablated))


def repeats(
    x_train: Float[Tensor, "train_texts d_in"],
    x_test: Float[Tensor, "test_texts d_in"],
    num_classes: int,
    num_repeats: int,
    recipe: ProbeRecipe,
    *,
    seed: int,
) -> list[Repeat]:
    """Probes of disjoint parts of the texts, which lie class by class, equally many of each."""
    found = []
    for place in range(num_repeats):
        drawn = seed + 1000 * place
        train, test = (part_of(len(x), num_classes, num_repeats, place) for x in (x_train, x_test))
        rows, test_rows = (
            one_against_rest(num_classes, len(part) // num_classes, seed=drawn + offset)
            for offset, part in enumerate((train, test))
        )
        own = x_train[train].double()
        probes = fit_probes(own, rows, recipe, seed=drawn)
        found.append(Repeat(probes, train, test, own, x_test[test].double(), rows, test_rows))
    return found


@register
class TppConfig(TaskMetric):
    """Which texts have which classes, and how many latents are ablated."""

    papers = (
        Paper("Karvonen et al. 2025", "https://arxiv.org/abs/2503.09532", "TPP"),
        Paper("Karvonen et al. 2024", "https://arxiv.org/abs/2411.18895", "TPP, where it is from"),
        Paper("Chanin 2026", "https://arxiv.org/abs/2605.18229", "reliability"),
    )
    summary = "Take the latents of one class away: does only its own probe suffer?"
    survey = ("Targeted Probe Perturbation",)

    name: Literal["tpp"] = "tpp"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    datasets: tuple[str | ClassSet, ...] = ()
    """``world:NAME``, files or hub data sets with classes; none: the world's own, on the world."""

    sizes: tuple[int, ...] = Field(default=SIZES, min_length=1)
    """Numbers of latents that are ablated; those above the width of a coder are left out."""

    train_texts: int = Field(default=200, ge=2 * FEWEST, multiple_of=2)
    """Texts per probe and repeat to choose latents and fit on, half of them positive."""

    test_texts: int = Field(default=120, ge=2 * FEWEST, multiple_of=2)
    """Texts per probe and repeat to score on, half of them positive."""

    repeats: int = Field(default=3, gt=0)
    """How often all is done with other texts and other probes; the standard error is over them."""

    probe: ProbeRecipe = ProbeRecipe()
    """How probes are fitted."""

    max_tokens: int = Field(default=128, gt=1)
    """Tokens of a text that are read, from its beginning."""

    seed: int = Field(default=0, ge=0)
    """Seed of the draws of texts, of the probes and of the random coders."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        return [*DEFINITIONS.values(), CLEAN, CLEAN_OF_ONE]

    def check(self, bench: Bench) -> None:
        check_has_sets(self.datasets, bench, self.name, "data sets")
        if min(self.sizes) < 1:
            raise BadInput("numbers of latents are at least 1.", key="sizes", value=self.sizes)

    def files(self, relative_to: Path) -> list[Path]:
        return [f for given in self.datasets for f in table_files(class_set(given), relative_to)]

    def measure(self, bench: Bench, on_progress: OnProgress) -> dict[str, Measured]:
        reasons = unsuitable_coders(bench, self.sizes)
        if len(reasons) == len(bench.coders):
            return {name: Measured(self.absent(reason)) for name, reason in reasons.items()}
        datasets = [
            self._read(given, bench, place)
            for place, given in enumerate(self.datasets or world_class_sets())
        ]
        coders: dict[str, SparseCoder[Any]] = {
            name: coder for name, coder in bench.coders.items() if name not in reasons
        }
        floor = floors(coders, torch.cat([one.sample for one in datasets]), self.seed)
        coders |= floor.coders
        found: dict[str, list[Found]] = {name: [] for name in coders}
        total = len(coders) * len(datasets)
        for done, (one, (name, coder)) in enumerate(product(datasets, coders.items())):
            on_progress(done, total)
            sizes, W_dec = sizes_for(self.sizes, coder.d_sae), unit_decoder(coder)
            z_train, z_test = (pooled_codes(coder, side) for side in (one.train, one.test))
            found[name].append(
                [
                    perturb_latents(
                        repeat, z_train[repeat.train], z_test[repeat.test], W_dec, sizes
                    )
                    for repeat in one.repeats
                ]
            )
        on_progress(total, total)
        shared = _shared_rows(datasets)
        return {
            name: Measured(
                self.absent(reasons[name])
                if name in reasons
                else self._rows(coder, datasets, found[name], found[floor.of[name]]) + shared
            )
            for name, coder in bench.coders.items()
        }

    def _read(self, given: str | ClassSet, bench: Bench, place: int) -> "_Dataset":
        texts = class_texts(
            given,
            bench,
            train=self.train_texts // 2 * self.repeats,
            test=self.test_texts // 2 * self.repeats,
            seed=self.seed,
            key=f"datasets.{place}",
        )
        num = len(texts.classes)
        if num < 3:
            raise BadInput(
                f"classes are told from the rest, which takes three; {texts.name} has"
                f" {', '.join(texts.classes)}.",
                key=f"datasets.{place}",
                value=texts.name,
            )
        train, test = (
            bench.reader.read([text for own in side for text in own], max_tokens=self.max_tokens)
            for side in (texts.train, texts.test)
        )
        found = repeats(
            train.pooled_x(), test.pooled_x(), num, self.repeats, self.probe, seed=self.seed
        )
        return _Dataset(texts.name, train, test, found, floor_sample(train))

    def _rows(
        self,
        coder: SparseCoder[Any],
        datasets: "list[_Dataset]",
        own: "list[Found]",
        floor: "list[Found]",
    ) -> list[Measurement]:
        sizes = sizes_for(self.sizes, coder.d_sae)
        rows = []
        for who, found in (("ablated_latents", own), ("random_sae", floor)):
            for part in PARTS:
                values = _values(found, part)
                rows += [
                    DEFINITIONS[part, who].row(
                        over_repeats(values[..., i].mean(0)), n=size, chosen=_chosen(found, i)
                    )
                    for i, size in enumerate(sizes)
                ]
        for one, found in zip(datasets, own, strict=True):
            for part in PARTS:
                values = _values([found], part)[0]
                rows += [
                    DEFINITIONS[part, "ablated_latents_of_one"].row(
                        over_repeats(values[:, i]),
                        n=size,
                        chosen=_chosen([found], i),
                        dataset=one.name,
                    )
                    for i, size in enumerate(sizes)
                ]
        return rows


Found = list[tuple[Perturbation, Float[Tensor, " sizes"]]]
"""Of one data set: for each repeat what the probes lost, and how many latents there were."""


class _Dataset(NamedTuple):
    name: str
    train: TextActivations
    test: TextActivations
    repeats: list[Repeat]
    sample: Float[Tensor, "tokens d_in"]


def _values(found: list[Found], part: str) -> Float[np.ndarray, "datasets repeats sizes"]:
    return np.array([[getattr(one, part).tolist() for one, _ in repeat] for repeat in found])


def _chosen(found: list[Found], place: int) -> float:
    """Mean number of latents that were there to ablate."""
    return float(np.mean([float(num[place]) for of_one in found for _, num in of_one]))


def _shared_rows(datasets: list[_Dataset]) -> list[Measurement]:
    """What needs no coder."""
    means = [[perturb_means(repeat) for repeat in one.repeats] for one in datasets]
    clean = np.array(
        [
            [
                float(accuracies(repeat.probes.scores(repeat.x_test), repeat.test_rows).mean())
                for repeat in one.repeats
            ]
            for one in datasets
        ]
    )
    rows = [
        DEFINITIONS[part, "difference_in_means"].row(
            over_repeats(np.mean([[float(getattr(p, part)) for p in of] for of in means], axis=0))
        )
        for part in PARTS
    ]
    rows.append(CLEAN.row(over_repeats(clean.mean(0))))
    for one, values in zip(datasets, clean, strict=True):
        rows.append(CLEAN_OF_ONE.row(over_repeats(values), dataset=one.name))
    return rows
