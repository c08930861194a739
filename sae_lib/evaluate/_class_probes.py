"""Probes on pooled activations, and what they say when latents are taken out of the activations.

    texts      every class has equally many; a probe tells one class from as many of the others
    probe      logistic regression by AdamW with an L1 penalty on the weights; the epoch with the
               best accuracy on a validation part of the training texts is kept
    ablation   x' = decode(z, chosen latents 0) + (x - decode(z)) at every token

All coders here decode linearly, so ``x' = x - sum_l z_l W_dec_l`` over the chosen latents, and the
same holds of means over the tokens of a text. A probe's score of ablated texts therefore needs only
its score of the texts and the pooled code:

    <w, mean x'> = <w, mean x> - sum_l (mean z_l) <w, W_dec_l>

so one pass over the tokens gives the result of every number of latents. Means are over the kept
tokens alone, by the reader's mask; nothing is inferred from values that happen to be 0.

Differs from SAEBench: the epoch is chosen on validation texts, not on those that are scored;
activations are centred and divided by one number before a probe is fitted, so that learning rate
and penalty mean the same at any scale; as there are fewer texts, there are more epochs at a larger
learning rate (1,000 steps of 3e-3 instead of 5,000 of 1e-3); negatives are drawn once and used in
every comparison; what is decoded at masked positions plays no part.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sae_lib.activations.task_tables import WORLD_PREFIX, TableConfig, TableSplit, table_rows
from sae_lib.apply.reading import encoder
from sae_lib.apply.tasks import MAX_CLASSES
from sae_lib.config import Config
from sae_lib.errors import BadInput, NotApplicable
from sae_lib.evaluate._baselines import BaselineCoder, random_coder
from sae_lib.evaluate._moments import Estimate
from sae_lib.evaluate.bench import Bench
from sae_lib.evaluate.reader import TextActivations
from sae_lib.saes.base import SparseCoder

TEXT, LABEL, BALANCE = "text", "label", "balance"

FEWEST = 4
"""Texts of a class and split below which there is nothing to measure."""

FLOOR_TEXTS = 64
"""Training texts from which a random coder takes its centre and its number of active latents."""

SIZES = (2, 5, 10, 20, 50, 100, 500)
"""Numbers of latents that are ablated (SAEBench)."""


class ClassSet(TableConfig):
    """Texts with classes; columns ``text``, ``label`` and, where asked for, ``balance``."""

    classes: tuple[str, ...] = ()
    """Labels that count; none: the first five in order."""


class ProbeRecipe(Config):
    """How a probe is fitted."""

    epochs: int = Field(default=100, gt=0)
    """Passes over the training texts."""

    batch_texts: int = Field(default=16, gt=0)
    """Texts per step; it governs how much spurious correlation a probe learns (SAEBench)."""

    lr: float = Field(default=3e-3, gt=0)
    """Learning rate of AdamW, on activations with coordinates of mean square 1."""

    l1: float = Field(default=1e-3, ge=0)
    """Penalty per unit of the sum of the absolute weights, on the same scale."""

    validation_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of the training texts that chooses the epoch."""


class ClassTexts(NamedTuple):
    """Texts of some classes, equally many of each, class by class."""

    name: str
    classes: tuple[str, ...]
    train: list[list[str]]
    test: list[list[str]]


class Probes(NamedTuple):
    """Linear probes of raw activations: positive where ``x @ weights + bias`` is above 0."""

    weights: Float[Tensor, "probes d_in"]
    bias: Float[Tensor, " probes"]

    def scores(self, x: Float[Tensor, "texts d_in"]) -> Float[Tensor, "texts probes"]:
        """Decision values, float64."""
        return x.double() @ self.weights.mT + self.bias


def world_class_sets() -> tuple[ClassSet, ...]:
    """The world's sets of many classes: professions in biographies, products in reviews."""
    return tuple(
        ClassSet(id=WORLD_PREFIX + name, columns={TEXT: text, LABEL: label, BALANCE: balance})
        for name, text, label, balance in (
            ("tpp-profession", "hard_text", "profession_name", "gender"),
            ("tpp-product", "text", "category_name", "rating"),
        )
    )


def class_set(given: str | ClassSet) -> ClassSet:
    """The set that a name stands for; a file or hub id has columns ``text`` and ``label``."""
    if not isinstance(given, str):
        return given
    known = {found.id: found for found in world_class_sets()}
    return known.get(given) or ClassSet(id=given)


def class_texts(
    given: str | ClassSet, bench: Bench, *, train: int, test: int, seed: int, key: str
) -> ClassTexts:
    """At most ``train`` and ``test`` texts of each class, in an order drawn with ``seed``.

    Raises `BadInput`, naming ``key``, for fewer than two classes or hardly any text of one.
    """
    if isinstance(given, str) and _is_world_task(given):
        name = given.removeprefix(WORLD_PREFIX)
        return _world_task(name, given, bench, train, test)
    cfg = class_set(given)
    by_class = {
        "train": _by_class(cfg, "train", bench, train, seed),
        "test": _by_class(cfg, "test", bench, test, seed),
    }
    classes = cfg.classes or tuple(in_order(set(by_class["train"])))[:MAX_CLASSES]
    if len(classes) < 2:
        raise BadInput(
            f"there must be two classes to tell apart; found {', '.join(classes) or 'none'}.",
            key=key,
            value=cfg.id,
        )
    for split, found in by_class.items():
        for name in classes:
            if len(found.get(name, ())) < FEWEST:
                raise BadInput(
                    f"class {name!r} needs at least {FEWEST} texts in the {split} split and has"
                    f" {len(found.get(name, ()))}; classes there: {', '.join(in_order(found))}.",
                    key=key,
                    value=cfg.id,
                )
    return _class_texts(cfg.id, classes, by_class["train"], by_class["test"])


def in_order(names: Mapping[str, Any] | set[str]) -> list[str]:
    """By number where all are numbers, else by the alphabet."""
    given = sorted(names)
    are_numbers = all(name.lstrip("-").isdecimal() for name in given)
    return sorted(given, key=int) if are_numbers else given


def grouped_rows(
    cfg: TableConfig,
    wanted: Sequence[str],
    split: TableSplit,
    bench: Bench,
    group: Sequence[str],
    num: int,
) -> dict[tuple[str, ...], list[str]]:
    """Texts by the values (as strings) of the columns ``group``, in the order of the source.

    Of a set of the world only as many rows are made as give ``num`` texts of every group.
    """
    is_world = cfg.id.startswith(WORLD_PREFIX)
    limit = min(cfg.max_rows, 12 * num) if is_world else cfg.max_rows
    while True:
        rows = table_rows(
            cfg.but(max_rows=limit),
            wanted,
            split,
            world=bench.world,
            relative_to=bench.relative_to,
        )
        found: dict[tuple[str, ...], list[str]] = {}
        for row in rows:
            text = row[TEXT]
            if not isinstance(text, str) or not text.strip():
                raise BadInput("a row has no text.", key=f"columns.{TEXT}", value=text)
            found.setdefault(tuple(str(row[name]) for name in group), []).append(text)
        is_enough = min(map(len, found.values()), default=num) >= num
        if is_enough or len(rows) < limit or limit == cfg.max_rows:
            return found
        limit = min(2 * limit, cfg.max_rows)


def shuffled(texts: Sequence[str], seed: int) -> list[str]:
    """Without what comes twice, in an order drawn with ``seed``."""
    once = list(dict.fromkeys(texts))
    return [once[i] for i in np.random.default_rng(seed).permutation(len(once))]


def in_turn(groups: Sequence[Sequence[str]]) -> list[str]:
    """The first of each group, then the second of each, until one group ends."""
    return [text for round_ in zip(*groups, strict=False) for text in round_]


def one_against_rest(
    num_classes: int, per_class: int, *, seed: int
) -> Int[Tensor, "probes members"]:
    """Places of texts that lie class by class: for each class all of its own, then as many others.

    The others are drawn with ``seed``, evenly from the other classes.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for own in range(num_classes):
        others = [other for other in range(num_classes) if other != own]
        drawn = {other: rng.permutation(per_class) for other in others}
        first = rng.permutation(len(others))
        slots = [others[first[slot % len(others)]] for slot in range(per_class)]
        rest = [
            other * per_class + drawn[other][slot // len(others)]
            for slot, other in enumerate(slots)
        ]
        rows.append([*range(own * per_class, (own + 1) * per_class), *rest])
    return torch.tensor(rows, dtype=torch.long)


def part_of(num_texts: int, num_groups: int, num_parts: int, place: int) -> Int[Tensor, " members"]:
    """Places of the texts of part ``place``, where texts lie group by group, groups alike in size.

    Parts have no text in common and equally many of each group.
    """
    per_group = num_texts // num_groups
    size = per_group // num_parts
    if size < FEWEST:
        raise BadInput(
            f"{num_parts} repeats need {FEWEST * num_parts} texts of each class; there are"
            f" {per_group}.",
            key="repeats",
            value=num_parts,
        )
    places = torch.arange(num_groups * per_group).view(num_groups, per_group)
    return places[:, place * size : (place + 1) * size].flatten()


def fit_probes(
    x: Float[Tensor, "texts d_in"],
    rows: Int[Tensor, "probes members"],
    recipe: ProbeRecipe,
    *,
    seed: int,
) -> Probes:
    """A probe per row of ``rows``, whose first half are places of positives, all fitted at once.

    The epoch with the best validation accuracy is kept, among equals that of least cross-entropy.
    Deterministic in ``seed``.
    """
    num, half = len(rows), rows.shape[1] // 2
    used = rows.flatten().unique()
    centre = x[used].double().mean(0)
    scale = (x[used].double() - centre).square().mean().sqrt().clamp_min(1e-12)
    u = (x.double() - centre) / scale
    generator = torch.Generator().manual_seed(seed)
    validation, training = _validation_slots(half, recipe.validation_share, generator)
    label = (torch.arange(2 * half) < half).double()
    weights = torch.empty(num, x.shape[1], dtype=torch.float64)
    bound = x.shape[1] ** -0.5
    weights.uniform_(-bound, bound, generator=generator).requires_grad_()
    bias = torch.zeros(num, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.AdamW([weights, bias], lr=recipe.lr)

    def logits(slots: Int[Tensor, " slots"]) -> Float[Tensor, "probes slots"]:
        return torch.einsum("psd,pd->ps", u[rows[:, slots]], weights) + bias[:, None]

    best = Probes(weights.detach().clone(), bias.detach().clone())
    best_accuracy = torch.full((num,), -1.0, dtype=torch.float64)
    best_loss = torch.full((num,), torch.inf, dtype=torch.float64)
    for _ in range(recipe.epochs):
        order = training[torch.randperm(len(training), generator=generator)]
        for slots in order.split(recipe.batch_texts):
            target = label[slots].expand(num, -1)
            loss = F.binary_cross_entropy_with_logits(logits(slots), target, reduction="none")
            # a sum over probes: each has its own gradient, as if it were fitted alone
            total = loss.mean(1).sum() + recipe.l1 * weights.abs().sum()
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
        with torch.no_grad():
            found, target = logits(validation), label[validation].expand(num, -1)
            accuracy = ((found > 0) == (target > 0)).double().mean(1)
            loss = F.binary_cross_entropy_with_logits(found, target, reduction="none").mean(1)
            is_better = (accuracy > best_accuracy) | (
                (accuracy == best_accuracy) & (loss < best_loss)
            )
            best.weights[is_better], best.bias[is_better] = weights[is_better], bias[is_better]
            best_accuracy[is_better], best_loss[is_better] = accuracy[is_better], loss[is_better]
    raw = best.weights / scale
    return Probes(raw, best.bias - raw @ centre)


def accuracies(
    scores: Float[Tensor, "*sizes texts probes"], rows: Int[Tensor, "probes members"]
) -> Float[Tensor, "*sizes probes"]:
    """Accuracy of each probe on its own rows, whose first half are positives; in [0, 1]."""
    by_probe = scores.movedim(-1, -2)
    own = by_probe.gather(-1, rows.expand(*by_probe.shape[:-1], -1)) > 0
    half = rows.shape[1] // 2
    right = torch.cat([own[..., :half], ~own[..., half:]], dim=-1)
    return right.double().mean(-1)


def differences(
    values: Float[Tensor, "texts columns"], rows: Int[Tensor, "probes members"]
) -> Float[Tensor, "probes columns"]:
    """Mean of the positives minus mean of the negatives, per probe; float64."""
    half = rows.shape[1] // 2
    return torch.stack(
        [values[own[:half]].double().mean(0) - values[own[half:]].double().mean(0) for own in rows]
    )


def strongest(effects: Float[Tensor, " d_sae"], num: int) -> Int[Tensor, " chosen"]:
    """The ``num`` largest effects that are not 0, or all of these, the largest first.

    Values count, not sizes: a negative effect comes after all positive ones. Ties go to the
    smaller number.
    """
    order = effects.argsort(descending=True, stable=True)
    return order[effects[order] != 0][:num]


def ablated_scores(
    scores: Float[Tensor, "texts probes"],
    z: Float[Tensor, "texts d_sae"],
    written: Float[Tensor, "d_sae probes"],
    chosen: Int[Tensor, " chosen"],
    sizes: Sequence[int],
) -> Float[Tensor, "sizes texts probes"]:
    """Scores of the texts without the first ``size`` chosen latents, for each of ``sizes``.

    ``z`` is pooled over tokens like the activations, ``written`` holds <W_dec_l, w> of each probe.
    """
    left, done, found = scores, 0, []
    for size in sizes:
        added = chosen[done:size]
        left = left - z[:, added].double() @ written[added]
        found.append(left)
        done = max(done, size)
    return torch.stack(found)


def without_direction(
    x: Float[Tensor, "texts d_in"], like: Float[Tensor, " d_in"], away: Float[Tensor, " d_in"]
) -> Float[Tensor, "texts d_in"]:
    """``x`` moved along ``away`` until it is as far along it as ``like``."""
    unit = away / away.norm().clamp_min(1e-12)
    return x - ((x - like) @ unit)[:, None] * unit


def pooled_codes(coder: SparseCoder[Any], found: TextActivations) -> Float[Tensor, "texts d_sae"]:
    """Mean codes over each text's kept tokens, as if every decoder row had length 1."""
    with torch.no_grad():
        z = found.pooled(encoder(coder), coder.d_sae)
        return z * coder.W_dec.detach().float().cpu().norm(dim=1)


def unit_decoder(coder: SparseCoder[Any]) -> Float[Tensor, "d_sae d_in"]:
    """Decoder rows of length 1, float64, that go with `pooled_codes`; a row of zeros stays."""
    return F.normalize(coder.W_dec.detach().double().cpu(), dim=1)


def unsuitable(coder: SparseCoder[Any], width: int) -> str | None:
    """Why latents of the coder cannot be taken out of activations of ``width``, if so."""
    if coder.d_in != width:
        return f"the coder reads {coder.d_in} values where the site has {width}"
    # a transcoder's config has a width to write at, even where it is that of the site it reads
    if coder.d_out != width or "d_out" in type(coder.cfg).model_fields:
        return "the coder writes at another place than it reads, so nothing can be ablated there"
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        z = torch.rand(2, coder.d_sae, generator=generator).to(coder.W_dec)
        linear = z @ coder.W_dec
        gap = coder.decode(z) - coder.decode(torch.zeros_like(z)) - linear
        if gap.norm() > 1e-3 * linear.norm().clamp_min(1e-12):
            return "the coder's decoder is not linear in its latents"
    return None


def unsuitable_coders(bench: Bench, sizes: Sequence[int]) -> dict[str, str]:
    """By name of such a coder why none of ``sizes`` latents can be taken out of activations."""
    found = {}
    for name, coder in bench.coders.items():
        reason = unsuitable(coder, bench.model.width(bench.site))
        if reason is None and not sizes_for(sizes, coder.d_sae):
            reason = f"the coder has {coder.d_sae} latents, fewer than any of sizes={list(sizes)}"
        if reason is not None:
            found[name] = reason
    return found


class Floors(NamedTuple):
    """Random coders, one for each width and number of active latents, by coder."""

    of: dict[str, str]
    """Name of the floor of each coder."""
    coders: dict[str, BaselineCoder]


def floors(
    coders: Mapping[str, SparseCoder[Any]], x: Float[Tensor, "tokens d_in"], seed: int
) -> Floors:
    """What learned nothing, for every coder; ``x`` is training activations."""
    of, found = {}, {}
    for name, coder in coders.items():
        floor = random_coder(coder, x, seed=seed)
        of[name] = f"random {floor.cfg.d_sae} {floor.cfg.num_on}"
        found.setdefault(of[name], floor)
    return Floors(of, found)


def floor_sample(found: TextActivations) -> Float[Tensor, "tokens d_in"]:
    """Activations of some of the texts, spread over all of them."""
    step = max(1, found.num_texts // FLOOR_TEXTS)
    return found.x[found.text % step == 0].clone()


def over_repeats(
    values: Float[np.ndarray, " repeats"] | Sequence[float], unit: str = "repeats"
) -> Estimate:
    """Mean, and its standard error over repeats with texts and probes of their own."""
    given = np.asarray(values, dtype=np.float64)
    error = float(given.std(ddof=1) / np.sqrt(len(given))) if len(given) > 1 else None
    return Estimate(float(given.mean()), error, len(given), unit)


def sizes_for(sizes: Sequence[int], d_sae: int) -> list[int]:
    """Those that a coder of this width has latents for, ascending and once each."""
    return [n for n in sorted(set(sizes)) if n <= d_sae]


def check_has_sets(given: Sequence[Any], bench: Bench, what: str, kind: str) -> None:
    """Raise `NotApplicable` where nothing is named and the world brings nothing either."""
    named = [item if isinstance(item, str) else item.id for item in given]
    if bench.world is None and (not named or any(i.startswith(WORLD_PREFIX) for i in named)):
        problem = "are of the bundled world" if named else "are not named"
        raise NotApplicable(
            what, f"its {kind} {problem}, and the model does not read that world's language."
        )


def _is_world_task(name: str) -> bool:
    from sae_lib.synthetic.world import tasks

    return name.removeprefix(WORLD_PREFIX) in tasks.TASKS and name.startswith(WORLD_PREFIX)


def _world_task(name: str, id: str, bench: Bench, train: int, test: int) -> ClassTexts:
    from sae_lib.synthetic.world import tasks

    known = tasks.get_task(name).classes
    classes = tuple(map(str, known[:MAX_CLASSES]))
    sides: list[dict[str, list[str]]] = []
    for split, wanted in (("train", train), ("test", test)):
        # a few more than are wanted, since a stream may say the same thing twice
        num = (wanted + max(2, wanted // 10)) * len(known)
        texts, labels = tasks.task_documents(name, split, num, cfg=bench.world)
        by_class: dict[str, list[str]] = {}
        for text, label in dict(zip(texts, labels, strict=True)).items():
            by_class.setdefault(str(known[label]), []).append(text)
        sides.append({label: found[:wanted] for label, found in by_class.items()})
    return _class_texts(id, classes, *sides)


def _by_class(
    cfg: ClassSet, split: TableSplit, bench: Bench, wanted: int, seed: int
) -> dict[str, list[str]]:
    is_balanced = BALANCE in cfg.columns
    columns = (TEXT, LABEL, BALANCE) if is_balanced else (TEXT, LABEL)
    per_group = -(-wanted // 2) if is_balanced else wanted
    cells = grouped_rows(cfg, columns, split, bench, columns[1:], per_group)
    by_class: dict[str, list[list[str]]] = {}
    for place, (cell, texts) in enumerate(sorted(cells.items())):
        by_class.setdefault(cell[0], []).append(shuffled(texts, seed + place))
    return {name: in_turn(groups)[:wanted] for name, groups in by_class.items()}


def _class_texts(
    name: str,
    classes: tuple[str, ...],
    train: Mapping[str, list[str]],
    test: Mapping[str, list[str]],
) -> ClassTexts:
    """Equally many texts of each class; a test text that is also a training text is left out."""
    seen = {text for label in classes for text in train[label]}
    unseen = {label: [text for text in test[label] if text not in seen] for label in classes}
    for label in classes:
        if len(unseen[label]) < FEWEST:
            raise BadInput(
                f"class {label!r} has {len(unseen[label])} test texts that are not among the"
                f" training texts; it needs {FEWEST}.",
                value=name,
            )
    return ClassTexts(
        name, classes, *(_equally([side[label] for label in classes]) for side in (train, unseen))
    )


def _equally(by_class: Sequence[list[str]]) -> list[list[str]]:
    fewest = min(map(len, by_class))
    return [texts[:fewest] for texts in by_class]


def _validation_slots(
    half: int, share: float, generator: torch.Generator
) -> tuple[Int[Tensor, " validation"], Int[Tensor, " training"]]:
    """A share of the positives and as many negatives, at least one; the rest."""
    num = min(max(1, round(share * half)), half - 1)
    drawn = [torch.randperm(half, generator=generator) + offset for offset in (0, half)]
    validation = torch.cat([slots[:num] for slots in drawn])
    return validation, torch.cat([slots[num:] for slots in drawn])
