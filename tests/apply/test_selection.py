from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from sae_lib.apply.selection import (
    GREEDY,
    SelectionConfig,
    coverage,
    greedy_select,
    label_entropy,
    present_latents,
    within_tokens,
)
from sae_lib.apply.tasks import DocumentPool


def naive_greedy(present: np.ndarray, n: int) -> list[tuple[int, int]]:
    """The five sentences of the definition, literally."""
    pool = set(range(len(present)))
    covered = np.zeros(present.shape[1], dtype=bool)
    chosen: list[tuple[int, int]] = []
    while pool and len(chosen) < n:
        gain = {i: int((present[i] & ~covered).sum()) for i in pool}
        best = max(pool, key=lambda i: (gain[i], present[i].sum(), -i))
        if gain[best] == 0 and covered.any():
            covered[:] = False
            continue
        chosen.append((best, gain[best]))
        pool.remove(best)
        covered |= present[best]
    return chosen


def random_sets(seed: int, documents: int = 24, latents: int = 19) -> np.ndarray:
    rng = np.random.default_rng(seed)
    present = rng.random((documents, latents)) < rng.uniform(0.02, 0.4, (documents, 1))
    present[rng.integers(0, documents, 2)] = False
    present[3] = present[7]  # a duplicate: ties everywhere
    return present


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("n", [1, 5, 24, 40])
def test_the_lazy_way_chooses_what_the_definition_chooses(seed, n):
    present = random_sets(seed)
    found = [(choice.document, choice.gain) for choice in greedy_select(present, n)]
    assert found == naive_greedy(present, n)
    assert len(found) == min(n, 24)
    assert len({document for document, _ in found}) == len(found)


@pytest.mark.parametrize("seed", range(6))
def test_three_of_eight_cover_nearly_as_much_as_the_best_three(seed):
    present = np.random.default_rng(seed).random((8, 20)) < 0.25
    greedy = [choice.document for choice in greedy_select(present, 3)]
    best = max(coverage(present, np.array(c)) for c in combinations(range(8), 3))
    assert coverage(present, np.array(greedy)) >= (1 - 1 / np.e) * best


@pytest.mark.parametrize("seed", range(4))
def test_gains_never_grow_within_a_round_and_rounds_start_when_all_is_covered(seed):
    present = random_sets(seed)
    choices = greedy_select(present, 24)
    assert choices[0].starts_round
    assert sum(choice.starts_round for choice in choices) > 1
    for before, after in pairwise(choices):
        assert after.starts_round or after.gain <= before.gain


def test_ties_go_to_the_fuller_document_and_then_to_the_smaller_number():
    present = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 1, 1]], dtype=bool)
    assert [c.document for c in greedy_select(present, 4)] == [1, 2, 3, 0]


def test_presence_is_relative_to_each_latents_own_maximum():
    z = torch.tensor([[10.0, 0.1, 0.0], [4.0, 0.0, 0.0], [6.0, 0.02, 0.0]])
    assert present_latents(z, 0.0).tolist() == [
        [True, True, False],
        [True, False, False],
        [True, True, False],
    ]
    assert present_latents(z, 0.5).tolist() == [
        [True, True, False],
        [False, False, False],
        [True, False, False],
    ]


def test_no_more_documents_fit_than_the_tokens_allow():
    lengths = np.array([5, 3, 4, 1])
    assert [within_tokens(lengths, n) for n in (0, 4, 5, 8, 12, 13, 99)] == [0, 0, 1, 2, 3, 4, 4]


def test_entropy_is_one_for_even_labels_and_zero_for_one_label():
    assert label_entropy(np.array(["a", "b", "a", "b"]), 2) == pytest.approx(1)
    assert label_entropy(np.array(["a", "a"]), 2) == 0
    assert label_entropy(np.array(["a", "b"]), 4) == pytest.approx(0.5)


@pytest.fixture
def applied():
    present = random_sets(0, documents=40, latents=200)
    lengths = np.random.default_rng(1).integers(3, 30, 40)
    pool = DocumentPool(
        [f"text {i}" for i in range(40)], list(range(100, 140)), ["ab"[i % 2] for i in range(40)]
    )
    return SelectionConfig(budgets=(2, 5, 99))._compare(present, lengths, pool), present, lengths


def test_greedy_covers_more_than_random_and_longest_at_equal_documents(applied):
    found, _, _ = applied
    values = {
        (row.method, row.measurement.params["n"]): row.measurement.value
        for row in found.rows
        if row.measurement.name == "coverage" and row.measurement.params["equal"] == "documents"
    }
    assert {n for _, n in values} == {2, 5}  # a budget beyond the pool is left out
    for n in (2, 5):
        assert values[GREEDY, n] >= max(values["random", n], values["longest_first", n])


def test_at_equal_tokens_nobody_has_more_tokens_than_greedy(applied):
    found, _, _ = applied
    budget = {
        row.measurement.params["n"]: row.measurement.params["tokens"]
        for row in found.rows
        if row.method == GREEDY
    }
    equal = [r.measurement.params for r in found.rows if r.measurement.params["equal"] == "tokens"]
    assert equal
    assert all(params["tokens"] <= budget[params["n"]] for params in equal)


def test_random_subsets_carry_an_interval_over_their_seeds(applied):
    found, present, _ = applied
    rows = [
        r.measurement
        for r in found.rows
        if r.method == "random" and r.measurement.name == "coverage"
    ]
    for m in rows:
        low, high = m.params["ci95"]
        assert m.n == 5
        assert m.unit == "seeds"
        assert low < m.value < high
        assert high - low == pytest.approx(2 * 2.776445 * m.stderr)  # t with 4 degrees of freedom
    orders = [np.random.default_rng(seed).permutation(40)[:2] for seed in range(5)]
    assert rows[0].value == pytest.approx(np.mean([coverage(present, o) for o in orders]))


def test_selected_documents_are_listed_with_what_they_add(applied):
    found, present, lengths = applied
    rows = found.selections
    assert [row.rank for row in rows] == list(range(5))
    covered = 0
    for row in rows:
        i = row.document - 100
        covered += row.gain
        assert row.num_tokens == lengths[i]
        assert row.num_latents == present[i].sum()
        assert row.covered == pytest.approx(covered / present.any(0).sum())
        assert row.text == f"text {i}"


def test_latents_that_never_fire_give_a_reason_and_no_number():
    pool = DocumentPool(["a"] * 3, [0, 1, 2], None)
    found = SelectionConfig()._compare(np.zeros((3, 4), dtype=bool), np.ones(3, dtype=int), pool)
    assert [row.measurement.value for row in found.rows] == [None]
    assert "no latent fires" in found.rows[0].measurement.reason
    assert found.selections == []
