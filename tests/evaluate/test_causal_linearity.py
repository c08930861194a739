"""Moving latents against moving logits: known answers, and the whole pass over a tiny model."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_lib.evaluate.causal_linearity import CausalLinearityConfig

Z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0], [5.0, 7.0]])
"""Neighbours: 0 and 1, 2 and 3."""

WEIGHTS = torch.tensor([[1.0, -1.0, 0.5], [0.0, 2.0, 1.0]])


class Passes:
    """A model whose logits are ``after`` of the rows, for two contexts of two positions."""

    def __init__(self, clean: Tensor, after: Any) -> None:
        self.clean, self._after = SimpleNamespace(logits=clean.reshape(2, 2, -1)), after

    def logits(self, rows: Tensor, positions: str) -> Tensor:
        assert positions == "kept"
        return self._after(rows).reshape(2, 2, -1)


class Identity:
    def reconstruct(self, x: Tensor, z: Tensor) -> Tensor:
        return z


def value(tools: Any, passes: Any, document: Tensor | None = None, **settings: Any) -> Any:
    batch = tools.batch_of(Z.clone(), Z.clone(), Z.clone())
    tokens = torch.full((2, 2), 5)
    batch = batch._replace(
        tokens=tokens,
        keep=tokens > 0,
        passes=passes,
        context=torch.tensor([0, 0, 1, 1]),
        document=document,
    )
    metric = CausalLinearityConfig(**settings)
    (row,) = tools.run_metric(metric, [batch], coder=Identity()).rows()
    return row


def test_a_linear_model_and_a_perfect_coder_follow_exactly(tools):
    row = value(tools, Passes(Z @ WEIGHTS, lambda rows: rows @ WEIGHTS))
    assert row.value == pytest.approx(0.0, abs=1e-12)
    assert (row.n, row.unit, row.params) == (2, "contexts", {"shift": 0.5})


def test_a_model_that_does_not_listen_scores_one(tools):
    row = value(tools, Passes(Z @ WEIGHTS, lambda rows: torch.zeros(4, 3)))
    assert row.value == pytest.approx(1.0)


def test_a_model_that_squares_by_hand(tools):
    # context 0: z 0 and 1, logits 0 and 1: half way the target is .5, the model says .25;
    # moved: (.25-.5)^2 each; left: .5^2 each. Context 1: 49 and 25 (z_2 = 5, 7 apart):
    # target 37, model at 6: 36; moved: 1 each; left: 12^2 each
    last = lambda rows: rows[:, 1:].square()  # noqa: E731
    clean = torch.tensor([[0.0], [1.0], [25.0], [49.0]])
    first = lambda rows: torch.where(rows[:, 1:] == 0, rows[:, :1].square(), last(rows))  # noqa: E731
    row = value(tools, Passes(clean, first))
    assert row.value == pytest.approx((2 * 0.0625 + 2 * 1) / (2 * 0.25 + 2 * 144))


def test_the_shift_is_the_experiments(tools):
    clean = torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    still = Passes(clean, lambda rows: clean)
    whole = Passes(clean, lambda rows: clean if torch.equal(rows, Z) else clean.flip(0))
    assert value(tools, whole, shift=1.0).value == pytest.approx(0.0)
    assert value(tools, still, shift=1.0).value == pytest.approx(1.0)


def test_documents_of_one_context_are_kept_apart(tools):
    apart = torch.tensor([[0, 1], [2, 2]])
    wrong = Z @ WEIGHTS
    wrong[:2] += 100.0  # the first context has no neighbours, so this cannot count

    def after(rows: Tensor) -> Tensor:
        logits = rows @ WEIGHTS
        logits[:2] += 7.0
        return logits

    row = value(tools, Passes(wrong, after), document=apart)
    assert row.value == pytest.approx(0.0, abs=1e-12)
    assert row.n == 1


def test_tokens_without_company_give_no_number_but_a_reason(tools):
    alone = torch.tensor([[0, 1], [2, 3]])
    row = value(tools, Passes(Z @ WEIGHTS, lambda rows: rows @ WEIGHTS), document=alone)
    assert row.value is None
    assert row.reason == "no token was kept"


def test_without_a_language_model_the_rows_say_so(tools):
    batch = tools.batch_of(torch.zeros(3, 2))
    with pytest.raises(Exception, match="without a language model"):
        tools.run_metric(CausalLinearityConfig(), [batch])


def test_the_pass_over_a_model_gives_what_the_model_says(tools, model):
    from sae_lib.evaluate import evaluate_site
    from sae_lib.training.objectives.formal_causal import nearest_latents

    coder = tools.random_coder()
    split = tools.TokensInMemory(tools.random_tokens())
    found = evaluate_site(
        model,
        split,
        {"resid_post.0": {"it": coder}},
        [CausalLinearityConfig()],
        mean_activation={"resid_post.0": torch.zeros(coder.d_in)},
        batch_contexts=2,
    )
    (row,) = found["resid_post.0", "it"].measurements
    moved_sum = left_sum = 0.0
    for _, rows in split.batches(3):
        mask = rows.document >= 0
        captured, clean = model.capture_and_logits(rows.tokens, ["resid_post.0"], mask=mask)
        x = captured["resid_post.0"][rows.keep]
        z = coder.encode(x)
        partner = nearest_latents(z, rows.keep, rows.document)

        def spliced(z: Tensor, rows: Any = rows, mask: Tensor = mask) -> Tensor:
            def edit(values: Tensor) -> Tensor:
                return values.masked_scatter(rows.keep.unsqueeze(-1), coder.decode(z))

            with torch.no_grad(), model.intervene({"resid_post.0": edit}):
                return model.logits(rows.tokens, mask=mask)[rows.keep]

        g = clean[rows.keep]
        target = (g + g[partner]) / 2
        counts = partner != torch.arange(len(partner))
        moved = (spliced((z + z[partner]) / 2) - target).square().mean(-1)
        left = (spliced(z) - target).square().mean(-1)
        moved_sum += moved[counts].sum().item()
        left_sum += left[counts].sum().item()
    assert row.value == pytest.approx(moved_sum / left_sum, rel=1e-4)
    assert row.value is not None
    assert 0 < row.value < 1.5
