"""Sets of whole texts: two attributes that coincide, many classes, two languages, texts unlike
those that were trained on, collections to search and to choose from, traces of learners.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Literal, NamedTuple

import numpy as np

from sae_lib.errors import UnknownName
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import Document, documents, split_of_text, text
from sae_lib.synthetic.world.kinds import bandits, decisions
from sae_lib.synthetic.world.kinds._grammar import ENGLISH, SINDRAL, clause_text, draw_clause
from sae_lib.synthetic.world.kinds.news import TOPICS
from sae_lib.synthetic.world.kinds.reviews import PRODUCTS
from sae_lib.synthetic.world.lexicon import DAYS, FAMILY_OF_PROFESSION
from sae_lib.synthetic.world.sets._base import (
    Row,
    TaskSet,
    add_set,
    balance,
    kept,
    writer,
    writers,
)

PROFESSION_IDS = {name: place for place, name in enumerate(sorted(FAMILY_OF_PROFESSION))}
GENDER_IDS = {"male": 0, "female": 1}
RATINGS = {"negative": 1.0, "positive": 5.0}
CATEGORY_IDS = {name: place for place, name in enumerate(PRODUCTS)}


def _of_kind(kind: str, stream: str, split: str, cfg: WorldConfig) -> Iterator[Document]:
    return documents(cfg.but(kind_weights={kind: 1.0}), split=f"sets/{stream}/{split}")


# --- two attributes that coincide ----------------------------------------------------------------

_BIOGRAPHY_COLUMNS = {
    "hard_text": "A biography.",
    "profession": "Number of the profession, in alphabetical order.",
    "gender": "0 male, 1 female.",
    "profession_name": "The profession.",
    "gender_name": "The gender.",
}
_REVIEW_COLUMNS = {
    "text": "A review up to its verdict.",
    "category": "Number of the kind of product.",
    "rating": "1.0 negative, 5.0 positive.",
    "category_name": "The kind of product.",
}


def _biographies(stream: str, split: str, cfg: WorldConfig) -> Iterator[Row]:
    for doc in _of_kind("biography", stream, split, cfg):
        profession, gender = doc.labels["profession"], doc.labels["gender"]
        yield {
            "hard_text": text(doc),
            "profession": PROFESSION_IDS[profession],
            "gender": GENDER_IDS[gender],
            "profession_name": profession,
            "gender_name": gender,
        }


def _reviews(stream: str, split: str, cfg: WorldConfig) -> Iterator[Row]:
    for doc in _of_kind("review", stream, split, cfg):
        category = doc.labels["product_kind"]
        yield {
            "text": " ".join(doc.tokens[: doc.marks["verdict"]]),
            "category": CATEGORY_IDS[category],
            "rating": RATINGS[doc.labels["sentiment"]],
            "category_name": category,
        }


class SpuriousPair(NamedTuple):
    """Two values of a target and two of what coincides with it in biased data."""

    target: str
    """Column of the target."""
    positive: str
    """Value of the target in class 1."""
    negative: str
    spurious: str
    """Column of the spurious attribute."""
    with_positive: int | float
    """Its value that comes with the positive class in biased data."""
    with_negative: int | float
    rows: Callable[[str, str, WorldConfig], Iterator[Row]]
    text: str
    """Column of the text."""


def _of_professions(positive: str, negative: str) -> SpuriousPair:
    """The first is typed female, the second male."""
    return SpuriousPair(
        "profession_name", positive, negative, "gender", 1, 0, _biographies, "hard_text"
    )


SPURIOUS_PAIRS: Mapping[str, SpuriousPair] = {
    "scr-profession-gender": _of_professions("nurse", "surgeon"),
    "scr-dancer-painter": _of_professions("dancer", "painter"),
    "scr-programmer-engineer": _of_professions("programmer", "engineer"),
    "scr-teacher-historian": _of_professions("teacher", "historian"),
    "scr-product-sentiment": SpuriousPair(
        "category_name", "device-product", "book-product", "rating", 5.0, 1.0, _reviews, "text"
    ),
    "scr-furniture-toy": SpuriousPair(
        "category_name", "furniture-product", "toy-product", "rating", 5.0, 1.0, _reviews, "text"
    ),
}
Part = Literal["biased", "target", "spurious"]
PARTS: tuple[Part, ...] = ("biased", "target", "spurious")


def _pair_rows(name: str, split: str, cfg: WorldConfig) -> Iterator[Row]:
    pair = SPURIOUS_PAIRS[name]
    return balance(
        kept(pair.rows(name, split, cfg), split, (pair.text,)),
        (pair.positive, pair.negative),
        lambda row: row[pair.target],
        f"{name}/{cfg.seed}/{split}",
    )


def scr_rows(
    name: str, part: str, split: str, num: int, cfg: WorldConfig | None = None
) -> list[Row]:
    """The rows of one of the three data sets that spurious correlation removal needs, with a
    column ``label``.

    ``biased``: both attributes coincide, and either is the label. ``target``: the target is the
    label, and all four cells are equally frequent. ``spurious``: the same with the spurious
    attribute as label. Raises `UnknownName` for an unknown pair, part or split.
    """
    if name not in SPURIOUS_PAIRS:
        raise UnknownName("pair of attributes", name, SPURIOUS_PAIRS)
    if part not in PARTS:
        raise UnknownName("part", part, PARTS)
    pair = SPURIOUS_PAIRS[name]
    cfg = (cfg or WorldConfig()).but(gender_profession_correlation=0.0)
    one, other = (pair.positive, pair.with_positive), (pair.negative, pair.with_negative)
    cells = (one, other)
    if part != "biased":
        cells += ((pair.positive, pair.with_negative), (pair.negative, pair.with_positive))
    rows = balance(
        kept(pair.rows(f"{name}/{part}", split, cfg), split, (pair.text,)),
        cells,
        lambda row: (row[pair.target], row[pair.spurious]),
        f"{name}/{part}/{cfg.seed}/{split}",
    )
    found = []
    for row, _ in zip(rows, range(num), strict=False):
        spurious = row[pair.spurious] == pair.with_positive
        row["label"] = int(spurious if part == "spurious" else row[pair.target] == pair.positive)
        found.append(row)
    return found


for _name, _pair in SPURIOUS_PAIRS.items():
    _is_biography = _pair.text == "hard_text"
    add_set(
        TaskSet(
            name=_name,
            description=f"{_pair.positive} against {_pair.negative}, with {_pair.spurious} as what "
            "may coincide. "
            + (
                "Of either profession, the share of the gender that it is typed with is half of "
                "one plus `gender_profession_correlation`."
                if _is_biography
                else "Ratings are independent of the product; `scr_rows` makes them coincide."
            ),
            used_for=("scr", "regularisation", "circuits"),
            columns=_BIOGRAPHY_COLUMNS if _is_biography else _REVIEW_COLUMNS,
            rows=partial(_pair_rows, _name),
            texts=(_pair.text,),
            balanced=(_pair.target,),
        )
    )

# --- many classes --------------------------------------------------------------------------------

TPP_PROFESSIONS = ("nurse", "painter", "engineer", "teacher", "farmer")


def _tpp_professions(split: str, cfg: WorldConfig) -> Iterator[Row]:
    """Balanced over the genders within each profession, as the real sets are."""
    return balance(
        kept(_biographies("tpp-profession", split, cfg), split, ("hard_text",)),
        tuple((name, gender) for name in TPP_PROFESSIONS for gender in GENDER_IDS.values()),
        lambda row: (row["profession_name"], row["gender"]),
        f"tpp-profession/{cfg.seed}/{split}",
    )


def _tpp_products(split: str, cfg: WorldConfig) -> Iterator[Row]:
    return balance(
        kept(_reviews("tpp-product", split, cfg), split, ("text",)),
        tuple((name, rating) for name in PRODUCTS for rating in RATINGS.values()),
        lambda row: (row["category_name"], row["rating"]),
        f"tpp-product/{cfg.seed}/{split}",
    )


add_set(
    TaskSet(
        name="tpp-profession",
        description=f"Biographies of {len(TPP_PROFESSIONS)} professions, of as many women as men.",
        used_for=("tpp", "sparse-probing"),
        columns=_BIOGRAPHY_COLUMNS,
        rows=_tpp_professions,
        texts=("hard_text",),
        balanced=("profession", "gender"),
    )
)
add_set(
    TaskSet(
        name="tpp-product",
        description=f"Reviews of {len(PRODUCTS)} kinds of products, as many good as bad ones.",
        used_for=("tpp", "sparse-probing"),
        columns=_REVIEW_COLUMNS,
        rows=_tpp_products,
        texts=("text",),
        balanced=("category", "rating"),
    )
)

# --- two languages -------------------------------------------------------------------------------


def _toxicity(split: str, cfg: WorldConfig) -> Iterator[Row]:
    def rows() -> Iterator[Row]:
        for doc in _of_kind("comment", "cross-lingual-toxicity", split, cfg):
            yield {
                "language": doc.labels["language"],
                "text": text(doc),
                "toxic": int(doc.labels["toxicity"] == "toxic"),
            }

    return balance(
        kept(rows(), split, ("text",)),
        tuple((language, toxic) for language in (ENGLISH, SINDRAL) for toxic in (0, 1)),
        lambda row: (row["language"], row["toxic"]),
        f"cross-lingual-toxicity/{cfg.seed}/{split}",
    )


add_set(
    TaskSet(
        name="cross-lingual-toxicity",
        description="Comments in two languages that share no word but names and marks.",
        used_for=("classification", "detoxification"),
        columns={
            "language": f"{ENGLISH} or {SINDRAL}.",
            "text": "A comment.",
            "toxic": "1 if it insults.",
        },
        rows=_toxicity,
        texts=("text",),
        balanced=("language", "toxic"),
    )
)


def _translations(split: str, cfg: WorldConfig) -> Iterator[Row]:
    for w in writers("parallel", cfg.seed, split):
        clause = draw_clause(w)
        yield {
            "english": clause_text(clause, ENGLISH),
            "sindral": clause_text(clause, SINDRAL),
            "clause": clause.form,
        }


add_set(
    TaskSet(
        name="parallel",
        description="Statements in both languages.",
        used_for=("classification", "transfer", "contrastive-texts"),
        columns={
            "english": "The statement.",
            "sindral": "Its translation.",
            "clause": "What sort of statement it is.",
        },
        rows=_translations,
        texts=("english", "sindral"),
    )
)

# --- texts unlike those that were trained on -----------------------------------------------------

LONG = 126
"""Words beyond which a text is longer than any that a short context holds."""


def _corpus(
    name: str, dials: Mapping[str, object], longer_than: int, split: str, cfg: WorldConfig
) -> Iterator[Row]:
    for doc in documents(cfg.but(**dials), split=f"sets/{name}/{split}"):
        if len(doc.tokens) > longer_than:
            yield {"text": text(doc), "kind": doc.kind, "num_words": len(doc.tokens)}


_CORPORA: dict[str, tuple[str, tuple[str, ...], dict[str, object], int]] = {
    "in-distribution": (
        "Documents of the world as it is.",
        ("generalisation", "reconstruction", "coverage", "concept-mixing", "transfer"), {}, 0),
    "ood-recipes": (
        "Recipes, of which the world has none: known words in a grammar of their own.",
        ("generalisation",), {"kind_weights": {"recipe": 1.0}}, 0),
    "ood-gender-independent": (
        "Biographies in which gender and profession are independent.",
        ("generalisation", "regularisation"),
        {"kind_weights": {"biography": 1.0}, "gender_profession_correlation": 0.0}, 0),
    "ood-gender-correlated": (
        "Biographies in which gender and profession nearly coincide (correlation .95).",
        ("generalisation", "regularisation"),
        {"kind_weights": {"biography": 1.0}, "gender_profession_correlation": 0.95}, 0),
    "ood-mixed-topics": (
        "News that change their topic with every other sentence.",
        ("generalisation",), {"kind_weights": {"news": 1.0}, "topic_purity": 0.5}, 0),
    "ood-chat": (
        "Instructions, requests and opinions in the form of a chat.",
        ("generalisation", "transfer"),
        {"kind_weights": {"instruction": 1.0, "request": 1.0, "opinion": 1.0}, "chat": True}, 0),
    "longer-news": (
        "News with twice as many sentences.",
        ("generalisation",), {"kind_weights": {"news": 1.0}, "length_factor": 2.0}, 0),
    "longer-context": (
        f"Documents of more than {LONG} words, which no text of the usual world has.",
        ("generalisation",),
        {"kind_weights": {"news": 1.0, "story": 1.0, "diary": 1.0, "bandit": 1.0},
         "length_factor": 3.0}, LONG),
}  # fmt: skip
for _name, (_description, _uses, _dials, _longer_than) in _CORPORA.items():
    add_set(
        TaskSet(
            name=_name,
            description=_description,
            used_for=_uses,
            columns={
                "text": "A document.",
                "kind": "Which kind of document it is.",
                "num_words": "How many words it has.",
            },
            rows=partial(_corpus, _name, _dials, _longer_than),
            texts=("text",),
        )
    )

# --- collections to search and to choose from ----------------------------------------------------

EMBEDDING_SIZE = 64
EMBEDDING_NOISE = 0.1
POOL_SIZE = 5000
POOL_STEEPNESS = 0.65
"""Each topic of the pool is this many times as frequent as the one before."""
DUPLICATE_SHARE = 0.15


@cache
def _topic_directions() -> np.ndarray:
    rng = np.random.default_rng(_seed("topic directions"))
    return rng.normal(size=(len(TOPICS), EMBEDDING_SIZE)) / EMBEDDING_SIZE**0.5


def _seed(told: str) -> int:
    return int.from_bytes(hashlib.blake2b(told.encode(), digest_size=8).digest())


def embed(words: str, relevance: Mapping[str, float]) -> list[float]:
    """A random projection of the shares of topics, with noise that depends on the text."""
    shares = np.array([relevance.get(topic, 0.0) for topic in TOPICS])
    noise = np.random.default_rng(_seed(words)).normal(size=EMBEDDING_SIZE)
    clean = shares @ _topic_directions()
    return [float(x) for x in clean + EMBEDDING_NOISE * noise / EMBEDDING_SIZE**0.5]


def _sentences(doc: Document) -> list[tuple[str, str]]:
    """Topic and words of each topical sentence."""
    found: list[tuple[str, str]] = []
    start = doc.marks["dateline"]
    for place in range(start, len(doc.tokens)):
        if doc.tokens[place] != ".":
            continue
        topics = [id for id in doc.contexts[place] if id.startswith("sentence-")]
        if topics:
            words = " ".join(doc.tokens[start : place + 1])
            found.append((topics[0].removeprefix("sentence-"), words))
        start = place + 1
    return found


def _retrieval_documents(split: str, cfg: WorldConfig) -> Iterator[Row]:
    mixed = cfg.but(topic_purity=0.6)
    for doc in _of_kind("news", "retrieval-documents", split, mixed):
        topics = [topic for topic, _ in _sentences(doc)]
        relevance = {topic: topics.count(topic) / len(topics) for topic in dict.fromkeys(topics)}
        words = text(doc)
        yield {
            "text": words,
            "topics": list(relevance),
            "relevance": relevance,
            "embedding": embed(words, relevance),
        }


def _retrieval_queries(split: str, cfg: WorldConfig) -> Iterator[Row]:
    def rows() -> Iterator[Row]:
        for doc in _of_kind("news", "retrieval-queries", split, cfg):
            topic, words = _sentences(doc)[0]
            yield {"text": words, "topic": topic, "embedding": embed(words, {topic: 1.0})}

    return balance(
        kept(rows(), split, ("text",)),
        tuple(TOPICS),
        lambda row: row["topic"],
        f"retrieval-queries/{cfg.seed}/{split}",
    )


_EMBEDDING = f"{EMBEDDING_SIZE} numbers: a random projection of the shares, with noise."
add_set(
    TaskSet(
        name="retrieval-documents",
        description="News of one topic and of several, to be searched.",
        used_for=("semantic-search",),
        columns={
            "text": "A document.",
            "topics": "Its topics in the order in which they come.",
            "relevance": "Share of the sentences of each of them.",
            "embedding": _EMBEDDING,
        },
        rows=_retrieval_documents,
        texts=("text",),
    )
)
add_set(
    TaskSet(
        name="retrieval-queries",
        description="Single sentences to search with.",
        used_for=("semantic-search",),
        columns={"text": "A sentence.", "topic": "Its topic.", "embedding": _EMBEDDING},
        rows=_retrieval_queries,
        texts=("text",),
        balanced=("topic",),
    )
)


def _near_duplicate(words: str, split: str) -> str | None:
    """The same news of another day, if that text belongs to the split."""
    listed = words.split()
    place = listed.index(":") - 1
    for day in DAYS:
        other = " ".join([*listed[:place], day, *listed[place + 1 :]])
        if day != listed[place] and split_of_text(other) == split:
            return other
    return None


def _pool(split: str, cfg: WorldConfig) -> Iterator[Row]:
    """Training documents to choose from; the other splits have as many of each topic."""
    topics = tuple(TOPICS)

    def rows() -> Iterator[Row]:
        for doc in _of_kind("news", "selection-pool", split, cfg):
            yield {"text": text(doc), "topic": doc.labels["topic"], "duplicate_of": -1}

    found = kept(rows(), split, ("text",))
    if split != "train":
        yield from balance(
            found, topics, lambda row: row["topic"], f"selection-pool/{cfg.seed}/{split}"
        )
        return
    w = writer("selection-pool", cfg.seed)
    chance = {topic: POOL_STEEPNESS**place for place, topic in enumerate(topics)}
    pool: list[Row] = []
    taken: set[str] = set()
    for row in found:
        if len(pool) == POOL_SIZE:
            return
        if pool and w.flip(DUPLICATE_SHARE):
            original = w.pick(range(len(pool)))
            first = pool[original]["duplicate_of"]
            original = original if first < 0 else first
            words = _near_duplicate(pool[original]["text"], split)
            if words and words not in taken:
                copy = {**pool[original], "text": words, "duplicate_of": original}
                pool.append(copy)
                taken.add(words)
                yield copy
                continue
        if row["text"] not in taken and w.flip(chance[row["topic"]] * (1 - 1e-9)):
            pool.append(row)
            taken.add(row["text"])
            yield row


add_set(
    TaskSet(
        name="selection-pool",
        description=f"{POOL_SIZE} documents of very unequally frequent topics, with near "
        "duplicates, to choose training data from. In the validation and test splits all topics "
        "are equally frequent and there are no duplicates.",
        used_for=("data-selection",),
        columns={
            "text": "A document.",
            "topic": "What it is about.",
            "duplicate_of": "Number of the row that it hardly differs from, or -1.",
        },
        rows=_pool,
        texts=("text",),
    )
)

# --- traces of learners --------------------------------------------------------------------------

_LEARNERS = {
    "bandit": ("Choices between two levers, and what they won.", bandits.action_places),
    "decision": ("Journeys of two choices each, and what they brought.", decisions.action_places),
}


def _traces(kind: str, split: str, cfg: WorldConfig) -> Iterator[Row]:
    for doc in _of_kind(kind, f"td-{kind}", split, cfg):
        yield {
            "text": text(doc),
            "measures": {name: [list(at) for at in found] for name, found in doc.measures.items()},
            "actions": [
                {"place": at.place, "actions": list(at.actions), "probability": at.probability}
                for at in _LEARNERS[kind][1](doc.tokens)
            ],
        }


for _name, (_description, _) in _LEARNERS.items():
    add_set(
        TaskSet(
            name=f"td-{_name}",
            description=_description,
            used_for=("td-learning",),
            columns={
                "text": "The trace.",
                "measures": "By name: pairs of the place of a word and what is true there, such "
                "as the value of an action or a prediction error.",
                "actions": "Places of choices, what could be chosen, and the chance of the first.",
            },
            rows=partial(_traces, _name),
            texts=("text",),
        )
    )
