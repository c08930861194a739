import numpy as np

from sae_lib.synthetic.world.concepts import CONCEPTS, ancestors, lexicon
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import documents
from sae_lib.synthetic.world.tokenizer import BOS, EOS, encode
from sae_lib.synthetic.world.truth import concept_frequencies, concept_ids, concept_matrix

DOCS = list(documents(WorldConfig(), 0, 300))
WORDS = [word for doc in DOCS for word in ("<bos>", *doc.tokens, "<eos>")]
MATRIX = concept_matrix(DOCS).toarray()
COLUMN = {id: i for i, id in enumerate(concept_ids())}


def column(id: str) -> np.ndarray:
    return MATRIX[:, COLUMN[id]].astype(bool)


def test_rows_are_the_tokens_a_model_reads():
    stream = [id for doc in DOCS for id in (BOS, *encode(doc.tokens), EOS)]
    assert MATRIX.shape == (len(stream), len(CONCEPTS))
    specials = np.isin(stream, [BOS, EOS])
    assert not MATRIX[specials].any()
    assert MATRIX[~specials].any(axis=1).all()
    without = concept_matrix(DOCS, with_specials=False).toarray()
    np.testing.assert_array_equal(without, MATRIX[~specials])


def test_token_concepts_are_active_exactly_at_their_words():
    for id in ("animal", "bird", "dog", "nurse", "positive-word", "digit", "sea-word"):
        expected = np.isin(WORDS, lexicon(id))
        np.testing.assert_array_equal(column(id), expected)
        assert id == "dog" or expected.any()


def test_a_child_is_never_active_without_its_parents():
    for id in CONCEPTS:
        for general in ancestors(id):
            assert not (column(id) & ~column(general)).any(), (id, general)


def test_document_concepts_follow_the_labels_from_where_they_are_told():
    row = 0
    for doc in DOCS:
        words = slice(row + 1, row + 1 + len(doc.tokens))
        assert column(f"kind-{doc.kind}")[words].all()
        for kind, label, names, id in (
            ("review", "sentiment", ("positive", "negative"), "review-{}"),
            ("biography", "gender", ("female", "male"), "subject-{}"),
            ("story", "number", ("singular", "plural"), "hero-{}"),
        ):
            if doc.kind == kind:
                for name in names:
                    held = column(id.format(name))[words]
                    assert held[-1] == (doc.labels[label] == name)
                    assert (np.diff(held.astype(int)) >= 0).all(), "nothing told is taken back"
        row += len(doc.tokens) + 2


def test_no_two_concepts_of_a_scope_hold_at_exactly_the_same_tokens():
    matrix = concept_matrix(documents(WorldConfig(), 0, 2000)).toarray()
    seen: dict[tuple[str, bytes], str] = {}
    twins = []
    for id, at in COLUMN.items():
        rows = np.flatnonzero(matrix[:, at])
        if len(rows) >= 50:  # rare ones may agree by chance
            other = seen.setdefault((CONCEPTS[id].scope, rows.tobytes()), id)
            twins += [{other, id}] if other != id else []
    assert twins == [{"plot", "story-ending"}], "only the ending follows from something else"


def test_the_word_before_a_value_knows_that_it_comes():
    free = ~column("kind-opinion")  # where values stand between options
    for attribute in ("birthplace", "currency", "pet"):
        value, before = column(f"value-{attribute}") & free, column(f"next-{attribute}") & free
        starts = value & ~np.roll(value, 1)
        np.testing.assert_array_equal(np.roll(before, 1), starts)
        assert starts.any()


def test_an_entity_is_active_where_its_name_ends():
    found = 0
    for id in CONCEPTS:
        if id.startswith("entity-"):
            for row in np.flatnonzero(column(id)):
                name = " ".join(WORDS[row - 5 : row + 1])
                assert name.endswith(id.removeprefix("entity-").replace("-", " "))
                assert column("known-entity")[row]
                found += 1
    assert found > 20
    assert not (column("known-entity") & column("unknown-entity")).any()


def test_scopes_split_the_columns():
    token = concept_matrix(DOCS, scope="token")
    context = concept_matrix(DOCS, scope="context")
    assert token.shape[1] + context.shape[1] == len(CONCEPTS)
    assert token.nnz + context.nnz == MATRIX.sum()


def test_frequencies_fall_over_several_orders_of_magnitude():
    frequencies = concept_frequencies(concept_matrix(DOCS))
    np.testing.assert_allclose(frequencies, MATRIX.mean(axis=0))
    active = frequencies[frequencies > 0]
    assert active.max() > 0.3
    assert active.min() < 3e-4
