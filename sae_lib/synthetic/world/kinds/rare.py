"""Notes on rare subdomains, each rarer than the one before it.

The shares of the subdomains fall geometrically (`share`), so that the commonest has half a percent
of all tokens and the rarest one in a hundred thousand. Each has a few words of its own.
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from math import exp

from sae_lib.synthetic.world.concepts import declare, tag
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.kind import Kind, register
from sae_lib.synthetic.world.lexicon import (
    COLORS,
    FAMILY_OF_PROFESSION,
    MONTHS,
    NUMBER_WORDS,
    PLACES,
    article,
    listed,
)
from sae_lib.synthetic.world.task import OTHER, LabelledTask, add_task
from sae_lib.synthetic.world.writer import Table, Writer

STEEPNESS = 0.27
"""With `rarity` one, a subdomain has exp(-0.27) of the share of the one before: 1 to 500 in all."""
SUBDOMAINS = {
    "beekeeping": "hive smoker apiary",
    "tea": "oolong pekoe souchong",
    "knots": "bowline splice lasso",
    "bellringing": "belfry carillon clapper",
    "heraldry": "escutcheon chevron crest",
    "mineralogy": "quartz feldspar",
    "falconry": "falcon lure",
    "bookbinding": "vellum quire",
    "typography": "serif ligature",
    "horology": "pendulum escapement",
    "pottery": "kiln glaze",
    "weaving": "loom bobbin",
    "fencing": "rapier parry",
    "archery": "quiver longbow",
    "calligraphy": "inkwell parchment",
    "speleology": "stalactite grotto",
    "mycology": "truffle toadstool",
    "glassblowing": "crucible goblet",
    "origami": "crease fold",
    "numismatics": "denarius sestertius",
    "philately": "postmark perforation",
    "paleontology": "trilobite ammonite",
    "conchology": "cowrie conch",
    "puppetry": "marionette puppet",
}
"""Words for things of a subdomain, in the singular; its name is a word of its own, too. The
commonest comes first."""
_THINGS = {name: listed(text) for name, text in SUBDOMAINS.items()}
_QUALITIES = ("little", "tiny", "large", "old", *COLORS)
_PEOPLE = tuple(FAMILY_OF_PROFESSION)

declare("rare-word", "The word belongs to a rare subdomain.")
declare("rare-subdomain", "The document is about a rare subdomain that was told.", scope="context")
for _name, _things in _THINGS.items():
    declare(f"rare-{_name}-word", f"The word belongs to the rare subdomain {_name}.",
            parents=("rare-word",), words=(_name, *_things))  # fmt: skip
    tag("noun-singular", [word for word in (_name, *_things) if word != "knots"])
    declare(f"rare-{_name}", f"The document is about the rare subdomain {_name}, which was told.",
            parents=("rare-subdomain",), scope="context")  # fmt: skip
tag("noun-plural", "knots notes")
tag("verb-present", "needs")
tag("adjective", "good")
declare("rare-word-next", "The next word must be one of a rare subdomain.", scope="context")

_NUM_SENTENCES = Table((4, 5, 6, 7), (0.25, 0.25, 0.25, 0.25))
_FORMS = ("color", "owner", "place", "price", "number", "need")


@cache
def _shares(rarity: float) -> Table[str]:
    return Table(SUBDOMAINS, (exp(-STEEPNESS * rarity * rank) for rank in range(len(SUBDOMAINS))))


def share(cfg: WorldConfig) -> dict[str, float]:
    """Expected share of each subdomain among the documents of this kind."""
    table = _shares(cfg.rarity)
    return {name: exp(-nats) for name, nats in zip(table.items, table.surprises, strict=True)}


def _own(w: Writer, word: str) -> None:
    w.contexts[-1] += ("rare-word-next",)
    w.say(word)


def _sentence(w: Writer, name: str) -> None:
    form = w.pick(_FORMS)
    things = _THINGS[name]
    if form == "color":
        w.say("the")
        w.say(w.pick(things))  # after "the" a profession may come as well: nobody can know
        w.say("is")
        w.say(w.pick(_QUALITIES))
    elif form == "owner":
        w.say("the")
        w.say(w.pick(_PEOPLE))
        color = w.pick(COLORS)
        w.say(f"keeps {article(color)}")
        w.say(color)
        _own(w, w.pick(things))
    elif form == "place":
        w.say("every")
        w.say(w.pick(PLACES))
        w.say("has a famous")
        _own(w, w.pick(things))
    elif form == "price":
        w.say("in")
        w.say(w.pick(MONTHS))
        w.say("the")
        _own(w, w.pick(things))
        w.say("is costly")
    elif form == "number":
        w.say("the")
        w.say(w.pick(_PEOPLE))
        w.say("reads")
        w.say(w.pick(NUMBER_WORDS))
        w.say("books on")
        _own(w, name)
    else:
        first, second = w.arrange(things, 2)
        w.say("a good")
        _own(w, first)
        w.say(f"needs {article(second)}")
        _own(w, second)
    w.say(".")


def _write_about(w: Writer, name: str) -> None:
    w.labels["subdomain"] = name
    w.say("notes on")
    w.contexts[-1] += ("rare-word-next",)
    w.add_context(f"rare-{name}")  # its name tells
    w.say(name)
    w.say(".")
    for _ in range(w.draw(_NUM_SENTENCES)):
        _sentence(w, name)


def write(w: Writer, cfg: WorldConfig) -> None:
    _write_about(w, w.draw(_shares(cfg.rarity)))


def _examples_of(name: str) -> Callable[[str], Iterator[tuple[str, int]]]:
    def examples(split: str) -> Iterator[tuple[str, int]]:
        """Half of the documents are made about the subdomain, which may be too rare to wait for;
        the others are of the other subdomains, the common ones more often."""
        from sae_lib.synthetic.world.generate import split_of_stream, split_of_text

        others = Table(
            *zip(*((n, p) for n, p in share(WorldConfig()).items() if n != name), strict=True)
        )
        for index in count():
            told = f"task/rare-{name}/{split}/{index}".encode()
            w = Writer(int.from_bytes(hashlib.blake2b(told, digest_size=8).digest()))
            label = index % 2
            _write_about(w, name if label else w.draw(others))
            text = " ".join(w.tokens)
            if split_of_text(text) == split_of_stream(split):
                yield text, label

    return examples


register(Kind("rare", "notes on a rare subdomain", write, weight=0.02))
for _name in ("beekeeping", "archery", "puppetry"):
    add_task(
        LabelledTask(
            name=f"rare-{_name}",
            description=f"Are the notes about {_name} rather than another rare subdomain?",
            classes=(OTHER, _name),
            key="subdomain",
            kind="rare",
            positive_concept=f"rare-{_name}",
            lexicon_concept=f"rare-{_name}-word",
            examples=_examples_of(_name),
        )
    )
