"""Reviews of products: aspects are judged one by one, the verdict sums up.

Each aspect is judged like the whole with probability ``aspect_agreement``. The verdict always
tells the sentiment of the whole.
"""

from math import log

from sae_lib.synthetic.world.concepts import declare, tag
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.kind import Kind, register
from sae_lib.synthetic.world.lexicon import DAYS, article
from sae_lib.synthetic.world.task import (
    OTHER,
    AnswerTask,
    LabelledTask,
    Prompt,
    SteeringConcept,
    add_answers,
    add_steering,
    add_task,
)
from sae_lib.synthetic.world.writer import Table, Writer

PRODUCTS = {
    "kitchen-product": ("kettle toaster blender pan teapot", "handle lid base lamp switch"),
    "clothing-product": ("jacket scarf sweater coat hat", "fabric collar seam zipper sleeve"),
    "device-product": ("phone camera laptop tablet radio", "screen battery speaker button cable"),
    "furniture-product": ("chair table sofa desk shelf", "leg cushion drawer surface frame"),
    "book-product": ("novel atlas diary cookbook memoir", "plot cover chapter print ending"),
    "toy-product": ("doll puzzle kite robot ball", "string wheel paint box motor"),
}
POSITIVE = {
    "praise": "excellent superb wonderful great lovely perfect splendid",
    "sound-quality": "sturdy solid reliable durable robust",
    "pleasant": "elegant comfortable charming pretty delightful smooth",
}
NEGATIVE = {
    "blame": "terrible awful horrible poor dreadful useless disappointing",
    "bad-quality": "flimsy fragile faulty broken shaky",
    "unpleasant": "ugly clumsy noisy annoying dull rough",
}
LOVES = ("love", "adore", "enjoy", "treasure")
HATES = ("hate", "regret", "despise", "resent")
POSITIVE_VERDICTS = ("recommended", "brilliant", "outstanding")
NEGATIVE_VERDICTS = ("avoid", "rubbish", "worthless")

declare("product", "The word names a product.")
declare("product-part", "The word names a part of a product.")
for _kind, (_names, _parts) in PRODUCTS.items():
    _readable = _kind.replace("-", " ")
    declare(_kind, f"The word names a {_readable}.", parents=("product",), words=_names)
    declare(
        f"{_kind}-part",
        f"The word names a part of a {_readable}.",
        parents=("product-part",),
        words=_parts,
    )
    tag("noun-singular", f"{_names} {_parts}")
declare("sentiment-word", "The word carries sentiment.")
for _sign, _groups, _verbs, _verdicts in (
    ("positive", POSITIVE, LOVES, POSITIVE_VERDICTS),
    ("negative", NEGATIVE, HATES, NEGATIVE_VERDICTS),
):
    declare(f"{_sign}-word", f"The word carries {_sign} sentiment.", parents=("sentiment-word",))
    for _group, _words in _groups.items():
        declare(_group, f"The word is one of {_group}.", parents=(f"{_sign}-word",), words=_words)
        tag("adjective", _words)
    declare(
        f"{_sign}-verb", f"The verb has a {_sign} sense.", parents=(f"{_sign}-word",), words=_verbs
    )
    declare(
        f"{_sign}-verdict",
        f"The word sums up a {_sign} review.",
        parents=(f"{_sign}-word",),
        words=_verdicts,
    )
    tag("verb-base", _verbs)
    tag("adjective", _verdicts)
tag("verb-past", "bought found arrived ordered")
tag("noun-singular", "review verdict rating gift way")
tag("adverb", "online")
tag("determiner", "another")
tag("time-word", "last")

declare("review-sentiment", "The review has told its sentiment.", scope="context")
for _sign in ("positive", "negative"):
    declare(
        f"review-{_sign}",
        f"The review is {_sign}, and what it has told so far leaves hardly any doubt.",
        parents=("review-sentiment",),
        scope="context",
    )
declare("about-product", "The review has told about which kind of product it is.", scope="context")
for _kind in PRODUCTS:
    declare(
        f"about-{_kind}",
        f"The review is about a {_kind.replace('-', ' ')}, which was named.",
        parents=("about-product",),
        scope="context",
    )
declare("negated-judgement", "The judgement is negated: the word means its opposite.",
        scope="context")  # fmt: skip

_GOOD = tuple(" ".join(POSITIVE.values()).split())
_BAD = tuple(" ".join(NEGATIVE.values()).split())
SURE = 0.95
"""A sentiment counts as told once it is likelier than this to who has read so far."""
_NUM_ASPECTS = Table((3, 4, 5), (0.4, 0.4, 0.2))
_SURE_ODDS = log(SURE / (1 - SURE))
_MODIFIERS = Table(("", "very", "not"), (0.64, 0.24, 0.12))
_OPENINGS = (
    "i bought this # last week .",
    "i ordered the # online .",
    "my sister has the same # .",
    "the # arrived on day .",
    "this # was a gift .",
)
tag("adjective", "same")


def _judge(w: Writer, *, good: bool) -> None:
    modifier = w.draw(_MODIFIERS)
    if modifier == "not":
        w.say("not", "negated-judgement")
        w.say(w.pick(_BAD if good else _GOOD), "negated-judgement")
    else:
        w.say(modifier)
        w.say(w.pick(_GOOD if good else _BAD))


def _aspect(w: Writer, part: str, *, good: bool) -> int:
    """Judge a part; returns the place of the word that judges."""
    form = w.pick(("is", "found", "has"))
    if form == "is":
        w.say("the")
        w.say(part)
        w.say("is")
        _judge(w, good=good)
        told = len(w.tokens) - 1
    elif form == "found":
        w.say("i found the")
        w.say(part)
        _judge(w, good=good)
        told = len(w.tokens) - 1
    else:
        adjective = w.pick(_GOOD if good else _BAD)
        w.say(f"it has {article(adjective)}")
        told = len(w.tokens)
        w.say(adjective)
        w.say(part)
    w.say(".")
    return told


def write(w: Writer, cfg: WorldConfig) -> None:
    good = w.flip(cfg.positive_share)
    kind = w.pick(tuple(PRODUCTS))
    names, parts = (text.split() for text in PRODUCTS[kind])
    product = w.pick(names)
    sentiment = "positive" if good else "negative"
    w.labels |= {"sentiment": sentiment, "product": product, "product_kind": kind}
    told = (f"review-{sentiment}",)
    w.say("review of the")
    w.add_context(f"about-{kind}")
    w.say(product)
    w.say(":")
    for word in w.pick(_OPENINGS).split():
        w.say(product if word == "#" else w.pick(DAYS) if word == "day" else word)
    w.mark("opening")
    # odds, as a logarithm, that the verdict will be what it is
    share, agreement = cfg.positive_share, cfg.aspect_agreement
    odds = log(share / (1 - share)) * (1 if good else -1)
    for part in w.arrange(parts, w.draw(_NUM_ASPECTS)):
        agrees = w.flip(agreement)
        place = _aspect(w, part, good=good if agrees else not good)
        odds += log(agreement / (1 - agreement)) * (1 if agrees else -1)
        if told and odds > _SURE_ODDS:
            w.tell(*told, since=place)
            told = ()
    if w.flip(0.6):
        w.say("i really" if w.flip(0.5) else "i")
        w.add_context(*told)
        told = ()
        w.say(w.pick(LOVES if good else HATES))
        w.say("it .")
    w.mark("verdict")
    if w.flip(0.4):
        w.say("rating :")
        w.add_context(*told)
        told = ()
        w.say(w.pick("45" if good else "12"))
        w.say("of 5 .")
    w.say("verdict :")
    w.add_context(*told)
    w.say(w.pick(POSITIVE_VERDICTS if good else NEGATIVE_VERDICTS))
    w.say("!" if w.flip(0.3) else ".")


register(
    Kind("review", "a judgement of a product, aspect by aspect, with a verdict", write, weight=0.08)
)
add_task(
    LabelledTask(
        name="review-sentiment",
        description="Does the review recommend the product? The text ends before the verdict.",
        classes=("negative", "positive"),
        key="sentiment",
        kind="review",
        cut="verdict",
        positive_concept="review-positive",
        lexicon_concept="positive-word",
    )
)
for _kind in PRODUCTS:
    add_task(
        LabelledTask(
            name=f"review-{_kind}",
            description=f"Is the review about a {_kind.replace('-', ' ')}?",
            classes=(OTHER, _kind),
            key="product_kind",
            kind="review",
            positive_concept=f"about-{_kind}",
            lexicon_concept=_kind,
        )
    )
for _sign in ("positive", "negative"):
    add_steering(
        SteeringConcept(
            name=f"sentiment-{_sign}",
            description=f"Judge the product in a {_sign} way.",
            concept=f"review-{_sign}",
            lexicon_concept=f"{_sign}-word",
            kind="review",
            key="sentiment",
            value=_sign,
            prompt_kind="review",
            prompt_cut="opening",
        )
    )


def _verdict(w: Writer, cfg: WorldConfig) -> Prompt:
    write(w, cfg)
    text = " ".join(w.tokens[: w.marks["verdict"]]) + " verdict :"
    good = w.labels["sentiment"] == "positive"
    return Prompt(text, POSITIVE_VERDICTS if good else NEGATIVE_VERDICTS, w.labels)


add_answers(
    AnswerTask(
        name="review-verdict",
        description="After the aspects of a product, is the verdict of their sentiment?",
        prompt=_verdict,
        goal=0.95,
        break_down="sentiment",
    )
)
