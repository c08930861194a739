"""RAVEL: can latents change one attribute of an entity and leave its others as they are?

At the last token of the entity (or at each of its tokens: ``positions``), for a base and a source
prompt with codes f_b and f_s,

    x'          = decode((1 - mu) f_b + mu f_s)          mu in {0, 1}^d_sae
    cause       = share of pairs that ask for the attribute and are answered with the source's value
    isolation   = share of pairs that ask for another one and are answered with the base's value
    disentangle = (cause + isolation) / 2,  averaged over attributes, then over types of entities

mu is learned (MDBM), one for each type and attribute: sigmoid(a / T), a = 0 at first, T from 1 to
1e-4 in equal steps of its logarithm; the loss is the cross-entropy of the expected answer over
cause and isolation pairs alike; mu = [a > 0] afterwards. Answers are generated greedily and
compared word by word. Doing nothing and exchanging everything both score 0.5 where they do not
break the model; `no_swap` and `swap_all` say what they score here.

Source: Huang et al. 2024, sections 2-4; Karvonen et al. 2025 (SAEBench), section 4 and appendix.

Differs from SAEBench: the kind of a pair is stored, and not guessed from first tokens; masks are
trained on all tokens of the answer unless ``train_on`` says ``first_token``; no two entities that
meet in training meet in a test pair; base and source differ in what is asked for, too; source
prompts are answered right as well. As there, the SAE's error is left out unless ``with_error``. On
the bundled world all tokens of the entity are exchanged by default: that model finds its facts with
the whole name, and exchanging the last token's activation, even all of it, changes no answer.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from sae_lib.activations.task_tables import TableConfig, table_files
from sae_lib.errors import NotApplicable
from sae_lib.evaluate._moments import Estimate
from sae_lib.evaluate._ravel_interchange import Interchange
from sae_lib.evaluate._ravel_masks import (
    Change,
    orthonormal,
    random_masks,
    rotated,
    swapped,
    train_masks,
)
from sae_lib.evaluate._ravel_pairs import Prompt, read_prompts
from sae_lib.evaluate._ravel_splits import FEWEST_PAIRS, HELD_OUT, SPLITS, Pairs, draw_masks
from sae_lib.evaluate.base import Definition, register
from sae_lib.evaluate.bench import Bench, Measured, OnProgress, TaskMetric
from sae_lib.papers import Paper
from sae_lib.saes.base import SparseCoder
from sae_lib.warehouse.rows import Measurement

WORLD_SETS = ("world:ravel-person", "world:ravel-city")

TEXT = {
    "ravel_disentangle": "(cause + isolation) / 2, mean over attributes, then types",
    "ravel_cause": "share of pairs answered with the source's value, means likewise",
    "ravel_isolation": "share of pairs that keep the base's value, means likewise",
}
HOW = {
    "mdbm": "with a learned binary mask over latents, on entities that did not meet in training",
    "mdbm_new_entities": "with a learned binary mask, on entities not trained on",
    "mdbm_new_templates": "with a learned binary mask, on wordings not trained on",
    "no_swap": "of the base's reconstruction: nothing is exchanged",
    "swap_all": "with all latents exchanged",
    "random_mask": "with as many latents as learned, drawn from those that differ: the floor",
    "mdas": "with a learned rotation of the activation and a mask over it: the skyline",
    "full_swap": "with the whole activation exchanged",
    "type_of_one": "with a learned binary mask; of one type of entities",
    "attribute_of_one": "with a learned binary mask; of one attribute",
}
SCORES = {
    (name, how): Definition(name, how, f"{text}; {told}", "higher", 0.0, 1.0)
    for how, told in HOW.items()
    for name, text in TEXT.items()
}
MASK = Definition(
    "ravel_mask_size",
    "mean_of_attributes",
    "latents in the mask that differ in some training pair, mean over attributes",
    "neither",
    0.0,
)
ANSWERED = Definition(
    "ravel_prompts_answered",
    "unmodified",
    "share of prompts that the unmodified model answers right; the others are not used",
    "higher",
    0.0,
    1.0,
)


class Shares(NamedTuple):
    """Shares of right answers per mask, with their standard errors over pairs."""

    cause: Float[Tensor, " masks"]
    isolation: Float[Tensor, " masks"]
    cause_error: Float[Tensor, " masks"]
    isolation_error: Float[Tensor, " masks"]
    num: Int[Tensor, " masks"]
    """Pairs of both kinds."""

    @property
    def disentangle(self) -> Float[Tensor, " masks"]:
        """The mean of the two."""
        return (self.cause + self.isolation) / 2

    @property
    def disentangle_error(self) -> Float[Tensor, " masks"]:
        return (self.cause_error**2 + self.isolation_error**2).sqrt() / 2


def shares(
    is_right: Bool[Tensor, " pairs"],
    is_cause: Bool[Tensor, " pairs"],
    group: Int[Tensor, " pairs"],
    num_masks: int,
) -> Shares:
    """Cause and isolation of each mask; every mask needs pairs of both kinds."""
    found = []
    for kind in (is_cause, ~is_cause):
        n = torch.bincount(group[kind], minlength=num_masks).double()
        right = torch.bincount(group[kind & is_right], minlength=num_masks).double()
        mean = right / n
        found.append((mean, (mean * (1 - mean) / (n - 1).clamp_min(1)).sqrt()))
    (cause, cause_error), (isolation, isolation_error) = found
    num = torch.bincount(group, minlength=num_masks)
    return Shares(cause, isolation, cause_error, isolation_error, num)


@register
class RavelConfig(TaskMetric):
    """Exchange of one attribute of an entity by a learned mask over latents."""

    papers = (
        Paper("Huang et al. 2024", "https://arxiv.org/abs/2402.17700", "2-4"),
        Paper("Karvonen et al. 2025", "https://arxiv.org/abs/2503.09532", "4, appendix"),
    )
    summary = "can latents change one attribute of an entity and no other?"
    survey = ("RAVEL",)

    name: Literal["ravel"] = "ravel"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    prompts: tuple[TableConfig, ...] = ()
    """Tables of prompts with entity, attribute, value (or several), prompt and template, one table
    per type of entities; by default the world's people and cities."""

    positions: Literal["last", "all"] | None = None
    """Which tokens of the entity are exchanged; by default the last, and all on the bundled world.
    With all, base and source have as many tokens."""

    with_error: bool = False
    """Whether the error of the base's reconstruction is added back."""

    train_on: Literal["answer", "first_token"] = "answer"
    """Tokens of the expected answer that masks are trained toward."""

    train_pairs: int = Field(default=64, ge=FEWEST_PAIRS)
    """Pairs of each kind that a mask is trained on, at most."""

    test_pairs: int = Field(default=32, ge=FEWEST_PAIRS)
    """Pairs of each kind that a mask is scored on, at most, in each of the splits."""

    epochs: int = Field(default=4, gt=0)
    """How often each training pair is seen."""

    batch_pairs: int = Field(default=16, gt=0)
    """Training pairs of one mask per step."""

    lr: float = Field(default=1e-2, gt=0)
    """Step size of Adam."""

    mdas: bool = True
    """Whether the skyline is trained: a rotation per mask, without any coder."""

    test_share: float = Field(default=0.25, gt=0, lt=1)
    """Share of entities and of templates kept from training, of tables other than the world's."""

    held_out: float = Field(default=0.3, gt=0, lt=1)
    """Share of pairs of training entities that meet in tests alone."""

    max_entities: int = Field(default=40, gt=1)
    """Entities of each side of a table, at most."""

    max_templates: int = Field(default=6, gt=0)
    """Wordings of each attribute and side, at most."""

    max_new_tokens: int | None = Field(default=None, gt=0)
    """Tokens to generate; by default as many as the longest answer has."""

    batch_rows: int = Field(default=256, gt=0)
    """Prompts per forward pass."""

    seed: int = Field(default=0, ge=0)
    """Decides which pairs are drawn, their order, and the random masks and rotations."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        return [*SCORES.values(), MASK, ANSWERED]

    def files(self, relative_to: Path) -> list[Path]:
        return [file for table in self.prompts for file in table_files(table, relative_to)]

    def check(self, bench: Bench) -> None:
        if not bench.model.has_lm_head or not bench.model.is_causal:
            raise NotApplicable("ravel", "the model does not continue texts.")
        if not self.prompts and bench.world is None:
            raise NotApplicable(
                "ravel", "no prompts are named, and only the bundled world brings its own."
            )

    def measure(self, bench: Bench, on_progress: OnProgress) -> dict[str, Measured]:
        todo = len(bench.coders) + 2
        task = _Task(self, bench)
        on_progress(1, todo)
        shared = task.without_coder()
        on_progress(2, todo)
        found = {}
        for done, (name, coder) in enumerate(bench.coders.items(), 3):
            if coder.d_in != coder.d_out:
                reason = "the coder writes another number of values than it reads."
                found[name] = Measured(self.absent(reason))
            else:
                found[name] = Measured(task.of_coder(coder, shared))
            on_progress(done, todo)
        return found


class _Task:
    """The pairs of an evaluation, and the model that answers them."""

    def __init__(self, cfg: RavelConfig, bench: Bench) -> None:
        self.cfg, self.device = cfg, bench.model.device
        tables = cfg.prompts or tuple(TableConfig(id=name) for name in WORLD_SETS)
        read = partial(
            read_prompts,
            test_share=cfg.test_share,
            max_entities=cfg.max_entities,
            max_templates=cfg.max_templates,
            world=bench.world,
            relative_to=bench.relative_to,
        )
        by_table = [read(table) for table in tables]
        prompts: list[Prompt] = [prompt for own in by_table for prompt in own]
        if not prompts:
            raise NotApplicable("ravel", "there are no prompts.")
        self.positions: Literal["last", "all"] = cfg.positions or (
            "last" if bench.world is None else "all"
        )
        self.interchange = Interchange(
            bench,
            prompts,
            self.positions,
            batch_rows=cfg.batch_rows,
            max_new_tokens=cfg.max_new_tokens,
        )
        answers = self.interchange.answered(range(len(prompts)), None, [p.values for p in prompts])
        self.is_right = torch.tensor(answers)
        self.masks, self.train, self.tests = draw_masks(
            [table.id for table in tables],
            by_table,
            self.is_right,
            self.interchange.sizes,
            train_pairs=cfg.train_pairs,
            test_pairs=cfg.test_pairs,
            held_out=cfg.held_out,
            seed=cfg.seed,
        )
        if not self.masks:
            raise NotApplicable(
                "ravel",
                f"the model answers {int(self.is_right.sum())} of {len(prompts)} prompts"
                f" right, too few for {FEWEST_PAIRS} pairs of each kind of any attribute.",
            )

    @torch.no_grad()
    def _score(
        self, some: Pairs, change: Change, masks: Float[Tensor, "masks width"]
    ) -> Shares | None:
        if not some.pairs:
            return None
        parts = []
        for rows in torch.arange(len(some.pairs)).split(self.cfg.batch_rows):
            ends = self.interchange.ends(some, rows)
            mask = masks[ends.group.to(masks.device)]
            parts.append(change(ends.base, ends.source, mask, ends.group).float())
        x, places = torch.cat(parts), [pair.base for pair in some.pairs]
        right = self.interchange.answered(places, x, [pair.expected for pair in some.pairs])
        return shares(torch.tensor(right), some.is_cause, some.group, len(self.masks))

    def _train(
        self, change: Change, width: int, others: Sequence[Tensor] = ()
    ) -> Float[Tensor, "masks width"]:
        return train_masks(
            self.interchange.losses(self.train, change, self.cfg.train_on),
            self.train.group,
            len(self.masks),
            width,
            epochs=self.cfg.epochs,
            batch_pairs=self.cfg.batch_pairs,
            lr=self.cfg.lr,
            seed=self.cfg.seed,
            others=others,
        )

    # --- rows ------------------------------------------------------------------------------------

    def without_coder(self) -> list[Measurement]:
        """The ceilings, and what the model knows."""
        d_in, num = self.interchange.x.shape[1], len(self.masks)
        everything = torch.ones(num, d_in, device=self.device)
        held_out = self.tests[HELD_OUT]
        rows = self._mean(
            "full_swap", self._score(held_out, lambda b, s, mask, group: s, everything)
        )
        if self.cfg.mdas:
            start = torch.randn(
                num, d_in, d_in, generator=torch.Generator().manual_seed(self.cfg.seed)
            )
            free = torch.linalg.qr(start).Q.to(self.device)

            def turned(b: Tensor, s: Tensor, mask: Tensor, group: Tensor) -> Tensor:
                return rotated(orthonormal(free), group, b, s, mask)

            a = self._train(turned, d_in, [free])
            rows = self._mean("mdas", self._score(held_out, turned, (a > 0).float())) + rows
        else:
            reason = "the skyline was not asked for (mdas: false)"
            rows = self._mean("mdas", None, reason) + rows
        share = self.is_right.double().mean().item()
        n = len(self.is_right)
        error = math.sqrt(share * (1 - share) / max(n - 1, 1))
        return [*rows, ANSWERED.row(Estimate(share, error, n, "prompts"))]

    def of_coder(self, coder: SparseCoder[Any], shared: list[Measurement]) -> list[Measurement]:
        """All rows of a coder: its own, then those it shares with others."""
        place = coder.W_dec.device

        def change(b: Tensor, s: Tensor, mask: Tensor, group: Tensor) -> Tensor:
            b, s, mask = b.to(place), s.to(place), mask.to(place)
            found = swapped(coder, b, s, mask, with_error=self.cfg.with_error)
            return found.to(self.device)

        width, num = coder.d_sae, len(self.masks)
        taken = self._train(change, width) > 0
        differs = self._differs(coder)
        learned, held_out = taken.float(), self.tests[HELD_OUT]
        sizes = (taken & differs).sum(1)
        scored = {name: self._score(own, change, learned) for name, own in self.tests.items()}
        others = {
            "no_swap": torch.zeros(num, width),
            "swap_all": torch.ones(num, width),
            "random_mask": random_masks(differs, sizes, self.cfg.seed),
        }
        result = scored[HELD_OUT]
        rows = self._mean("mdbm", result)
        for name in list(SPLITS)[1:]:
            reason = f"too few prompts of {name.replace('_', ' ')} are answered right"
            rows += self._mean(f"mdbm_{name}", scored[name], reason)
        for name, mask in others.items():
            rows += self._mean(name, self._score(held_out, change, mask))
        rows += shared
        mean_size, size_error = _mean_and_error(sizes.double())
        rows.append(MASK.row(Estimate(mean_size, size_error, num, "attributes")))
        if result is not None:
            rows += self._by_type(result) + self._by_attribute(result, sizes)
        return rows

    def _differs(self, coder: SparseCoder[Any]) -> Bool[Tensor, "masks d_sae"]:
        """Per mask the latents that differ between base and source of some training pair."""
        found = torch.zeros(len(self.masks), coder.d_sae, dtype=torch.bool)
        place = coder.W_dec.device
        for rows in torch.arange(len(self.train.pairs)).split(self.cfg.batch_rows):
            ends = self.interchange.ends(self.train, rows)
            with torch.no_grad():
                differ = coder.encode(ends.base.to(place)) != coder.encode(ends.source.to(place))
            for mask in ends.group.unique().tolist():
                found[mask] |= differ[(ends.group == mask).to(place)].any(0).cpu()
        return found

    def _mean(self, how: str, found: Shares | None, reason: str = "") -> list[Measurement]:
        if found is None:
            missing = Estimate(None, reason=reason or "there are no pairs")
            return [SCORES[name, how].row(missing) for name in TEXT]
        rows = []
        for name, values in _by_name(found).items():
            by_type = [values[own] for own in self._types().values()]
            known = [own[own.isfinite()] for own in by_type]
            known = [own for own in known if len(own)]
            value = float(np.mean([own.mean().item() for own in known]))
            _, error = _mean_and_error(torch.cat(known))
            n = sum(map(len, known))
            params = {
                "with_error": self.cfg.with_error,
                "positions": self.positions,
                "pairs": int(found.num.sum()),
            }
            rows.append(SCORES[name, how].row(Estimate(value, error, n, "attributes"), **params))
        return rows

    def _types(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for i, mask in enumerate(self.masks):
            found.setdefault(mask.type, []).append(i)
        return found

    def _by_type(self, found: Shares) -> list[Measurement]:
        rows = []
        for type, own in self._types().items():
            for name, values in _by_name(found).items():
                value, error = _mean_and_error(values[own])
                estimate = Estimate(value, error, len(own), "attributes")
                rows.append(SCORES[name, "type_of_one"].row(estimate, type=type))
        return rows

    def _by_attribute(self, found: Shares, sizes: Int[Tensor, " masks"]) -> list[Measurement]:
        rows = []
        errors = {
            "ravel_disentangle": found.disentangle_error,
            "ravel_cause": found.cause_error,
            "ravel_isolation": found.isolation_error,
        }
        for i, mask in enumerate(self.masks):
            for name, values in _by_name(found).items():
                estimate = Estimate(
                    values[i].item(), errors[name][i].item(), int(found.num[i]), "pairs"
                )
                params = {"type": mask.type, "attribute": mask.attribute, "latents": int(sizes[i])}
                rows.append(SCORES[name, "attribute_of_one"].row(estimate, **params))
        return rows


def _by_name(found: Shares) -> dict[str, Float[Tensor, " masks"]]:
    return {
        "ravel_disentangle": found.disentangle,
        "ravel_cause": found.cause,
        "ravel_isolation": found.isolation,
    }


def _mean_and_error(values: Float[Tensor, " n"]) -> tuple[float, float | None]:
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else None
    return values.mean().item(), error
