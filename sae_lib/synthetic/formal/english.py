"""A context-free sketch of English.

    S  -> NP VP
    NP -> Pro (.2) | N (.2) | NP Conj NP (p_c) | rest
    VP -> V NP (.2) | V (.2) | VP Conj VP (p_c) | VP Adv (.6 - p_c)

where the rest, .6 - p_c, is shared by those that are switched on of ``Adj N`` (the only one by
default), ``N Rel VP`` and ``N Prep NP``. Ten words of each open class, all equally likely. Chains
of conjunctions and adverbs have many derivations; probabilities sum over them.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from sae_lib.errors import BadInput
from sae_lib.synthetic.formal.language import FormalLanguage, Truth
from sae_lib.synthetic.formal.pcfg import Rules

CLASSES = {
    "pronoun": "you it everybody somebody nobody everyone someone anyone these those",
    "noun": "dogs cats farmers singers doctors bakers horses pilots sailors painters",
    "verb": "watched followed heard called helped visited admired remembered answered left",
    "adjective": "old young tired happy quiet brave clever hungry gentle famous",
    "adverb": "slowly quickly often gladly early late again today twice together",
    "conjunction": "and or then but nor yet plus so for while",
    "relative": "who",
    "preposition": "near behind beside above below",
}
CLASS_OF = {word: name for name, words in CLASSES.items() for word in words.split()}


class English(FormalLanguage):
    """Subjects and predicates that grow by conjunctions, adjectives and adverbs."""

    concepts: ClassVar[dict[str, str]] = {
        "pronoun": "The token is a pronoun.",
        "noun": "The token is a noun.",
        "verb": "The token is a verb.",
        "adjective": "The token is an adjective.",
        "adverb": "The token is an adverb.",
        "conjunction": "The token joins two phrases; which ones, the next token tells.",
        "relative": "The token begins a relative clause.",
        "preposition": "The token is a preposition.",
        "subject": "The token belongs to the subject of the sentence.",
        "predicate": "The token is a verb or an adverb.",
        "object": "The token belongs to the object of a verb.",
        "verb-seen": "The sentence has its main verb.",
        "may-end": "The sentence is complete so far.",
    }
    measures: ClassVar[dict[str, str]] = {
        "clause_depth": "Relative clauses around the token, each taken to go on while it can.",
        "conjunctions": "Conjunctions so far.",
    }

    kind: Literal["pcfg-english"] = "pcfg-english"
    """Name of the language."""

    conjunction: float = Field(default=0.15, ge=0, lt=0.6)
    """Chance p_c that a phrase is two phrases with a conjunction between them."""

    adjectives: bool = True
    """Whether a noun may have an adjective."""

    relatives: bool = False
    """Whether a noun may have a relative clause."""

    prepositions: bool = False
    """Whether a noun may have a preposition and a noun phrase after it."""

    num_conjunctions: int = Field(default=2, ge=1, le=10)
    """How many different conjunctions there are."""

    min_tokens: int = Field(default=4, ge=1)
    """Shorter strings are drawn again."""

    def rules(self) -> Rules:
        rest = 0.6 - self.conjunction
        options = [
            parts
            for parts, is_on in (
                (("adjective", "noun"), self.adjectives),
                (("noun", "relative", "VP"), self.relatives),
                (("noun", "preposition", "NP"), self.prepositions),
            )
            if is_on
        ]
        if not options:
            raise BadInput("switch on adjectives, relatives or prepositions", key="adjectives")
        used = {"pronoun", "noun", "verb", "adverb", "conjunction"}
        used |= {part for parts in options for part in parts} & set(CLASSES)
        words = {name: CLASSES[name].split() for name in CLASSES if name in used}
        words["conjunction"] = words["conjunction"][: self.num_conjunctions]
        return {
            "S": [(1.0, ("NP", "VP"))],
            "NP": [
                (0.2, ("pronoun",)),
                (0.2, ("noun",)),
                (self.conjunction, ("NP", "conjunction", "NP")),
                *((rest / len(options), parts) for parts in options),
            ],
            "VP": [
                (0.2, ("verb", "NP")),
                (0.2, ("verb",)),
                (self.conjunction, ("VP", "conjunction", "VP")),
                (rest, ("VP", "adverb")),
            ],
            **{
                name: [(1 / len(found), (word,)) for word in found] for name, found in words.items()
            },
        }

    def truth(self, tokens: Sequence[str]) -> Truth:
        concepts, depths, conjunctions = [], [], []
        before = ""
        depth, count, verb_seen = 0, 0, False
        for token in tokens:
            name = CLASS_OF.get(token, "")
            if name not in _NEXT[before] or (name == "adverb" and not (verb_seen or depth)):
                raise BadInput("this token cannot come here", key=" ".join(tokens), value=token)
            found = {name}
            if name == "verb":
                if before not in ("relative", "conjunction"):
                    if verb_seen:
                        raise BadInput("this token cannot come here", key=" ".join(tokens),
                                       value=token)  # fmt: skip
                    # only the main verb can follow a noun phrase: relative clauses end
                    depth, verb_seen = 0, True
                elif not (verb_seen or depth):
                    raise BadInput("this token cannot come here", key=" ".join(tokens), value=token)
                found.add("predicate")
            elif name == "adverb":
                found.add("predicate")
            elif name == "relative":
                depth += 1
            elif name == "conjunction":
                count += 1
            elif depth or verb_seen:
                found.add("object")
            else:
                found.add("subject")
            if verb_seen:
                found.add("verb-seen")
                if name in ("pronoun", "noun", "verb", "adverb"):
                    found.add("may-end")
            concepts.append(frozenset(found))
            depths.append(depth)
            conjunctions.append(count)
            before = name
        return Truth(
            tuple(concepts),
            {"clause_depth": tuple(depths), "conjunctions": tuple(conjunctions)},
        )


_PHRASE = {"pronoun", "noun", "adjective"}
_NEXT = {
    "": _PHRASE,
    "pronoun": {"verb", "conjunction", "adverb"},
    "noun": {"verb", "conjunction", "adverb", "relative", "preposition"},
    "verb": _PHRASE | {"verb", "conjunction", "adverb"},
    "adjective": {"noun"},
    "adverb": {"verb", "conjunction", "adverb"},
    "conjunction": _PHRASE | {"verb"},
    "relative": {"verb"},
    "preposition": _PHRASE,
}
"""Which classes may follow one, as far as neighbours tell."""
