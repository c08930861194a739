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
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from sae_lib.activations.task_tables import TableConfig, table_files, table_rows
from sae_lib.apply.reading import encoder, text_batches
from sae_lib.errors import BadInput, NotApplicable
from sae_lib.evaluate._baselines import random_coder
from sae_lib.evaluate._class_probes import unsuitable
from sae_lib.evaluate._moments import Estimate
from sae_lib.evaluate.base import Definition, register
from sae_lib.evaluate.bench import Bench, Measured, OnProgress, TaskMetric
from sae_lib.models.language_model import LanguageModel
from sae_lib.papers import Paper
from sae_lib.saes.base import SparseCoder
from sae_lib.warehouse.rows import Measurement

FULL_COSINE, FRACTION_COSINE, SHARE, MOST_ABSORBERS = 0.025, 0.1, 0.4, 3
SILENT = 1e-8
"""SAEBench 0.6, evals/absorption/feature_absorption.py."""

MAX_ITERATIONS = 500
FOLDS = 5
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


class Absorption(NamedTuple):
    """How much of each word's projection on a concept other latents took over."""

    fraction: Float[Tensor, " words"]
    """Version 0.6, with thresholds."""

    is_full: Bool[Tensor, " words"]
    fraction_v0_3: Float[Tensor, " words"]
    """As it was before there were thresholds."""


def absorption(
    code: Float[Tensor, "words d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    direction: Float[Tensor, " d_in"],
    projection: Float[Tensor, " words"],
    main: Int[Tensor, " main"],
) -> Absorption:
    """Absorption of words that have a concept; the formulas are at the top of this file.

    ``direction`` need not have length 1, rows of ``W_dec`` neither; ``projection`` is that on the
    direction of length 1. A projection that is not positive gives 0.
    """
    direction = F.normalize(direction, dim=0)
    cosine = F.normalize(W_dec, dim=1) @ direction
    q = code * (W_dec @ direction)
    is_main = torch.zeros(len(W_dec), dtype=torch.bool).index_fill(0, main, True)
    of_main = q[:, is_main].sum(1)
    others = (q * (~is_main & (cosine >= FRACTION_COSINE))).clamp_min(0)
    taken = others.topk(min(MOST_ABSORBERS, len(W_dec)), dim=1).values.sum(1)
    moved = torch.minimum(taken, projection - of_main)
    fraction = torch.where(of_main <= 0, 1.0, (moved / (moved + of_main)).clamp(0, 1))
    is_none = (of_main >= projection) | (taken < SHARE * projection) | (projection <= 0)
    top, latent = q.max(1)
    is_full = (
        (code[:, is_main] < SILENT).all(1)
        & (cosine[latent] >= FULL_COSINE)
        & (projection > 0)
        & (top >= SHARE * projection)
    )
    written = q.sum(1)
    was_none = (of_main >= projection) | (written <= 0)
    old = ((written - of_main) / written).clamp(0, 1).masked_fill(was_none, 0.0)
    return Absorption(fraction.masked_fill(is_none, 0.0), is_full, old)


class OneVsRest(NamedTuple):
    """One linear probe per letter."""

    weights: Float[Tensor, "letters columns"]
    bias: Float[Tensor, " letters"]

    def logits(self, x: Float[Tensor, "words columns"]) -> Float[Tensor, "words letters"]:
        return x @ self.weights.mT + self.bias


@torch.no_grad()
def fit_one_vs_rest(
    x: Float[Tensor, "words columns"],
    labels: Bool[Tensor, "words letters"],
    *,
    epochs: int = 50,
    batch_words: int = 64,
    weight_decay: float = 1e-4,
    l1: float = 0.0,
    seed: int = 0,
) -> OneVsRest:
    """Binary cross-entropy per letter, positives weighted by #negatives / #positives, by Adam.

    The learning rate falls exponentially from 0.01 to 1e-5 over the epochs; ``l1`` is added once
    per unit of the mean over letters of the sum of |weight|. Weights start at 0.
    """
    x = x.float()
    num, letters = labels.shape
    weights, bias = torch.zeros(letters, x.shape[1]), torch.zeros(letters)
    positive = labels.sum(0).float().clamp_min(1)
    heavier = (num - positive) / positive
    optimiser = torch.optim.Adam([weights, bias], lr=0.01, weight_decay=weight_decay, fused=True)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        for group in optimiser.param_groups:
            group["lr"] = 0.01 * 1e-3 ** (epoch / max(1, epochs - 1))
        order = torch.randperm(num, generator=generator)
        for rows in order.split(batch_words):
            u, true = x[rows], labels[rows].float()
            chance = (u @ weights.mT + bias).sigmoid()
            # gradient of the weighted cross-entropy, mean over words and letters
            error = (chance * (1 - true) - (1 - chance) * true * heavier) / true.numel()
            weights.grad = error.mT @ u + l1 / letters * weights.sign()
            bias.grad = error.sum(0)
            optimiser.step()
    return OneVsRest(weights, bias)


def f1(predicted: Bool[Tensor, " words"], true: Bool[Tensor, " words"]) -> float:
    """2 TP / (predicted + true); 0 where there is neither."""
    return float(2 * (predicted & true).sum() / max(1, int(predicted.sum() + true.sum())))


def num_main(scores: Callable[[int], float], most: int, jump: float) -> int:
    """How many latents are main: k grows while F1 at k exceeds that at k - 1 by more than ``jump``.

    ``scores(k)`` is asked for no k after the first that fails.
    """
    k, best = 1, scores(1)
    while k < most:
        score = scores(k + 1)
        if score <= best + jump:
            break
        k, best = k + 1, score
    return k


class Letter(NamedTuple):
    """What the activations say of one letter, before any coder."""

    name: str
    column: int
    """Its place among the labels."""

    direction: Float[Tensor, " d_in"]
    words: Int[Tensor, " found"]
    """Test words that start with it and that the probe gets right."""

    projection: Float[Tensor, " found"]
    probe_f1: float
    reason: str | None
    """Why it is left out; None where it is kept."""


class LetterFound(NamedTuple):
    """What one coder does with one letter."""

    letter: Letter
    main: list[int]
    fraction: float | None
    """None where there is no word or no main latent."""

    full: float | None
    old: float | None
    f1_one: float
    f1_main: float
    reason: str | None


class Words(NamedTuple):
    """Activations at words, and which letter each starts with."""

    x: Float[Tensor, "words d_in"]
    labels: Bool[Tensor, "words letters"]


class ProbeRecipe(NamedTuple):
    """How the probes are fitted."""

    epochs: int = 50
    batch_words: int = 64
    l1: float = 0.01
    sparse_batch_words: int = 128
    jump: float = 0.03
    most_main: int = 10
    seed: int = 0


def letters_of(
    names: Sequence[str],
    train: Words,
    test: Words,
    recipe: ProbeRecipe,
    *,
    min_f1: float = 0.6,
    min_words: int = 5,
) -> list[Letter]:
    """Probe every letter and list the test words that its absorption is measured on."""
    probe = fit_one_vs_rest(
        train.x,
        train.labels,
        epochs=recipe.epochs,
        batch_words=recipe.batch_words,
        seed=recipe.seed,
    )
    said = probe.logits(test.x.float()) > 0
    found = []
    for column, name in enumerate(names):
        true = test.labels[:, column]
        words = (true & said[:, column]).nonzero()[:, 0]
        score = f1(said[:, column], true)
        direction = F.normalize(probe.weights[column].to(test.x.dtype), dim=0)
        num = int(true.sum())
        reason = None
        if int(train.labels[:, column].sum()) < min_words or num < min_words:
            reason = f"fewer than {min_words} words"
        elif score <= min_f1:
            reason = f"probe F1 is not above {min_f1:g}"
        projection = test.x[words] @ direction
        found.append(Letter(name, column, direction, words, projection, score, reason))
    return found


def letters_in_coder(
    letters: Sequence[Letter],
    train: Float[Tensor, "train_words d_sae"],
    train_labels: Bool[Tensor, "train_words letters"],
    test: Float[Tensor, "test_words d_sae"],
    test_labels: Bool[Tensor, "test_words letters"],
    W_dec: Float[Tensor, "d_sae d_in"],
    recipe: ProbeRecipe,
) -> list[LetterFound]:
    """Main latents of every letter, and how much of its words others took over.

    Codes are those on unit decoder rows, whatever the norms of ``W_dec``.
    """
    norms = W_dec.norm(dim=1).clamp_min(1e-12)
    train, test, W_dec = train * norms, test * norms, W_dec / norms[:, None]
    sparse = fit_one_vs_rest(
        train,
        train_labels,
        epochs=recipe.epochs,
        batch_words=recipe.sparse_batch_words,
        weight_decay=1e-6,
        l1=recipe.l1,
        seed=recipe.seed,
    )
    is_on = (train > 0).any(0)
    found = []
    for letter in letters:
        weight = sparse.weights[letter.column].masked_fill(~is_on, 0.0)
        ranked = weight.argsort(descending=True, stable=True)
        ranked = ranked[weight[ranked] > 0][: recipe.most_main]
        true = train_labels[:, letter.column]
        if not len(ranked) or not len(letter.words):
            reason = "no latent speaks for it" if len(letter.words) else "the probe gets no word"
            found.append(
                LetterFound(letter, [], None, None, None, 0.0, 0.0, letter.reason or reason)
            )
            continue
        k = num_main(_cross_validated(train[:, ranked], true, recipe), len(ranked), recipe.jump)
        scores = {
            size: f1(
                _balanced(train[:, ranked[:size]], true, test[:, ranked[:size]]),
                test_labels[:, letter.column],
            )
            for size in {1, k}
        }
        one = absorption(test[letter.words], W_dec, letter.direction, letter.projection, ranked[:k])
        found.append(
            LetterFound(
                letter,
                ranked[:k].tolist(),
                one.fraction.mean().item(),
                one.is_full.double().mean().item(),
                one.fraction_v0_3.mean().item(),
                scores[1],
                scores[k],
                letter.reason,
            )
        )
    return found


def _cross_validated(
    features: Float[Tensor, "words columns"], true: Bool[Tensor, " words"], recipe: ProbeRecipe
) -> Callable[[int], float]:
    """F1 on the first k columns, each word judged by a probe that has not seen it."""
    rng = np.random.default_rng(recipe.seed)
    fold = torch.zeros(len(true), dtype=torch.long)
    for members in (true.nonzero()[:, 0], (~true).nonzero()[:, 0]):
        # dealt class by class, so that every fold has its share of a rare letter
        fold[members] = torch.from_numpy(rng.permutation(len(members)) % FOLDS)

    def score(k: int) -> float:
        said = torch.zeros_like(true)
        for number in range(FOLDS):
            own = fold == number
            if true[~own].any() and own.any():
                said[own] = _balanced(features[~own, :k], true[~own], features[own, :k])
        return f1(said, true)

    return score


def _balanced(
    train: Float[Tensor, "train_words columns"],
    true: Bool[Tensor, " train_words"],
    test: Float[Tensor, "test_words columns"],
) -> Bool[Tensor, " test_words"]:
    """What logistic regression with balanced classes says of the test rows."""
    fitted = LogisticRegression(max_iter=MAX_ITERATIONS, class_weight="balanced")
    fitted.fit(train.double().numpy(), true.numpy())
    return torch.from_numpy(fitted.predict(test.double().numpy()))


# --- words and prompts ---


class WordSplit(NamedTuple):
    """Words as they stand in a prompt, those of one spelling on one side."""

    train: list[str]
    test: list[str]
    left_out: dict[str, int]
    """Words that are not used, by reason."""


def letter_of(word: str) -> str:
    """Its first letter, in upper case."""
    return word.strip()[0].upper()


def vocabulary_words(tokenizer: Any) -> list[str]:
    """Entries of ASCII letters, with at most one space in front, sorted.

    The marks by which tokenizers write a space in front are read as a space.
    """
    spelled = (
        entry.replace("\u0120", " ").replace("\u2581", " ") for entry in tokenizer.get_vocab()
    )
    allowed = set(string.ascii_letters)
    return sorted({w for w in spelled if set(w.removeprefix(" ")) <= allowed and w.strip()})


def split_words(
    words: Sequence[str], *, test_share: float, most: int, seed: int
) -> tuple[list[str], list[str]]:
    """At random; spellings that differ in case or in a space fall on the same side."""
    rng = np.random.default_rng(seed)
    forms = sorted({word.strip().lower() for word in words})
    order = [forms[i] for i in rng.permutation(len(forms))]
    test = set(order[: round(test_share * len(order))])
    chosen = sorted(words)
    if len(chosen) > most:
        chosen = [chosen[i] for i in sorted(rng.permutation(len(chosen))[:most])]
    sides: tuple[list[str], list[str]] = ([], [])
    for word in chosen:
        sides[word.strip().lower() in test].append(word)
    return sides


def prompts(
    words: Sequence[str],
    line: str,
    between: str,
    num_examples: int,
    seed: int,
    *,
    with_question: bool = False,
) -> list[str]:
    """Per word the prompt up to and with the word, or with the question up to its answer.

    ``num_examples`` other words, drawn at random, stand before it with their letters.
    """
    rng = np.random.default_rng(seed)
    if len(words) <= num_examples:
        raise BadInput(
            f"{num_examples} examples besides the word itself need more words; there are"
            f" {len(words)}.",
            key="num_examples",
            value=num_examples,
        )
    before, after = line.split("{word}", 1)
    asked = after[: after.index("{letter}")].rstrip() if with_question else ""
    start = between if between.strip(" ") else ""  # a line break also stands before the first
    made = []
    for place, word in enumerate(words):
        drawn = rng.choice(len(words) - 1, num_examples, replace=False)
        others = [words[int(i) + int(i >= place)] for i in drawn]
        shown = [line.format(word=other, letter=letter_of(other)) for other in others]
        made.append(start + between.join([*shown, before + word + asked]))
    return made


@torch.no_grad()
def at_last_token(
    model: LanguageModel, site: str, texts: Sequence[str], *, batch_texts: int = 64
) -> Float[Tensor, "texts d_in"]:
    """Activation of the last token of each text; float32 on the CPU."""
    found: Tensor | None = None
    most = model.info.max_context
    for chosen, batch in text_batches(model, texts, max_tokens=most, batch_texts=batch_texts):
        if batch.tokens.shape[1] >= most:
            raise BadInput(
                f"prompts are as long as the model can read, {most} tokens; give fewer examples.",
                key="num_examples",
            )
        at = model.capture(batch.tokens, [site], mask=batch.mask)[site]
        places = torch.arange(batch.keep.shape[1]).expand_as(batch.keep)
        last = places.masked_fill(~batch.keep, -1).amax(1).to(at.device)
        rows = at[torch.arange(len(at), device=at.device), last].float().cpu()
        found = torch.zeros(len(texts), rows.shape[1]) if found is None else found
        found[chosen] = rows
    assert found is not None  # `prompts` refuses an empty list
    return found


def is_one_token(tokenizer: Any, between: str, word: str) -> bool:
    """Whether the word, as it stands at the beginning of a line, is a single token."""
    alone, with_word = (
        len(tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in (between, between + word)
    )
    return with_word - alone == 1


# --- the metric ---


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
            train, test = (self._table_words(table, split, bench) for split in ("train", "test"))
        _, between = self._form(bench)
        sides, left_out = [], {"more than one token": 0}
        for words in (train, test):
            single = [w for w in words if is_one_token(bench.model.tokenizer, between, w)]
            left_out["more than one token"] += len(words) - len(single)
            sides.append(single)
        return WordSplit(sides[0], sides[1], left_out)

    def _table_words(
        self, table: TableConfig, split: Literal["train", "test"], bench: Bench
    ) -> list[str]:
        rows = table_rows(table, ("word",), split, world=bench.world, relative_to=bench.relative_to)
        words = list(dict.fromkeys(str(row["word"]) for row in rows))
        letters = set(string.ascii_letters)
        if wrong := [
            word for word in words if not word.strip() or not set(word.strip()) <= letters
        ]:
            raise BadInput("a word has letters from a to z alone.", key="words", value=wrong[0])
        return words[: self.max_words]

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
        with_words = [one for one in own if one.old is not None]
        params: dict[str, Any] = {
            "f1_jump": self.f1_jump,
            "min_probe_f1": self.min_probe_f1,
            "seed": self.seed,
        }
        params["place"] = place

        def mean(found: list[LetterFound], value: Callable[[LetterFound], Any]) -> Estimate:
            if len(found) < self.min_letters:
                reason = f"{len(found)} letters are kept, fewer than min_letters={self.min_letters}"
                return Estimate(None, n=len(found), unit="letters", reason=reason)
            return _mean([value(one) for one in found], "letters")

        rows = [
            FRACTION.row(mean(kept, lambda one: one.fraction), **params),
            FRACTION_OLD.row(
                _mean([one.old for one in with_words], "letters")
                if with_words
                else Estimate(None, n=0, unit="letters", reason="no letter has a word"),
                **params,
            ),
            FULL.row(mean(kept, lambda one: one.full), **params),
            SPLIT.row(mean(kept, lambda one: len(one.main)), **params),
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
            RANDOM[SPLIT.name].row(mean(kept_floor, lambda one: len(one.main)), **params),
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


def _mean(values: Sequence[Any], unit: str) -> Estimate:
    """Mean and its standard error; one value has none."""
    found = np.array(values, dtype=np.float64)
    stderr = float(found.std(ddof=1) / math.sqrt(len(found))) if len(found) > 1 else None
    return Estimate(float(found.mean()), stderr, len(found), unit)
