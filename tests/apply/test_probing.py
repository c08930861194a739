import numpy as np
import pytest
import torch

from sae_lib.apply import apply_site
from sae_lib.apply.probing import ProbingConfig, majority_rows, random_dictionary, sparse_rows
from sae_lib.errors import BadInput

SEPARATING = "w27"


@pytest.fixture(scope="module")
def files(tmp_path_factory, texts):
    """A task that one word decides, and the same texts with labels that mean nothing."""
    folder = tmp_path_factory.mktemp("tasks")
    own = [text.replace(SEPARATING, "w01") for text in texts(0, 300, seed=0)]
    rows = [(text + f" {SEPARATING}" * 6 * (i % 2), i % 2) for i, text in enumerate(own)]
    noise = np.random.default_rng(0).permutation([y for _, y in rows])
    for name, labels in (("word", [y for _, y in rows]), ("noise", noise)):
        lines = [f"{text},{y}" for (text, _), y in zip(rows, labels, strict=True)]
        (folder / f"{name}.csv").write_text("\n".join(["text,label", *lines]))
    return folder


CONFIG = ProbingConfig(tasks=("word.csv", "noise.csv"), k=(1, 3), train_texts=160, test_texts=60)


@pytest.fixture(scope="module")
def applied(bench, files):
    return apply_site(bench._replace(relative_to=files), [CONFIG]).rows


def values(rows, name="auc", **params) -> dict[tuple[str, str], float]:
    return {
        (r.method, r.task): r.measurement.value
        for r in rows
        if r.measurement.name == name
        and all(r.measurement.params.get(k) == v for k, v in params.items())
    }


def test_a_word_that_decides_the_label_is_found_by_dense_probes_and_word_counts(applied):
    for rows in applied.values():
        found = values(rows)
        assert found["bag_of_words", "word.csv"] == 1.0
        assert found["dense_probe", "word.csv"] > 0.7
        assert found["sae_all_latents", "word.csv"] > 0.7


def test_labels_that_mean_nothing_are_not_predicted_by_any_method(applied):
    for rows in applied.values():
        for row in rows:
            if row.task == "noise.csv" and row.measurement.name == "auc":
                # 4 standard errors of a random order of 30 + 30 texts
                assert abs(row.measurement.value - 0.5) < 4 * 0.075, row


def test_every_method_is_there_for_every_task_and_k(applied):
    for rows in applied.values():
        assert {row.method for row in rows} == {
            "sae_probe",
            "sae_all_latents",
            "random_sae_probe",
            "residual_top_k",
            "dense_probe",
            "bag_of_words",
            "majority",
        }
        for method in ("sae_probe", "random_sae_probe", "residual_top_k"):
            ks = [
                r.measurement.params["k"]
                for r in rows
                if r.method == method and r.task == "word.csv"
            ]
            assert sorted(ks) == [1, 1, 3, 3]


def test_numbers_carry_their_errors_texts_and_columns(applied):
    for row in applied["topk-s0"]:
        m = row.measurement
        assert m.value is not None
        if row.task != "all":
            assert (m.n, m.unit) == (60, "texts")
            assert m.stderr is not None
            assert m.stderr >= 0
        if row.method == "sae_probe" and row.task != "all":
            assert len(m.params["columns"]) == m.params["k"]


def test_the_mean_over_tasks_is_their_mean_and_its_error_is_over_tasks(applied):
    rows = applied["topk-s0"]
    found = values(rows, "accuracy", k=1)
    both = [found["sae_probe", task] for task in ("word.csv", "noise.csv")]
    assert found["sae_probe", "all"] == pytest.approx(np.mean(both))
    (mean,) = [
        r.measurement
        for r in rows
        if (r.method, r.task, r.measurement.name) == ("sae_probe", "all", "accuracy")
        and r.measurement.params["k"] == 1
    ]
    assert mean.stderr == pytest.approx(np.std(both, ddof=1) / 2**0.5)
    assert (mean.n, mean.unit) == (2, "tasks")


def test_company_changes_nothing_and_the_seed_decides(bench, coders, files, applied):
    alone = bench._replace(coders={"topk-s1": coders["topk-s1"]}, relative_to=files)
    assert apply_site(alone, [CONFIG]).rows["topk-s1"] == applied["topk-s1"]


def test_a_random_dictionary_keeps_the_largest_of_unit_directions():
    encode = random_dictionary(torch.zeros(8), 32, 5, seed=0)
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
    z = encode(x)
    assert z.shape == (40, 32)
    assert bool(((z > 0).sum(1) <= 5).all())
    assert bool((z.max(1).values <= x.norm(dim=1) + 1e-5).all())
    assert torch.equal(z, random_dictionary(torch.zeros(8), 32, 5, seed=0)(x))


def test_nothing_is_chosen_or_fitted_on_test_texts():
    y = np.array([0, 1] * 20)
    noise = np.random.default_rng(0).normal(size=40)
    train = np.column_stack([noise, 3.0 * y, noise])
    test = np.column_stack([9.0 * y, 3.0 * (1 - y), noise])  # column 0 would do, if one peeked
    rows = sparse_rows("sae_probe", "t", 1, train, y, test, y)
    assert [row.measurement.value for row in rows] == [0.0, 0.0]
    assert rows[0].measurement.params["columns"] == [1]


def test_codes_that_differ_in_nothing_give_a_reason_and_no_number():
    y = np.array([0, 1, 0, 1])
    rows = sparse_rows("sae_probe", "t", 1, np.zeros((4, 3)), y, np.zeros((4, 3)), y)
    assert [row.measurement.value for row in rows] == [None, None]
    assert "no column differs" in rows[0].measurement.reason


def test_the_floor_is_the_share_of_the_commoner_training_class():
    rows = majority_rows("t", np.array([0, 0, 1]), np.array([0, 0, 0, 1]))
    assert [row.measurement.value for row in rows] == [0.75, 0.5]


def test_a_file_that_is_not_there_is_named(bench, tmp_path):
    with pytest.raises(BadInput, match=r"gone\.csv"):
        apply_site(bench._replace(relative_to=tmp_path), [ProbingConfig(tasks=("gone.csv",))])
