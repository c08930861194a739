"""The list of claims: each is complete, refers to what exists, and docs/claims.md shows it."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from sae_lib.claims import CLAIMS, Claim, Selector
from sae_lib.claims.listed import table
from sae_lib.claims.quantities import QUANTITIES
from sae_lib.evaluate import METRICS
from sae_lib.saes import VARIANTS
from sae_lib.training.objectives import OBJECTIVES

ROOT = Path(__file__).parents[2]

every_claim = pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)


@every_claim
def test_every_claim_is_about_what_exists(claim: Claim):
    for selector in filter(None, (claim.a, claim.b)):
        objective = OBJECTIVES[selector.objective]
        assert set(selector.of_objective) <= set(objective.model_fields)
        if selector.kind is not None:
            assert set(selector.sae) <= set(VARIANTS[selector.kind].model_fields)
        else:
            assert not selector.sae


@every_claim
def test_every_claim_has_a_sentence_and_a_source(claim: Claim):
    assert claim.statement.endswith(".")
    assert claim.papers
    assert all(paper.url.startswith("https://") and paper.where for paper in claim.papers)


def test_measured_quantities_are_definitions_that_metrics_have():
    known = {(d.name, d.definition) for m in METRICS.values() for d in m.definitions()}
    for quantity in QUANTITIES.values():
        if quantity.source == "metrics":
            assert {(quantity.measured, one) for one in quantity.definitions} <= known


def test_the_rows_of_the_survey_have_claims():
    kinds = {s.kind for claim in CLAIMS.values() for s in (claim.a, claim.b) if s}
    objectives = {s.objective for claim in CLAIMS.values() for s in (claim.a, claim.b) if s}
    assert set(VARIANTS) <= kinds
    assert set(OBJECTIVES) <= objectives


def test_the_documentation_lists_every_claim():
    text = (ROOT / "docs" / "claims.md").read_text()
    assert table() in text, "docs/claims.md is not current: paste sae_lib.claims.listed.table()"


SETTINGS = {
    "name": "n",
    "statement": "S.",
    "papers": (),
    "a": Selector(kind="topk"),
    "b": Selector(kind="standard"),
    "quantity": "fvu",
    "direction": "lower",
    "least": 0.1,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantity": "fuv"}, "'fuv' is no quantity; there are l0, fvu"),
        ({"at": "fvu"}, "cannot be compared where it is equal"),
        ({"b": None}, "either with other SAEs"),
        ({"against": 1.0}, "either with other SAEs"),
        ({"b": None, "against": 1.0}, "at nothing in particular"),
        ({"b": None, "against": 1.0, "at": None, "equal_flops": True}, "equal_flops needs"),
        ({"surprise": 1}, "Extra inputs"),
    ],
)
def test_a_claim_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        Claim.model_validate({**SETTINGS, **changes})
