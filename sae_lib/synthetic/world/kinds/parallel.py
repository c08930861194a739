"""The same statement in English and in sindral, first in the one and then in the other.

The first word tells the direction. Word order, agreement and the place of adpositions differ, so
the second half follows from the first by structure besides the dictionary.
"""

from functools import partial

from sae_lib.synthetic.world.concepts import declare, tag
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.kind import Kind, register
from sae_lib.synthetic.world.kinds._grammar import (
    ENGLISH,
    EVERYTHING,
    SINDRAL,
    Clause,
    Phrase,
    clause_text,
    draw_action,
    draw_clause,
    say_clause,
)
from sae_lib.synthetic.world.lexicon import ANIMAL_WORDS
from sae_lib.synthetic.world.task import (
    AnswerTask,
    LabelledTask,
    PairTask,
    Prompt,
    PromptPair,
    add_answers,
    add_pairs,
    add_task,
)
from sae_lib.synthetic.world.writer import Table, Writer

MOST_PAIRS = 6

tag("language", (ENGLISH, SINDRAL))
tag("noun-singular", (ENGLISH, SINDRAL))
for _to in (ENGLISH, SINDRAL):
    declare(f"parallel-to-{_to}", f"The document translates into {_to}.",
            scope="context")  # fmt: skip
declare("translation-part", "The word belongs to a translation of what stands before it.",
        scope="context")  # fmt: skip

_NUM_PAIRS = Table((1, 2, 3), (0.35, 0.4, 0.25))


def _half(w: Writer, clause: Clause, language: str, *ids: str) -> None:
    """Name the language and say the clause in it."""
    around = w.around
    w.add_context(*ids)
    w.say(f"{language} :")
    w.mark("answer")
    if language == SINDRAL:
        w.add_context("in-sindral")
    say_clause(w, clause, language)
    w.set_context(*around)


def _write(w: Writer, cfg: WorldConfig, target: str) -> Clause:
    """Write a document that translates into ``target``; gives the last statement."""
    source = SINDRAL if target == ENGLISH else ENGLISH
    w.labels["direction"] = f"to-{target}"
    w.add_context(f"parallel-to-{target}")
    num = min(round(w.draw(_NUM_PAIRS) * cfg.length_factor), MOST_PAIRS)
    clause = draw_clause(w)
    for place in range(num):
        if place:
            clause = draw_clause(w)
        _half(w, clause, source)
        _half(w, clause, target, "translation-part")
    return clause


def write(w: Writer, cfg: WorldConfig) -> None:
    _write(w, cfg, w.pick((ENGLISH, SINDRAL)))


register(Kind("parallel", "statements with their translations", write, weight=0.07))
add_task(
    LabelledTask(
        name="parallel-direction",
        description="Into which language does the document translate?",
        classes=("to-english", "to-sindral"),
        key="direction",
        kind="parallel",
        positive_concept="parallel-to-sindral",
    )
)


def _prompt(target: str, w: Writer, cfg: WorldConfig) -> Prompt:
    clause = _write(w, cfg, target)
    text = " ".join(w.tokens[: w.marks["answer"]])
    return Prompt(text, (clause_text(clause, target),), {**w.labels, "clause": clause.form})


for _to in (ENGLISH, SINDRAL):
    add_answers(
        AnswerTask(
            name=f"translate-to-{_to}",
            description=f"Says a whole statement in {_to}, word for word as it should be.",
            prompt=partial(_prompt, _to),
            goal=0.9,
            break_down="clause",
        )
    )


def _agreement(w: Writer, cfg: WorldConfig) -> PromptPair:
    """One animal or several, up to the verb of the translation into the second language."""
    animal = w.pick(ANIMAL_WORDS)
    clause = draw_action(w, (Phrase(animal),), EVERYTHING, stay=0.0)
    texts: list[list[str]] = []
    for many in (False, True):
        said = clause._replace(subject=(Phrase(animal, many),))
        halves = (f"{name} : {clause_text(said, name)}" for name in (ENGLISH, SINDRAL))
        texts.append(" ".join(halves).split())
    one, more = texts
    return PromptPair(
        " ".join(one[:-2]), " ".join(more[:-2]), one[-2], more[-2], {"noun": animal}
    )  # fmt: skip


add_pairs(
    PairTask(
        name="translated-agreement",
        description="Is the subject of a translation one or many? The verb comes next.",
        pair=_agreement,
    )
)
