import numpy as np
import pytest
import torch

from sae_lib.apply import apply_site
from sae_lib.apply.steering import SteeringConfig
from sae_lib.apply.steering_rows import Trial, best_rows, halves, ratio_of_sums
from sae_lib.apply.steering_scores import Cells, Reference
from sae_lib.apply.tasks import ConceptConfig


@pytest.fixture(scope="module")
def config(texts) -> SteeringConfig:
    concept = ConceptConfig(
        name="late words",
        positive=tuple(texts(20, 12, seed=0)),
        negative=tuple(text.replace("w2", "w0") for text in texts(0, 12, seed=1)),
        prompts=("w01 w02", "w03", "w04 w05", "w06 w07", "w08", "w09"),
        lexicon=tuple(f"w{i}" for i in range(20, 28)),
    )
    return SteeringConfig(
        concepts=(concept,), strengths=(0.5, 2.0), max_new_tokens=5, num_prompts=6, neutral_texts=3
    )


@pytest.fixture(scope="module")
def applied(bench, config):
    return apply_site(bench, [config]).rows


def test_every_method_is_swept_over_every_strength_on_both_halves(applied):
    for rows in applied.values():
        assert {row.method for row in rows} == {"latent", "difference_in_means", "random", "none"}
        for method in ("latent", "difference_in_means", "random"):
            seen = {
                (r.measurement.params["strength"], r.measurement.params["split"])
                for r in rows
                if r.method == method and r.measurement.name == "overall"
            }
            assert seen == {(s, half) for s in (0.5, 2.0) for half in ("dev", "test")}


def test_all_methods_are_added_at_equal_lengths(applied):
    lengths = {
        (r.measurement.params["strength"], r.measurement.params["length"])
        for rows in applied.values()
        for r in rows
        if "length" in r.measurement.params and r.method != "none"
    }
    assert len(lengths) == 2
    assert len({length / strength for strength, length in lengths}) == 1


def test_the_length_is_in_units_of_the_mean_activation(applied, bench, config):
    concept = config.concepts[0]
    norms = []
    for text in [*concept.positive, *concept.negative]:
        ids = bench.model.tokenizer(text, add_special_tokens=False)["input_ids"]
        x = bench.model.capture(torch.tensor([[1, *ids]]), [bench.site])[bench.site][0, 1:]
        norms += x.norm(dim=1).tolist()
    row = next(r for r in applied["topk-s0"] if r.measurement.params.get("strength") == 2.0)
    assert row.measurement.params["length"] == pytest.approx(2 * np.mean(norms), rel=1e-5)


def test_the_strength_is_chosen_on_one_half_and_reported_on_the_other(applied):
    for rows in applied.values():
        for method in ("latent", "difference_in_means"):
            own = [r.measurement for r in rows if r.method == method and r.task == "late words"]
            by_strength = {
                (m.params["strength"], m.params["split"]): m.value
                for m in own
                if m.name == "overall"
            }
            (best,) = [m for m in own if m.name == "best_overall"]
            if best.value is None:
                continue
            chosen = max((0.5, 2.0), key=lambda s: (by_strength[s, "dev"], -s))
            assert best.params["strength"] == chosen
            assert best.value == by_strength[chosen, "test"]


def test_unsteered_text_has_no_concept_score_no_gain_and_full_fluency(applied):
    found = {
        r.measurement.name: r.measurement.value
        for r in applied["topk-s0"]
        if r.method == "none" and r.measurement.params.get("split") == "test"
    }
    assert found["concept_score"] in (0.0, None)
    assert found["lexicon_gain"] == 0.0
    assert found["perplexity"] > 1


def test_what_needs_no_coder_is_the_same_for_all_and_company_changes_nothing(
    bench, coders, config, applied
):
    first, second = applied.values()
    shared = [[r for r in rows if r.method not in ("latent",)] for rows in (first, second)]
    assert shared[0] == shared[1]
    alone = bench._replace(coders={"topk-s1": coders["topk-s1"]})
    assert apply_site(alone, [config]).rows["topk-s1"] == applied["topk-s1"]


def test_the_latent_is_stated_with_its_score_and_strength_in_its_own_unit(applied, coders):
    for name, rows in applied.items():
        m = next(r.measurement for r in rows if r.method == "latent" and r.measurement.name == "kl")
        row_norm = float(coders[name].W_dec[m.params["latent"]].norm())
        unit = m.params["max_activation"] * row_norm
        assert m.params["max_activations"] == pytest.approx(m.params["length"] / unit)
        assert 0.5 <= m.params["train_auroc"] <= 1


def test_side_effects_grow_with_the_strength(applied):
    for rows in applied.values():
        kl = {
            (r.method, r.measurement.params["strength"]): r.measurement.value
            for r in rows
            if r.measurement.name == "kl"
        }
        for method in ("latent", "difference_in_means", "random"):
            assert 0 < kl[method, 0.5] < kl[method, 2.0]


def test_a_dead_coder_gives_a_reason_and_no_number(bench, coders, config):
    dead = type(coders["topk-s0"])(coders["topk-s0"].cfg).requires_grad_(False)
    dead.b_enc.fill_(-1e6)
    rows = apply_site(bench._replace(coders={"dead": dead}), [config]).rows["dead"]
    (absent,) = [r.measurement for r in rows if r.method == "latent"]
    assert absent.value is None
    assert "no latent is stronger" in absent.reason
    assert any(r.method == "difference_in_means" for r in rows)


def test_an_encoder_and_a_model_without_head_are_told_why(bench, config, monkeypatch):
    for attribute, reason in (("is_causal", "encoder"), ("has_lm_head", "no language-model head")):
        with monkeypatch.context() as patch:
            patch.setattr(bench.model, attribute, False)
            for rows in apply_site(bench, [config]).rows.values():
                assert [row.measurement.value for row in rows] == [None]
                assert reason in rows[0].measurement.reason


def test_prompts_take_turns_between_the_halves():
    half = halves(5)
    assert half["dev"].tolist() == [True, False, True, False, True]
    assert not (half["dev"] & half["test"]).any()
    assert (half["dev"] | half["test"]).all()


def test_test_prompts_have_no_say_in_the_strength():
    def trial(strength: float, dev: float, test: float) -> Trial:
        hits = np.array([[dev], [test], [dev], [test]], dtype=float)
        ones = np.ones((4, 1))
        return Trial(strength, Cells(hits, 10 * ones, 20 * ones, ones), np.zeros(4), None)

    plain = Cells(*(np.full((4, 1), value) for value in (0.0, 10.0, 20.0, 1.0)))
    reference = Reference(plain, np.full((4, 1), 60.0), positive_rate=0.5)
    rows = best_rows("m", "t", [trial(0.5, 3, 1), trial(1.0, 2, 5)], reference, {})
    found = {row.measurement.name: row.measurement for row in rows}
    assert found["best_concept_score"].params["strength"] == 0.5
    assert found["best_concept_score"].value == pytest.approx(0.1 / 0.5)


def test_the_error_of_a_ratio_of_sums_is_the_spread_over_resampled_texts():
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 20, 60).astype(float)
    sums = tokens * 0.3 + rng.normal(size=60)
    found = ratio_of_sums("kl", sums, tokens, {})
    draws = []
    for _ in range(500):
        i = rng.integers(0, 60, 60)
        draws.append(sums[i].sum() / tokens[i].sum())
    assert found.value == pytest.approx(sums.sum() / tokens.sum())
    assert found.stderr == pytest.approx(np.std(draws), rel=0.15)
