"""Input-based and output-based evaluation of descriptions: do they say what a latent does?

    input   mean of max_t z(t) over 5 texts that fit the description > over 5 that do not
    output  the latent is held at a value that moves the next token's distribution by a set KL;
            of three sets of text made so, of this latent and of two others, which is described?
            Chance 1/3, mean over all rotations of the sets.
    rise    mean rise of the logits of the description's keywords less that of all words, while the
            latent is held so: no judge and no sampling

Descriptions come from training text. Texts are written by the judge, or else chosen among short
texts by the description's keywords or concept. Beside each stands the description of *another*
latent. Source: Gur-Arieh et al. 2025. Differs from the paper: special tokens do not count among
maxima; values are multiples of a step in units of the latent's largest activation; both KL targets
are positive by default; rotations are all tried; latents without a value are counted. Ties fail.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from sae_lib.apply.steered_text import lexicon_ids
from sae_lib.errors import BadInput, NotApplicable
from sae_lib.evaluate._clamping import Clamp, Steered
from sae_lib.evaluate._described import (
    BEST_CONCEPT,
    Evidence,
    Method,
    chat_models,
    check_corpus,
    names_of,
    of_another,
    read_evidence,
)
from sae_lib.evaluate._judgements import over, share_of
from sae_lib.evaluate._judges import (
    AnyJudge,
    Description,
    Judge,
    KeywordJudge,
    KeywordsConfig,
    Sets,
)
from sae_lib.evaluate._moments import Estimate
from sae_lib.evaluate._text_pool import TextPool, text_maxima, text_pool
from sae_lib.evaluate.base import Definition, register
from sae_lib.evaluate.bench import Bench, Measured, OnProgress, TaskMetric
from sae_lib.explain.base import read_explainer
from sae_lib.explain.vocabulary import Vocabulary, read_vocabulary
from sae_lib.models.language_model import LanguageModel
from sae_lib.models.places import Place
from sae_lib.papers import Paper
from sae_lib.warehouse.rows import LatentScoreRow, Measurement

NAME = "descriptions"
OWN, OTHER = "own", "another_latent"
WORLD_PROMPTS = ("once there was", "news from", "after the")
NEUTRAL_PROMPTS = ("The explanation is simple:", "I think", "We")

SCORES: dict[str, tuple[str, float, float]] = {
    "input_success": ("latents stronger, on average, on texts that fit the description", 0.0, 1.0),
    "input_gap": (
        "mean of maxima on fitting texts less on others, / largest activation on training text",
        float("-inf"),
        float("inf"),
    ),
    "output_success": ("described set of steered texts is found among three", 0.0, 1.0),
    "output_logit_rise": (
        "mean logit rise of keywords less that of all words",
        float("-inf"),
        float("inf"),
    ),
}
"""By score: what it is, lowest and highest value."""

_VARIANTS = {
    OWN: "first method",
    OTHER: "with the description of another latent, first method",
    f"{OWN}_of_one": "one explanation method",
    f"{OTHER}_of_one": "with the description of another latent, one method",
    "best_concept": "the true concept of the world that fits the latent best",
}
DEFINITIONS = {
    (s, v): Definition(s, v, f"{text}; {how}", "higher", low, high)
    for s, (text, low, high) in SCORES.items()
    for v, how in _VARIANTS.items()
}
CHANCE = Definition("output_success", "chance", "1 / sets of texts", "higher", 0.0, 1.0)
REACHED = Definition(
    "output_reached", "share_of_targets", "KL targets that some value of the latent reaches",
    "higher", 0.0, 1.0,
)  # fmt: skip
UNREAD = Definition(
    "descriptions_unreadable", "share_of_questions",
    "descriptions for which no texts were written or found, and sets without a readable answer",
    "lower", 0.0, 1.0,
)  # fmt: skip


def input_success(
    fitting: Float[Tensor, " texts"], others: Float[Tensor, " texts"]
) -> tuple[bool, float]:
    """Whether the mean of the maxima is larger on fitting texts, and by how much."""
    gap = float(fitting.double().mean() - others.double().mean())
    return gap > 0, gap


def logit_rise(
    rise: Float[Tensor, " vocab"], keywords: Int[Tensor, " ids"], is_word: Bool[Tensor, " vocab"]
) -> float:
    """Mean rise of ``keywords`` less that of all words, which is what random words rise by."""
    return float(rise[keywords].double().mean() - rise[is_word].double().mean())


def match_rate(
    judge: Judge, questions: Sequence[tuple[Description, Sequence[Sequence[str]]]]
) -> list[tuple[float | None, int]]:
    """Per question how often the judge finds the first set, over all rotations; and replies unread.

    None where no reply could be read.
    """
    asked = [
        Sets(description, [*sets[turn:], *sets[:turn]])
        for description, sets in questions
        for turn in range(len(sets))
    ]
    replies = iter(judge.match(asked))
    found: list[tuple[float | None, int]] = []
    for _, sets in questions:
        num = len(sets)
        own = [(next(replies), (num - turn) % num) for turn in range(num)]
        read = [said == place for said, place in own if said is not None]
        found.append((sum(read) / len(read) if read else None, num - len(read)))
    return found


class _Scores(NamedTuple):
    """One set of descriptions: per latent and score a value, or why there is none."""

    values: dict[str, list[float | None]]
    asked: int
    unread: int

    def row(
        self, score: str, reasons: dict[str, str], definition: Definition, told: dict[str, object]
    ) -> Measurement:
        none = reasons.get(score, "no latent has both a description and texts for it")
        return definition.row(over(self.values[score], "latents", none=none), **told)


@register
class DescriptionsConfig(TaskMetric):
    papers = (
        Paper(
            "Gur-Arieh et al. 2025",
            "https://arxiv.org/abs/2501.08319",
            "input-based and output-based evaluation",
        ),
    )
    summary = "whether descriptions say on which texts latents fire and what they promote"
    survey = ("Input-Based Evaluation", "Output-Based Evaluation")

    name: Literal["descriptions"] = "descriptions"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    judge: AnyJudge = KeywordsConfig()
    """Who finds the described set of texts, and writes texts: keywords, local or openai."""

    writer: Literal["pool", "judge"] = "pool"
    """Whether texts are chosen among short texts, or written by the judge."""

    methods: tuple[Method, ...] = Field(default=("max_act", "vocab_proj"), min_length=1)
    """Explanation methods whose descriptions are evaluated, by name or with settings as under
    ``explain``; the first gives the headline."""

    num_latents: int = Field(default=100, gt=0)
    """Latents that are drawn."""

    num_steered: int = Field(default=20, ge=0)
    """Of these, latents that are also held at a value; 0 leaves the output-based part out."""

    num_texts: int = Field(default=5, gt=0)
    """Texts that fit a description, and texts that do not."""

    pool_texts: int = Field(default=3000, gt=0)
    """Short texts to choose from."""

    text_tokens: int = Field(default=64, gt=1)
    """Tokens of a text that are read."""

    prompts: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Neutral openings that steered texts go on from; by default three, of the world or English."""

    kl_targets: tuple[float, ...] = Field(default=(0.25, 0.5), min_length=1)
    """KL that the held value brings about, in nats; below 0 at negative values."""

    kl_tolerance: float = Field(default=0.1, gt=0)
    """By how much the target may be exceeded."""

    step: float = Field(default=0.05, gt=0)
    """Distance of the values that are tried, in units of the latent's largest activation."""

    num_sets: int = Field(default=3, ge=2)
    """Sets of texts among which the described one is to be found."""

    max_new_tokens: int = Field(default=25, gt=0)
    """Length of a steered text."""

    temperature: float = Field(default=0.75, gt=0)
    """Sampling temperature of steered texts."""

    min_activations: int = Field(default=15, gt=0)
    """Tokens of training and of held-out text on which a latent that is drawn fires at least."""

    train_tokens: int = Field(default=32_768, gt=0)
    """Training tokens that the explanation methods see, at most."""

    held_out_tokens: int = Field(default=16_384, gt=0)
    """Held-out tokens on which latents must fire to be drawn, at most."""

    batch_contexts: int = Field(default=32, gt=0)
    """Contexts per forward pass."""

    seed: int = Field(default=0, ge=0)
    """Decides which latents and texts are drawn, and what is sampled."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        return [*DEFINITIONS.values(), CHANCE, REACHED, UNREAD]

    def check(self, bench: Bench) -> None:
        check_corpus(NAME, bench)
        names_of(self.methods)
        for method in self.methods:
            read_explainer(method)
        if 0 in self.kl_targets:
            raise BadInput("a KL target of 0 changes nothing.", key="kl_targets", value=0)

    def models(self) -> list[str]:
        return [*self.judge.models(), *chat_models(self.methods)]

    @torch.no_grad()
    def measure(self, bench: Bench, on_progress: OnProgress) -> dict[str, Measured]:
        read = read_evidence(
            bench,
            self.methods,
            num_latents=self.num_latents,
            at_least=self.min_activations,
            train_tokens=self.train_tokens,
            held_out_tokens=self.held_out_tokens,
            batch_contexts=self.batch_contexts,
            radius=10,
            with_truth=True,
            seed=self.seed,
        )
        vocabulary = read_vocabulary(
            bench.model.tokenizer, bench.model.vocab_size, bench.model.special_ids
        )
        judge = self.judge.start(bench)
        pool = text_pool(bench, vocabulary, num_texts=self.pool_texts, max_tokens=self.text_tokens)
        found = {}
        for done, name in enumerate(bench.coders):
            on_progress(done, len(bench.coders))
            found[name] = self._score(bench, read, name, judge, pool, vocabulary)
        on_progress(len(bench.coders), len(bench.coders))
        return found

    def _score(
        self,
        bench: Bench,
        read: Evidence,
        name: str,
        judge: Judge,
        pool: TextPool,
        vocabulary: Vocabulary,
    ) -> Measured:
        latents = read.codes.latents[name]
        told = {"judge": self.judge.kind, "writer": self.writer, "seed": self.seed}
        maxima = text_maxima(pool.held, bench.coders[name], latents)
        reasons: dict[str, str] = {}
        try:
            steered = self._steer(bench, read, name)
        except NotApplicable as error:
            steered = []
            reasons = {"output_success": error.reason, "output_logit_rise": error.reason}

        def scores(descriptions: Sequence[Description | None]) -> _Scores:
            return self._ask(
                bench, read, name, judge, descriptions, pool, maxima, steered, vocabulary
            )

        runs: dict[tuple[str, str], _Scores] = {}
        methods = names_of(self.methods)
        for method in methods:
            own = read.descriptions(name, method)
            runs[method, OWN] = scores(own)
            runs[method, OTHER] = scores(of_another(own, by=self.num_sets))
        first = methods[0]
        rows = [
            runs[first, which].row(s, reasons, DEFINITIONS[s, which], {**told, "method": first})
            for s in SCORES
            for which in (OWN, OTHER)
        ]
        rows.append(CHANCE.row(Estimate(1 / self.num_sets, n=self.num_sets, unit="sets")))
        tried = [found for own in steered for found in own]
        reached: list[float | None] = [float(found is not None) for found in tried]
        why = reasons.get("output_success", "no latent was steered")
        rows.append(REACHED.row(over(reached, "targets", none=why), targets=list(self.kl_targets)))
        everything = list(runs.values())
        asked, unread = sum(r.asked for r in everything), sum(r.unread for r in everything)
        rows.append(UNREAD.row(share_of(unread, asked, "questions"), **told))
        if read.true:
            best = scores(read.descriptions(name, BEST_CONCEPT))
            rows += [
                best.row(s, reasons, DEFINITIONS[s, "best_concept"], {"seed": self.seed})
                for s in SCORES
            ]
            runs[BEST_CONCEPT, OWN] = best
        rows += [
            run.row(s, reasons, DEFINITIONS[s, f"{which}_of_one"], {**told, "method": method})
            for (method, which), run in runs.items()
            if method != BEST_CONCEPT
            for s in SCORES
        ]
        scored = [
            LatentScoreRow(latent, NAME, s, which, value, 1, method)
            for (method, which), run in runs.items()
            for s in SCORES
            for latent, value in zip(latents.tolist(), run.values[s], strict=True)
            if value is not None
        ]
        return Measured(rows, scored)

    def _ask(
        self,
        bench: Bench,
        read: Evidence,
        name: str,
        judge: Judge,
        descriptions: Sequence[Description | None],
        pool: TextPool,
        maxima: Float[Tensor, "texts latents"],
        steered: Sequence[Sequence[Steered | None]],
        vocabulary: Vocabulary,
    ) -> _Scores:
        num = len(descriptions)
        values: dict[str, list[float | None]] = {score: [None] * num for score in SCORES}
        having = [i for i, description in enumerate(descriptions) if description is not None]
        given = [description for description in descriptions if description is not None]
        latents, largest = read.codes.latents[name], read.described[name].largest
        pairs = self._maxima(bench, name, judge, given, having, pool, maxima, latents)
        unread = sum(pair is None for pair in pairs)
        for i, pair in zip(having, pairs, strict=True):
            if pair is not None:
                is_success, gap = input_success(*pair)
                values["input_success"][i] = float(is_success)
                values["input_gap"][i] = gap / float(largest[latents[i]])
        asked = len(having)
        sets = [[t for s in own if s is not None for t in s.texts] for own in steered]
        usable = [i for i, texts in enumerate(sets) if texts]
        questions, who = [], []
        for place, i in enumerate(usable):
            description = descriptions[i]
            if description is None or len(usable) <= self.num_sets:
                continue
            near = [usable[(place + k) % len(usable)] for k in range(self.num_sets)]
            questions.append((description, [sets[k] for k in near]))
            who.append(i)
            strongest = next(s for s in steered[i] if s is not None)
            ids = _keyword_ids(bench.model, description)
            if ids is not None:
                values["output_logit_rise"][i] = logit_rise(strongest.rise, ids, vocabulary.is_word)
        for i, (rate, num_unread) in zip(who, match_rate(judge, questions), strict=True):
            values["output_success"][i] = rate
            unread += num_unread
        return _Scores(values, asked + self.num_sets * len(who), unread)

    def _maxima(
        self,
        bench: Bench,
        name: str,
        judge: Judge,
        descriptions: Sequence[Description],
        places: Sequence[int],
        pool: TextPool,
        maxima: Float[Tensor, "texts latents"],
        latents: Int[Tensor, " latents"],
    ) -> list[tuple[Tensor, Tensor] | None]:
        """Maxima on the texts that fit each description and on those that do not."""
        if self.writer == "pool":
            found = []
            for place, description in zip(places, descriptions, strict=True):
                texts = pool.choose(description, self.num_texts, seed=self.seed)
                found.append(texts and (maxima[texts[0], place], maxima[texts[1], place]))
            return found
        written = [
            judge.write(descriptions, self.num_texts, fitting=fitting) for fitting in (True, False)
        ]
        texts = [text for side in written for own in side if own is not None for text in own]
        if not texts:
            return [None] * len(descriptions)
        held = bench.reader.read(texts, max_tokens=self.text_tokens)
        values = text_maxima(held, bench.coders[name], latents)
        row = 0
        sides: list[list[Tensor | None]] = []
        for side in written:
            own_side: list[Tensor | None] = []
            for place, own in zip(places, side, strict=True):
                own_side.append(None if own is None else values[row : row + len(own), place])
                row += 0 if own is None else len(own)
            sides.append(own_side)
        return [None if a is None or b is None else (a, b) for a, b in zip(*sides, strict=True)]

    def _steer(self, bench: Bench, read: Evidence, name: str) -> list[list[Steered | None]]:
        """What holding the first latents at each target's value did."""
        if not self.num_steered:
            raise NotApplicable("output", "num_steered is 0.")
        if not bench.model.has_lm_head:
            raise NotApplicable("output", "the model predicts no next token.")
        coder, place = bench.coders[name], Place.parse(bench.site)
        if place.is_map or len(place.reads) != 1 or coder.d_in != coder.d_out:
            raise NotApplicable("output", "the coder does not write where it reads.")
        prompts = self.prompts or (NEUTRAL_PROMPTS if bench.world is None else WORLD_PROMPTS)
        clamp = Clamp(bench.model, bench.site, list(prompts))
        largest = read.described[name].largest
        return [
            [
                clamp.steer(
                    coder,
                    latent,
                    target=target,
                    tolerance=self.kl_tolerance,
                    step=self.step * float(largest[latent]),
                    max_new_tokens=self.max_new_tokens,
                    temperature=self.temperature,
                    seed=self.seed,
                )
                for target in self.kl_targets
            ]
            for latent in read.codes.latents[name][: self.num_steered].tolist()
        ]


def _keyword_ids(model: LanguageModel, description: Description) -> Int[Tensor, " ids"] | None:
    """Tokens that are keywords; None where none is."""
    words = list(KeywordJudge().weights(description))
    if not words:
        return None
    try:
        return lexicon_ids(model, words)
    except BadInput:  # words of several tokens
        return None
