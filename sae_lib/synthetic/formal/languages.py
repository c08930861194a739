"""The formal languages by name, and their words as token ids."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from sae_lib.errors import UnknownName
from sae_lib.synthetic.formal.dyck import Dyck
from sae_lib.synthetic.formal.english import English
from sae_lib.synthetic.formal.expr import Expr
from sae_lib.synthetic.formal.language import FormalLanguage, Split, formal_strings
from sae_lib.synthetic.word_level import BOS, EOS, number_words

AnyLanguage = Annotated[Dyck | Expr | English, Field(discriminator="kind")]

LANGUAGES: dict[str, type[FormalLanguage]] = {
    "dyck": Dyck,
    "expr": Expr,
    "pcfg-english": English,
}
"""Also the names of the bundled models that learned them."""


def named_language(name: str) -> FormalLanguage:
    """The language of that name with its default dials. Raises `UnknownName`."""
    if name not in LANGUAGES:
        raise UnknownName("formal language", name, LANGUAGES)
    return LANGUAGES[name]()


def vocabulary(language: FormalLanguage) -> dict[str, int]:
    """Ids of the special tokens and of the language's words."""
    return number_words(language.grammar.words)


def token_stream(
    language: FormalLanguage, start: int = 0, *, split: Split = "train"
) -> Iterator[list[int]]:
    """Without end: the ids of string after string, each ``<bos> .. <eos>``."""
    ids = vocabulary(language)
    for one in formal_strings(language, start, split=split):
        yield [BOS, *(ids[word] for word in one.tokens), EOS]
