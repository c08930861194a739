"""Feature absorption: does the latent of a letter stay silent on words another latent took over?

A word that starts with a letter is read behind in-context examples, at its last token or where its
letter is asked for. With p the unit direction of a linear probe for the letter, x the activation
and f the code there:

    q_i = f_i <W_dec_i, p>,  c_i = cos(W_dec_i, p),  a = <x, p>,  M = sum of q over the main latents
    T   = sum of the three largest q_i > 0 with c_i >= 0.1 that are not main

    v0_6      0 where M >= a, a <= 0 or T < 0.4 a;  1 where M <= 0;
              else A / (A + M), A = min(T, a - M)
    v0_3      (P - M) / P clipped to [0, 1], P = sum_i q_i;  0 where M >= a or P <= 0
    full      all main latents < 1e-8, and of the latent with the largest q: c >= 0.025, q >= 0.4 a

A letter's value is the mean over its test words that the probe gets right; the result is the mean
over letters, with the standard error over letters. Main latents of a letter are those with the
largest weights in an L1 probe on the codes: k of them, k = 1, 2, ... as long as each step raises F1
by more than 0.03. A letter whose main latent tells it badly (low `absorption_f1`) *looks* absorbed,
so read the two together.

Source: Chanin et al. 2024, Karvonen et al. 2025; thresholds of SAEBench 0.6 (evaluation.md, section
8). `random_sae` is the same pipeline on random directions of equal width and L0.

Differs from SAEBench: any site is read, not only the residual stream; the place is where a prefix
of the prompt ends, not a constant, and on the bundled world it is the question's last token, since
its small model has a letter as a direction only where the letter is asked for; F1 that decides on k
is cross-validated on training words instead of taken from the test words; activations and codes are
divided by one number, the root mean square coordinate of the activations, so that the model's scale
means nothing; only latents with a positive weight may be main ones; spellings of one word fall on
one side of the split; a letter needs a few test words; without enough letters there is a reason
instead of no result.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from sae_lib.activations.task_tables import TableConfig, table_files
from sae_lib.apply.reading import encoder
from sae_lib.errors import BadInput, NotApplicable
from sae_lib.evaluate._absorbed_letters import LetterFound, letters_in_coder
from sae_lib.evaluate._baselines import random_coder
from sae_lib.evaluate._class_probes import unsuitable
from sae_lib.evaluate._judgements import over
from sae_lib.evaluate._letter_probes import Letter, ProbeRecipe, Words, letters_of
from sae_lib.evaluate._letter_words import (
    WordSplit,
    at_last_token,
    is_one_token,
    letter_of,
    prompts,
    split_words,
    table_words,
    vocabulary_words,
)
from sae_lib.evaluate._moments import Estimate
from sae_lib.evaluate.base import Definition, register
from sae_lib.evaluate.bench import Bench, Measured, OnProgress, TaskMetric
from sae_lib.papers import Paper
from sae_lib.saes.base import SparseCoder
from sae_lib.warehouse.rows import Measurement

CHUNK_ELEMENTS = 2**24

WORLD_TABLE = "world:first-letter"
WORLD_LINE = "{word} has the first letter : {letter} ."
LINE = "{word} has the first letter: {letter}"

_OVER_LETTERS = "mean over the letters that are kept"
_RANDOM = "the same for a random coder of the same width and L0: the floor"


def _definition(
    name: str,
    definition: str,
    text: str,
    better: Literal["higher", "lower", "neither"] = "lower",
    high: float = 1.0,
) -> Definition:
    return Definition(name, definition, text, better, 0.0, high)


FRACTION = _definition(
    "absorption_fraction", "v0_6", f"share of a letter that other latents write; {_OVER_LETTERS}"
)
FRACTION_OLD = _definition(
    "absorption_fraction",
    "v0_3",
    "(P - M) / P without thresholds on cosine or share; mean over all letters with words the probe"
    " gets right, whatever its F1",
)
FULL = _definition(
    "full_absorption",
    "v0_6",
    f"share of words on which all main latents are silent and another takes over; {_OVER_LETTERS}",
)
SPLIT = _definition(
    "letter_split_latents", "f1_jump", f"main latents of a letter; {_OVER_LETTERS}", high=math.inf
)
F1_ONE = _definition(
    "absorption_f1", "k1", f"test F1 of a letter's best single latent; {_OVER_LETTERS}", "higher"
)
F1_MAIN = _definition(
    "absorption_f1",
    "main_latents",
    f"test F1 of a letter's main latents; {_OVER_LETTERS}",
    "higher",
)
KEPT = _definition(
    "absorption_letters", "kept", "letters that the means are over", "neither", math.inf
)
LEFT_OUT = _definition(
    "absorption_letters", "left_out", "letters left out, by reason", "neither", math.inf
)
RANDOM = {
    row.name: row._replace(definition="random_sae", text=f"{row.text}; {_RANDOM}", role="floor")
    for row in (FRACTION, FULL, SPLIT, F1_ONE)
}
DENSE_PROBE = F1_ONE._replace(
    definition="dense_probe",
    text=f"test F1 of the probe on the activation; {_OVER_LETTERS}",
    role="ceiling",
)
OF_ONE = {
    row.name: row._replace(
        definition="of_one", text=row.text.replace(_OVER_LETTERS, "one letter"), role="part"
    )
    for row in (FRACTION, FULL, SPLIT, F1_ONE)
}


@register
class AbsorptionConfig(TaskMetric):
    """Which words, how they are asked about, and which letters count."""

    papers = (
        Paper("Chanin et al. 2024", "https://arxiv.org/abs/2409.14507", "absorption"),
        Paper("Karvonen et al. 2025", "https://arxiv.org/abs/2503.09532", "without gradients"),
    )
    summary = "Does the latent of a first letter fall silent where another took over?"
    survey = ("Feature Absorption",)

    name: Literal["absorption"] = "absorption"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    words: TableConfig | None = None
    """Table with a column ``word``; none: the world's, on the world, else the tokenizer's own."""

    line: str | None = None
    """An example, with {word} and {letter}; none: as the world writes it, or as SAEBench does."""

    place: Literal["word", "question"] | None = None
    """Where a prompt is read: at the word, or at the last token before its letter; none: at the
    question on the world, else at the word."""

    num_examples: int = Field(default=10, ge=0)
    """Examples in front of a word."""

    max_words: int = Field(default=10_000, ge=10)
    """Words at most: of a vocabulary at random, of a table the first of either split."""

    test_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of the tokenizer's words that absorption is measured on; a table has its own splits."""

    min_probe_f1: float = Field(default=0.6, ge=0, lt=1)
    """Letters count whose probe on the activation has a test F1 above this."""

    min_words: int = Field(default=5, ge=1)
    """Letters count that have as many words in either split."""

    min_letters: int = Field(default=8, ge=1)
    """With fewer letters there is no mean, only a reason. SAEBench: 20."""

    f1_jump: float = Field(default=0.03, ge=0)
    """What one more main latent must add to F1."""

    max_main: int = Field(default=10, ge=1)
    """Main latents of a letter at most."""

    epochs: int = Field(default=50, ge=1)
    """Passes over the training words for each probe."""

    l1: float = Field(default=0.01, ge=0)
    """Penalty of the probe on the codes that ranks latents."""

    seed: int = Field(default=0, ge=0)
    """Seed of the draws of words and examples, of the probes and of the random coder."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        own = [FRACTION, FRACTION_OLD, FULL, SPLIT, F1_ONE, F1_MAIN, KEPT, LEFT_OUT, DENSE_PROBE]
        return [*own, *RANDOM.values(), *OF_ONE.values()]

    def check(self, bench: Bench) -> None:
        if self.line is not None and not all(s in self.line for s in ("{word}", "{letter}")):
            raise BadInput("an example has a {word} and a {letter}.", key="line", value=self.line)
        if self.line is not None and self.line.index("{word}") > self.line.index("{letter}"):
            raise BadInput("the {letter} comes after the {word}.", key="line", value=self.line)

    def files(self, relative_to: Path) -> list[Path]:
        return [] if self.words is None else table_files(self.words, relative_to)

    @property
    def recipe(self) -> ProbeRecipe:
        return ProbeRecipe(
            epochs=self.epochs,
            l1=self.l1,
            jump=self.f1_jump,
            most_main=self.max_main,
            seed=self.seed,
        )

    def read_words(self, bench: Bench) -> WordSplit:
        """The words of either split that are one token."""
        table = self.words
        if table is None and bench.world is not None:
            table = TableConfig(id=WORLD_TABLE)
        if table is None:
            listed = vocabulary_words(bench.model.tokenizer)
            train, test = split_words(
                listed, test_share=self.test_share, most=self.max_words, seed=self.seed
            )
        else:
            train = table_words(table, "train", bench, self.max_words)
            test = table_words(table, "test", bench, self.max_words)
        _, between = self._form(bench)
        sides, left_out = [], {"more than one token": 0}
        for words in (train, test):
            single = [w for w in words if is_one_token(bench.model.tokenizer, between, w)]
            left_out["more than one token"] += len(words) - len(single)
            sides.append(single)
        return WordSplit(sides[0], sides[1], left_out)

    def _place(self, bench: Bench) -> str:
        return self.place or ("word" if bench.world is None else "question")

    def _form(self, bench: Bench) -> tuple[str, str]:
        """An example, and what stands between two."""
        if bench.world is None:
            return self.line or LINE, "\n"
        return self.line or WORLD_LINE, " "

    def measure(self, bench: Bench, on_progress: OnProgress) -> dict[str, Measured]:
        words = self.read_words(bench)
        names = sorted(set(map(letter_of, words.train + words.test)))
        if min(len(words.train), len(words.test)) <= self.num_examples or len(names) < 2:
            raise NotApplicable(
                self.name,
                f"there are {len(words.train)} words to fit on and {len(words.test)} to measure on"
                " that are one token; that is too few.",
            )
        train, test = (
            self._read(bench, side, names, self.seed + place)
            for place, side in enumerate((words.train, words.test))
        )
        scale = float(train.x.double().square().mean().sqrt().clamp_min(1e-12))
        letters = letters_of(
            names,
            train._replace(x=train.x / scale),
            test._replace(x=test.x / scale),
            self.recipe,
            min_f1=self.min_probe_f1,
            min_words=self.min_words,
        )
        floors: dict[tuple[int, int], list[LetterFound]] = {}
        measured = {}
        width = bench.model.width(bench.site)
        for done, (name, coder) in enumerate(bench.coders.items()):
            on_progress(done, len(bench.coders))
            if (reason := unsuitable(coder, width)) is not None:
                measured[name] = Measured(self.absent(reason))
                continue
            own = self._of_coder(coder, letters, train, test, scale)
            floor = random_coder(coder, train.x, seed=self.seed)
            key = floor.cfg.d_sae, floor.cfg.num_on
            if key not in floors:
                floors[key] = self._of_coder(floor, letters, train, test, scale)
            measured[name] = Measured(self._rows(own, floors[key], words, self._place(bench)))
        on_progress(len(bench.coders), len(bench.coders))
        return measured

    def _read(self, bench: Bench, words: list[str], names: list[str], seed: int) -> Words:
        line, between = self._form(bench)
        texts = prompts(
            words,
            line,
            between,
            self.num_examples,
            seed,
            with_question=self._place(bench) == "question",
        )
        initials = [letter_of(word) for word in words]
        labels = torch.tensor([[initial == name for name in names] for initial in initials])
        return Words(at_last_token(bench.model, bench.site, texts), labels)

    @torch.no_grad()
    def _of_coder(
        self,
        coder: SparseCoder[Any],
        letters: list[Letter],
        train: Words,
        test: Words,
        scale: float,
    ) -> list[LetterFound]:
        encode = encoder(coder)
        part = max(1, CHUNK_ELEMENTS // coder.d_sae)
        codes = [
            torch.cat([encode(rows).float().cpu() for rows in words.x.split(part)]) / scale
            for words in (train, test)
        ]
        W_dec = coder.W_dec.detach().float().cpu()
        return letters_in_coder(
            letters, codes[0], train.labels, codes[1], test.labels, W_dec, self.recipe
        )

    def _rows(
        self, own: list[LetterFound], floor: list[LetterFound], words: WordSplit, place: str
    ) -> list[Measurement]:
        kept = [one for one in own if one.reason is None]
        kept_floor = [one for one in floor if one.reason is None]
        params: dict[str, Any] = {
            "f1_jump": self.f1_jump,
            "min_probe_f1": self.min_probe_f1,
            "seed": self.seed,
        }
        params["place"] = place

        def mean(
            found: list[LetterFound], value: Callable[[LetterFound], float | None]
        ) -> Estimate:
            if len(found) < self.min_letters:
                reason = f"{len(found)} letters are kept, fewer than min_letters={self.min_letters}"
                return Estimate(None, n=len(found), unit="letters", reason=reason)
            return over([value(one) for one in found], "letters")

        rows = [
            FRACTION.row(mean(kept, lambda one: one.fraction), **params),
            FRACTION_OLD.row(
                over([one.old for one in own], "letters", none="no letter has a word"), **params
            ),
            FULL.row(mean(kept, lambda one: one.full), **params),
            SPLIT.row(mean(kept, lambda one: float(len(one.main))), **params),
            F1_ONE.row(mean(kept, lambda one: one.f1_one), **params),
            F1_MAIN.row(mean(kept, lambda one: one.f1_main), **params),
            KEPT.row(
                Estimate(float(len(kept)), None, len(own), "letters"),
                train_words=len(words.train),
                test_words=len(words.test),
                words_left_out=words.left_out,
                **params,
            ),
        ]
        reasons = [one.reason for one in own if one.reason is not None]
        for reason in sorted(set(reasons)):
            names = "".join(one.letter.name for one in own if one.reason == reason)
            count = float(reasons.count(reason))
            why = {"because": reason, "letters": names}
            rows.append(LEFT_OUT.row(Estimate(count, None, len(own), "letters"), **why, **params))
        rows += [
            RANDOM[FRACTION.name].row(mean(kept_floor, lambda one: one.fraction), **params),
            RANDOM[FULL.name].row(mean(kept_floor, lambda one: one.full), **params),
            RANDOM[SPLIT.name].row(mean(kept_floor, lambda one: float(len(one.main))), **params),
            RANDOM[F1_ONE.name].row(mean(kept_floor, lambda one: one.f1_one), **params),
            DENSE_PROBE.row(mean(kept, lambda one: one.letter.probe_f1), **params),
        ]
        for one in own:
            rows += self._of_one(one)
        return rows

    def _of_one(self, one: LetterFound) -> list[Measurement]:
        n = len(one.letter.words)
        params = {
            "letter": one.letter.name,
            "main_latents": one.main,
            "probe_f1": round(one.letter.probe_f1, 4),
            "kept": one.reason is None,
        }
        if one.fraction is None or one.full is None:
            gone = Estimate(None, n=n, unit="words", reason=one.reason)
            return [row.row(gone, **params) for row in OF_ONE.values()]
        return [
            OF_ONE[FRACTION.name].row(Estimate(one.fraction, None, n, "words"), **params),
            OF_ONE[FULL.name].row(
                Estimate(one.full, math.sqrt(one.full * (1 - one.full) / n), n, "words"), **params
            ),
            OF_ONE[SPLIT.name].row(Estimate(float(len(one.main)), None, n, "words"), **params),
            OF_ONE[F1_ONE.name].row(Estimate(one.f1_one, None, n, "words"), **params),
        ]
