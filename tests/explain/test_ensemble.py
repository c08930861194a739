import pytest
import torch

from sae_lib.errors import BadInput, NotApplicable
from sae_lib.explain import explain_site, read_explainer
from sae_lib.explain.base import Evidence, ExplainerConfig, explain_all
from sae_lib.explain.ensemble import EnsembleConfig, confidence, fuse, overlap
from sae_lib.explain.statistics import LatentStatistics
from sae_lib.explain.vocabulary import Vocabulary
from sae_lib.saes.topk import TopKConfig
from sae_lib.warehouse.rows import ExplanationRow

NOTHING = Evidence(
    model=None,
    site="resid_post.0",
    coder=None,  # type: ignore[arg-type]
    statistics=LatentStatistics(1, 1, 1),
    examples={},
    vocabulary=Vocabulary(["a"], torch.ones(1, dtype=torch.bool)),
    alive=[0],
)
PLAIN = ["max_act", "pruned_max_act", "vocab_proj", "mut_info", "token_change", "contrast"]
METHODS = [*PLAIN, "ensemble"]


def row(method, keywords, scores=None, score=None, latent=0) -> ExplanationRow:
    scores = [1.0] * len(keywords) if scores is None else scores
    return ExplanationRow(latent, method, "", list(keywords), scores, score)


def test_words_that_several_methods_name_early_lead():
    found = fuse([row("a", ["x", "y", "z"]), row("b", ["y", "w"])], 10)
    # weights 1, 6/7, 6/8 by rank
    assert found.words == ["y", "x", "w", "z"]
    assert found.scores == pytest.approx([(1 + 6 / 7) / 2, 1 / 2, 6 / 14, 6 / 16])
    assert found.agreement == 0.5


def test_one_method_alone_has_no_agreement_and_keeps_its_order():
    found = fuse([row("a", ["c", "b", "a"])], 10)
    assert found.words == ["c", "b", "a"]
    assert found.scores[0] == 1.0
    assert found.agreement is None
    assert fuse([], 10).words == []


def test_suppressed_words_take_no_part_and_case_does_not_matter():
    found = fuse([row("a", ["Dog", "cat"], [2.0, -1.0]), row("b", ["dog"])], 10)
    assert found.words == ["Dog"]
    assert found.agreement == 1.0


def test_overlap_is_the_share_of_the_shorter_list():
    assert overlap(["a", "b", "c", "d"], ["b", "x"]) == 0.5
    assert overlap([], ["a"]) == 0.0


def test_confidence_is_the_mean_of_what_is_known():
    assert confidence(0.5, [1.0, 0.0]) == 0.5
    assert confidence(0.4, []) == 0.4
    assert confidence(None, [0.7]) == 0.7
    assert confidence(None, []) is None


def test_both_sides_are_told_in_one_row_with_its_label():
    cfg = EnsembleConfig()
    said = [
        row("max_act", ["new", "the"]),
        row("contrast", ["new"]),
        row("vocab_proj", ["york", "new", "jersey"], [3.0, 2.0, -1.0]),
        row("somebody_else", ["never"]),
    ]
    [found] = cfg.combine(NOTHING, said)
    assert found.text == 'new, the -> york | fires on "new", "the"; promotes "york", "new"'
    assert cfg.label(found) == "new, the -> york"
    assert found.keywords == ["new", "york", "the"]
    assert found.score == 1.0
    assert found.score_definition == "confidence"
    # the word of both sides: (1 + 6/7) / 2; of the first method of two, second: 6/7/2/2
    assert found.keyword_scores == pytest.approx([(1 + 6 / 7) / 2, 0.5, 6 / 28])


def test_a_side_that_nobody_spoke_for_does_not_count():
    [found] = EnsembleConfig().combine(NOTHING, [row("max_act", ["a"]), row("contrast", ["a"])])
    assert found.keyword_scores == [1.0]
    assert EnsembleConfig().label(found) == "a"


def test_scores_of_explanations_enter_the_confidence():
    said = [row("max_act", ["a"]), row("pruned_max_act", ["a"], score=0.0)]
    [found] = EnsembleConfig().combine(NOTHING, said)
    assert found.score == 0.5


def test_a_separator_in_a_word_does_not_cut_the_label():
    said = [row("max_act", ["a", "|"]), row("contrast", ["a", "|"])]
    [found] = EnsembleConfig().combine(NOTHING, said)
    assert EnsembleConfig().label(found) == "a, |"


def test_latents_without_a_word_have_no_label():
    said = [row("max_act", []), row("contrast", ["b"], latent=1)]
    first, second = EnsembleConfig().combine(NOTHING, said)
    assert (first.text, EnsembleConfig().label(first)) == ("no method names a word", None)
    assert EnsembleConfig().label(second) == "b"


def test_it_needs_two_methods_and_two_sides():
    with pytest.raises(NotApplicable, match="two or more"):
        EnsembleConfig().combine(NOTHING, [row("max_act", ["a"])])
    with pytest.raises(BadInput, match="not on both"):
        EnsembleConfig(inputs=("max_act",), outputs=("max_act",)).check(NOTHING)


class Says(ExplainerConfig):
    def explain(self, evidence):
        if self.method == "silent":
            raise NotApplicable("silent", "it has nothing to say.")
        return [row(self.method, ["a"])]


def test_what_combines_comes_last_wherever_it_stands():
    methods = [
        EnsembleConfig(),
        Says(method="max_act"),
        Says(method="silent"),
        Says(method="contrast"),
    ]
    rows, reasons = explain_all(NOTHING, methods)
    assert [r.method for r in rows] == ["max_act", "contrast", "ensemble"]
    assert reasons == {"silent": "it has nothing to say."}
    rows, reasons = explain_all(NOTHING, methods[:2])
    assert [r.method for r in rows] == ["max_act"]
    assert "two or more" in reasons["ensemble"]


def test_all_methods_of_an_experiment_work_together(model, corpus):
    coder = TopKConfig(d_in=8, d_sae=16, k=3, aux_k=4, seed=0).build()
    methods = [read_explainer(name) for name in METHODS]
    found = explain_site(model, corpus, "resid_post.0", {"a": coder}, methods)["a"]
    assert found.not_applicable == {}
    assert {r.method for r in found.explanations} == set(METHODS)
    own = {r.latent: r for r in found.explanations if r.method == "ensemble"}
    for latent in found.latents:
        if latent.latent in own:
            assert latent.label == EnsembleConfig().label(own[latent.latent])
