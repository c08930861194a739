"""Spurious correlation removal: does taking latents away repair a probe that learned a bias?

In *biased* texts a target (a profession) and a spurious attribute (a gender) coincide; in
*balanced* ones all four combinations are equally frequent. Three probes on pooled activations: the
biased one, and one of each attribute from the balanced texts.

    e_l          = |(mean_pos z_l - mean_neg z_l) <w, W_dec_l>|   on balanced training texts
    latents      = the n largest e_l that are not 0
    direction 1  = ablate the latents of the spurious probe, score the biased probe on the target
    direction 2  = ablate those of the target probe, score it on the spurious attribute
    score        = (A_ablated - A_biased) / (A_clean - A_biased), 0 where A_clean - A_biased < 0.001

A_clean is the accuracy of the attribute's own probe, A_biased that of the biased probe before
anything is ablated. 0 is no change, 1 fully repaired; below 0 is worse, and above 1 is possible.
The direction that counts is the one in which the biased probe is less accurate: it learned the
other attribute. Where both are equal the mean of both counts.

Beside every coder stand a *random* coder of its width and L0, the floor, and *difference in means*:
all texts are moved to one place along the difference of the attribute's class means, which needs no
coder. Where an attribute is a feature that is there or not, instead of one of two features, taking
the feature away makes all texts look as if it were absent, which moves the biased probe too: even
the true latents then score about 0.

Source: Karvonen et al. 2025, after SHIFT (evaluation.md, section 7). Repeats have texts and
probes of their own, and the standard error is over them; small denominators make single pairs
unsteady (Chanin 2026).

Differs from SAEBench: see `_class_probes`; a tie of the directions is not dropped; the target and
the spurious probe are fitted to the same balanced texts.
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

from sae_lib.activations.task_tables import WORLD_PREFIX, TableConfig, TableSplit, local_files
from sae_lib.errors import BadInput, UnknownName
from sae_lib.evaluate._class_probes import (
    FEWEST,
    SIZES,
    ProbeRecipe,
    Probes,
    ablated_scores,
    accuracies,
    check_has_sets,
    differences,
    fit_probes,
    floor_sample,
    floors,
    grouped_rows,
    over_repeats,
    part_of,
    pooled_codes,
    shuffled,
    sizes_for,
    strongest,
    unit_decoder,
    unsuitable_coders,
    without_direction,
)
from sae_lib.evaluate.base import Definition, register
from sae_lib.evaluate.bench import Bench, Measured, OnProgress, TaskMetric
from sae_lib.evaluate.reader import TextActivations
from sae_lib.papers import Paper
from sae_lib.saes.base import SparseCoder
from sae_lib.warehouse.rows import Measurement

TEXT, TARGET, SPURIOUS = "text", "target", "spurious"

_SPLITS: tuple[TableSplit, TableSplit] = ("train", "test")

LEAST_GAP = 1e-3
"""Difference between clean and biased accuracy below which there is nothing to repair."""

BIASED_PROBE, TARGET_PROBE, SPURIOUS_PROBE = range(3)

WORLD_PAIRS = (
    "world:scr-profession-gender",
    "world:scr-dancer-painter",
    "world:scr-product-sentiment",
    "world:scr-furniture-toy",
)
"""Measured on the bundled world when no pair is named."""

KINDS = ("metric_direction", "direction_1", "direction_2")
_SCORE = "(A_ablated - A_biased) / (A_clean - A_biased), 0 where that difference is below 0.001"
_WHO = {
    "metric_direction": "in the direction in which the biased probe is less accurate; mean over"
    " pairs",
    "direction_1": "biased probe on the target, without latents of the spurious attribute; mean"
    " over pairs",
    "direction_2": "biased probe on the spurious attribute, without latents of the target; mean"
    " over pairs",
    "random_sae": "metric_direction for a random coder of the same width and L0: the floor",
    "difference_in_means": "metric_direction with all texts moved to one place along the difference"
    " of class means; needs no coder",
    **{f"{kind}_of_one": f"{kind} for one pair" for kind in KINDS},
}
SCORES = {who: Definition("scr", who, f"{_SCORE}; {text}", "higher") for who, text in _WHO.items()}
ACCURACIES = {
    who: Definition("scr_accuracy", f"{who}_of_one", f"{text}; one pair", "neither", 0.0, 1.0)
    for who, text in (
        ("biased", "accuracy of the biased probe on balanced texts, nothing ablated"),
        ("clean", "accuracy of the probe of the attribute itself on balanced texts"),
    )
}


class AttributePair(TableConfig):
    """Texts with two attributes; columns ``text``, ``target`` and ``spurious``."""

    target: tuple[str, str]
    """Value of the column ``target`` in the positive class, and in the negative one."""

    spurious: tuple[str, str]
    """Value of ``spurious`` that comes with the positive class in biased texts, and the other."""


class PairTexts(NamedTuple):
    """Texts of one split of a pair."""

    biased: tuple[list[str], list[str]]
    """Positive ones with what coincides, negative ones with what coincides."""

    balanced: tuple[list[str], list[str], list[str], list[str]]
    """Both positive, both negative, only the target positive, only the spurious one positive."""

    @property
    def flat(self) -> list[str]:
        return [text for own in (*self.biased, *self.balanced) for text in own]


class Repeat(NamedTuple):
    """Texts and probes of one repeat on one pair; rows begin with the positives."""

    probes: Probes
    """The biased one, that of the target, that of the spurious attribute."""
    train: Int[Tensor, " train_texts"]
    """Places of its training texts among all that were read."""
    test: Int[Tensor, " test_texts"]
    x_train: Float[Tensor, "train_texts d_in"]
    x_test: Float[Tensor, "test_texts d_in"]
    train_rows: Int[Tensor, "3 train_members"]
    """Per probe, places in ``x_train``."""
    test_rows: Int[Tensor, "3 test_members"]

    @property
    def biased(self) -> Float[Tensor, " 2"]:
        """Accuracy of the biased probe on the target, and on the spurious attribute."""
        scores = self.probes.scores(self.x_test)[:, [BIASED_PROBE, BIASED_PROBE]]
        return accuracies(scores, self.test_rows[[TARGET_PROBE, SPURIOUS_PROBE]])

    @property
    def clean(self) -> Float[Tensor, " 2"]:
        """Accuracy of their own probes on these."""
        return accuracies(self.probes.scores(self.x_test), self.test_rows)[
            [TARGET_PROBE, SPURIOUS_PROBE]
        ]


class Repaired(NamedTuple):
    """Scores of one repeat."""

    metric_direction: Float[Tensor, " sizes"]
    direction_1: Float[Tensor, " sizes"]
    direction_2: Float[Tensor, " sizes"]
    num_chosen: Float[Tensor, " sizes"]
    """Latents there were to ablate, mean of the directions."""


def effects(
    difference: Float[Tensor, " d_sae"], written: Float[Tensor, " d_sae"]
) -> Float[Tensor, " d_sae"]:
    """How much each latent's difference between the classes moves the probe, either way."""
    return (difference * written).abs()


def score(
    ablated: Float[Tensor, "*some"],
    biased: Float[Tensor, "*#some"],
    clean: Float[Tensor, "*#some"],
) -> Float[Tensor, "*some"]:
    """Share of the lost accuracy that came back; 0 where hardly any was lost."""
    gap = clean - biased
    return torch.where(gap < LEAST_GAP, 0.0, (ablated - biased) / gap.clamp_min(LEAST_GAP))


def counted(
    by_direction: Float[Tensor, "2 *sizes"], biased: Float[Tensor, " 2"]
) -> Float[Tensor, "*sizes"]:
    """The direction in which the biased probe is less accurate; in a tie the mean of both."""
    on_target, on_spurious = biased.tolist()
    if on_target == on_spurious:
        return by_direction.mean(0)
    return by_direction[0 if on_target < on_spurious else 1]


def repair_latents(
    repeat: Repeat,
    z_train: Float[Tensor, "train_texts d_sae"],
    z_test: Float[Tensor, "test_texts d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    sizes: Sequence[int],
) -> Repaired:
    """The biased probe without the latents of either attribute."""
    written = W_dec.double() @ repeat.probes.weights.mT
    difference = differences(z_train, repeat.train_rows)
    scores = repeat.probes.scores(repeat.x_test)[:, [BIASED_PROBE]]
    by_direction, num_chosen = [], []
    for ablate, judge in ((SPURIOUS_PROBE, TARGET_PROBE), (TARGET_PROBE, SPURIOUS_PROBE)):
        chosen = strongest(effects(difference[ablate], written[:, ablate]), max(sizes))
        left = ablated_scores(scores, z_test, written[:, [BIASED_PROBE]], chosen, sizes)
        by_direction.append(accuracies(left, repeat.test_rows[[judge]])[:, 0])
        num_chosen.append([min(len(chosen), size) for size in sizes])
    biased, clean = repeat.biased, repeat.clean
    found = score(torch.stack(by_direction), biased[:, None], clean[:, None])
    return Repaired(
        counted(found, biased),
        found[0],
        found[1],
        torch.tensor(num_chosen, dtype=torch.float64).mean(0),
    )


def repair_means(repeat: Repeat) -> float:
    """The score where all texts are alike along the difference of the attribute's class means."""
    half = repeat.train_rows.shape[1] // 2
    by_direction = []
    for ablate, judge in ((SPURIOUS_PROBE, TARGET_PROBE), (TARGET_PROBE, SPURIOUS_PROBE)):
        own = repeat.train_rows[ablate]
        one, other = (repeat.x_train[part].mean(0) for part in (own[:half], own[half:]))
        moved = without_direction(repeat.x_test, (one + other) / 2, one - other)
        left = repeat.probes.scores(moved)[:, [BIASED_PROBE]]
        by_direction.append(accuracies(left, repeat.test_rows[[judge]])[0])
    biased = repeat.biased
    return float(counted(score(torch.stack(by_direction), biased, repeat.clean), biased))


def repeats(
    x_train: Float[Tensor, "train_texts d_in"],
    x_test: Float[Tensor, "test_texts d_in"],
    num_repeats: int,
    recipe: ProbeRecipe,
    *,
    seed: int,
) -> list[Repeat]:
    """Probes of disjoint parts of the texts, which lie as in `PairTexts.flat`."""
    found = []
    for place in range(num_repeats):
        (train, rows), (test, test_rows) = (
            _part(len(x), num_repeats, place) for x in (x_train, x_test)
        )
        own = x_train[train].double()
        probes = fit_probes(own, rows, recipe, seed=seed + 1000 * place)
        found.append(Repeat(probes, train, test, own, x_test[test].double(), rows, test_rows))
    return found


def pair_texts(
    given: str | AttributePair,
    bench: Bench,
    *,
    train: int,
    test: int,
    seed: int,
    key: str,
) -> tuple[PairTexts, PairTexts]:
    """At most ``train`` biased and as many balanced texts, and ``test`` of either.

    Raises `BadInput`, naming ``key``, where a combination of the attributes has hardly any text.
    """
    name = given if isinstance(given, str) else given.id
    cells = [
        _world_cells(given, split, num, bench)
        if isinstance(given, str)
        else _table_cells(given, split, num, bench, seed)
        for split, num in zip(_SPLITS, (train, test), strict=True)
    ]
    seen = {text for own in cells[0] for text in own}
    cells[1] = [[text for text in own if text not in seen] for own in cells[1]]
    found = []
    for split, own in zip(_SPLITS, cells, strict=True):
        quarter = min(*(len(part) // 2 for part in own[:2]), *map(len, own[2:]))
        if quarter < FEWEST:
            raise BadInput(
                f"the {split} split has too few texts of some combination of the attributes: "
                f"{[len(part) for part in own]} biased positive, biased negative, and balanced"
                f" ones of each of the four; {FEWEST} of each are needed.",
                key=key,
                value=name,
            )
        one, other = (part[: 2 * quarter] for part in own[:2])
        a, b, c, d = (part[:quarter] for part in own[2:])
        found.append(PairTexts((one, other), (a, b, c, d)))
    return found[0], found[1]


@register
class ScrConfig(TaskMetric):
    """Which attributes coincide in which texts, and how many latents are ablated."""

    papers = (
        Paper("Karvonen et al. 2025", "https://arxiv.org/abs/2503.09532", "SCR"),
        Paper("Marks et al. 2024", "https://arxiv.org/abs/2403.19647", "SHIFT"),
        Paper("Chanin 2026", "https://arxiv.org/abs/2605.18229", "reliability"),
    )
    summary = "Take latents of a spurious attribute away: is a biased probe repaired?"
    survey = ("Spurious Correlation Removal",)

    name: Literal["scr"] = "scr"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    pairs: tuple[str | AttributePair, ...] = ()
    """``world:NAME``, or tables with two attributes; none: the world's own, on the world."""

    sizes: tuple[int, ...] = Field(default=SIZES, min_length=1)
    """Numbers of latents that are ablated; those above the width of a coder are left out."""

    train_texts: int = Field(default=200, ge=4 * FEWEST, multiple_of=4)
    """Biased and as many balanced texts per repeat to choose latents and fit on."""

    test_texts: int = Field(default=120, ge=4 * FEWEST, multiple_of=4)
    """Balanced texts per repeat to score on."""

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
        return [*SCORES.values(), *ACCURACIES.values()]

    def check(self, bench: Bench) -> None:
        check_has_sets(self.pairs, bench, self.name, "pairs")
        if min(self.sizes) < 1:
            raise BadInput("numbers of latents are at least 1.", key="sizes", value=self.sizes)

    def files(self, relative_to: Path) -> list[Path]:
        return local_files(*self.pairs, relative_to=relative_to)

    def measure(self, bench: Bench, on_progress: OnProgress) -> dict[str, Measured]:
        reasons = unsuitable_coders(bench, self.sizes)
        if len(reasons) == len(bench.coders):
            return {name: Measured(self.absent(reason)) for name, reason in reasons.items()}
        pairs = [
            self._read(given, bench, place) for place, given in enumerate(self.pairs or WORLD_PAIRS)
        ]
        coders: dict[str, SparseCoder[Any]] = {
            name: coder for name, coder in bench.coders.items() if name not in reasons
        }
        floor = floors(coders, torch.cat([pair.sample for pair in pairs]), self.seed)
        coders |= floor.coders
        found: dict[str, list[list[Repaired]]] = {name: [] for name in coders}
        total = len(coders) * len(pairs)
        for done, (pair, (name, coder)) in enumerate(product(pairs, coders.items())):
            on_progress(done, total)
            sizes, W_dec = sizes_for(self.sizes, coder.d_sae), unit_decoder(coder)
            z_train, z_test = (pooled_codes(coder, side) for side in (pair.train, pair.test))
            found[name].append(
                [
                    repair_latents(repeat, z_train[repeat.train], z_test[repeat.test], W_dec, sizes)
                    for repeat in pair.repeats
                ]
            )
        on_progress(total, total)
        shared = _shared_rows(pairs)
        return {
            name: Measured(
                self.absent(reasons[name])
                if name in reasons
                else self._rows(coder, pairs, found[name], found[floor.of[name]]) + shared
            )
            for name, coder in bench.coders.items()
        }

    def _read(self, given: str | AttributePair, bench: Bench, place: int) -> "_Pair":
        sides = pair_texts(
            given,
            bench,
            train=self.train_texts * self.repeats,
            test=self.test_texts * self.repeats,
            seed=self.seed,
            key=f"pairs.{place}",
        )
        train, test = (bench.reader.read(s.flat, max_tokens=self.max_tokens) for s in sides)
        found = repeats(train.pooled_x(), test.pooled_x(), self.repeats, self.probe, seed=self.seed)
        name = given if isinstance(given, str) else given.id
        return _Pair(name, train, test, found, floor_sample(train))

    def _rows(
        self,
        coder: SparseCoder[Any],
        pairs: "list[_Pair]",
        own: list[list[Repaired]],
        floor: list[list[Repaired]],
    ) -> list[Measurement]:
        sizes = sizes_for(self.sizes, coder.d_sae)
        rows = []
        for who, kind, found in (
            *((kind, kind, own) for kind in KINDS),
            ("random_sae", "metric_direction", floor),
        ):
            values, chosen = _values(found, kind), _values(found, "num_chosen")
            rows += [
                SCORES[who].row(
                    over_repeats(values[..., i].mean(0)),
                    n=size,
                    chosen=float(chosen[..., i].mean()),
                    guarded=sum(_is_guarded(r, kind) for pair in pairs for r in pair.repeats),
                )
                for i, size in enumerate(sizes)
            ]
        for pair, found in zip(pairs, own, strict=True):
            is_first = [bool(repeat.biased[0] < repeat.biased[1]) for repeat in pair.repeats]
            for kind in KINDS:
                values = _values([found], kind)[0]
                rows += [
                    SCORES[f"{kind}_of_one"].row(
                        over_repeats(values[:, i]),
                        n=size,
                        dataset=pair.name,
                        share_of_direction_1=float(np.mean(is_first)),
                    )
                    for i, size in enumerate(sizes)
                ]
        return rows


class _Pair(NamedTuple):
    name: str
    train: TextActivations
    test: TextActivations
    repeats: list[Repeat]
    sample: Float[Tensor, "tokens d_in"]


def _is_guarded(repeat: Repeat, kind: str) -> bool:
    """Whether the score is 0 because there was nothing to repair."""
    by_direction = (repeat.clean - repeat.biased < LEAST_GAP).double()
    if kind == "metric_direction":
        return bool(counted(by_direction, repeat.biased) > 0)
    return bool(by_direction[0 if kind == "direction_1" else 1])


def _values(found: list[list[Repaired]], kind: str) -> Float[np.ndarray, "pairs repeats sizes"]:
    return np.array([[getattr(one, kind).tolist() for one in repeat] for repeat in found])


def _shared_rows(pairs: list[_Pair]) -> list[Measurement]:
    """What needs no coder."""
    means = np.array([[repair_means(repeat) for repeat in pair.repeats] for pair in pairs])
    rows = [SCORES["difference_in_means"].row(over_repeats(means.mean(0)))]
    for pair in pairs:
        for who, definition in ACCURACIES.items():
            values = np.array([getattr(repeat, who).tolist() for repeat in pair.repeats])
            rows += [
                definition.row(over_repeats(values[:, i]), dataset=pair.name, direction=i + 1)
                for i in range(2)
            ]
    return rows


def _part(
    num_texts: int, num_repeats: int, place: int
) -> tuple[Int[Tensor, " members"], Int[Tensor, "3 rows"]]:
    """Places of the texts of one repeat, and where among them each probe's rows are."""
    biased = part_of(num_texts // 2, 2, num_repeats, place)
    balanced = part_of(num_texts - num_texts // 2, 4, num_repeats, place) + num_texts // 2
    half, quarter = len(biased) // 2, len(balanced) // 4
    half = min(half, 2 * quarter)
    both, neither, target, spurious = (2 * half + torch.arange(4 * quarter)).view(4, -1)
    rows = torch.stack(
        [
            torch.arange(2 * half),
            torch.cat([both, target, neither, spurious]),
            torch.cat([both, spurious, neither, target]),
        ]
    )
    kept = torch.cat([own[:half] for own in biased.view(2, -1)])
    return torch.cat([kept, balanced]), rows


def _world_cells(name: str, split: TableSplit, num: int, bench: Bench) -> list[list[str]]:
    """Biased texts, positive and negative; balanced ones of each combination, as in `PairTexts`."""
    from sae_lib.synthetic.world.sets.texts import SPURIOUS_PAIRS, scr_rows

    known = name.removeprefix(WORLD_PREFIX)
    if not name.startswith(WORLD_PREFIX) or known not in SPURIOUS_PAIRS:
        raise UnknownName("pair of attributes", name, [WORLD_PREFIX + n for n in SPURIOUS_PAIRS])
    pair = SPURIOUS_PAIRS[known]
    biased: list[list[str]] = [[], []]
    for row in scr_rows(known, "biased", split, num, bench.world):
        biased[1 - row["label"]].append(row[pair.text])
    balanced: list[list[str]] = [[], [], [], []]
    for row in scr_rows(known, "target", split, num, bench.world):
        is_target = row[pair.target] == pair.positive
        is_spurious = row[pair.spurious] == pair.with_positive
        balanced[_cell(is_target, is_spurious)].append(row[pair.text])
    return [*biased, *balanced]


def _table_cells(
    cfg: AttributePair, split: TableSplit, num: int, bench: Bench, seed: int
) -> list[list[str]]:
    """Biased texts from the beginning of a combination, balanced ones from its end."""
    wanted = (TEXT, TARGET, SPURIOUS)
    found = grouped_rows(cfg, wanted, split, bench, (TARGET, SPURIOUS), num)
    cells: list[list[str]] = [[], [], [], []]
    for (target, spurious), texts in found.items():
        if target in cfg.target and spurious in cfg.spurious:
            place = _cell(target == cfg.target[0], spurious == cfg.spurious[0])
            cells[place] = shuffled(texts, seed + place)
    balanced = [texts[::-1][: num // 4] for texts in cells]
    return [*(texts[: num // 2] for texts in cells[:2]), *balanced]


def _cell(is_target: bool, is_spurious: bool) -> int:
    return (0 if is_target else 1) if is_target == is_spurious else (2 if is_target else 3)
