from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sae_lib.errors import NotApplicable
from sae_lib.evaluate import _passes
from sae_lib.evaluate._passes import CleanPass, Losses, counted_positions
from sae_lib.evaluate.base import EvalContext
from sae_lib.evaluate.model_loss import ModelLossConfig

CONTEXT = torch.tensor([0, 0, 1, 1])
WIGGLE = torch.tensor([-0.5, 0.3, -0.1, 0.3], dtype=torch.float64)
"""Differences between positions that cancel in every mean."""


class FakePasses:
    """Losses that are known in advance, for two contexts of two counted positions."""

    def __init__(self, ce: dict[str, float], kl: dict[str, float]) -> None:
        self._ce, self._kl = ce, kl
        self.clean = SimpleNamespace(ce=ce["clean"] + WIGGLE, context=CONTEXT)

    def replaced(self, rows: torch.Tensor, positions: str) -> Losses:
        return self._losses("spliced")

    def ablated(self, name: str, vector: torch.Tensor, positions: str) -> Losses:
        return self._losses(name)

    def _losses(self, name: str) -> Losses:
        return Losses(self._ce[name] + 2 * WIGGLE, self._kl.get(name, 1.0) + 0 * WIGGLE)


def found(tools: Any, kl: dict[str, float] | None = None, **ce: float) -> Any:
    passes: Any = FakePasses({"zero": 12.0, "mean": 7.0, **ce}, kl or {})
    batch = tools.batch_of(torch.zeros(4, 3), context=CONTEXT)._replace(passes=passes)
    return tools.Values(tools.run_metric(ModelLossConfig(), [batch]).rows())


def test_losses_by_hand(tools):
    rows = found(tools, clean=2.0, spliced=2.5)
    expected = {
        ("loss_recovered", "zero_ablation_kept"): 0.95,
        ("loss_recovered", "mean_ablation_kept"): 0.90,
        ("delta_lm_loss", "splice_kept"): 0.5,
        ("relative_delta_lm_loss", "splice_kept"): 0.25,
        ("ce_clean", "mean_of_tokens"): 2.0,
        ("ce_spliced", "splice_kept"): 2.5,
        ("ce_ablated", "zero_ablation_kept"): 12.0,
        ("ce_ablated", "mean_ablation_kept"): 7.0,
    }
    assert {key: rows[key].value for key in expected} == pytest.approx(expected)


def test_the_divergence_score_by_hand(tools):
    rows = found(tools, {"spliced": 0.143841, "zero": 0.510826}, clean=2.0, spliced=2.5)
    assert rows["kl_score", "zero_ablation_kept"].value == pytest.approx(0.718415, abs=1e-6)


def test_a_standard_error_is_that_of_paired_differences(tools):
    row = found(tools, clean=2.0, spliced=2.5)["delta_lm_loss", "splice_kept"]
    per_context = 0.5 + WIGGLE.reshape(2, 2).mean(1)
    assert row.stderr == pytest.approx(per_context.std().item() / 2**0.5)
    assert (row.n, row.unit) == (2, "contexts")


@pytest.mark.parametrize("zero", [2.0009, 1.5])
def test_an_ablation_that_costs_nothing_has_a_reason_instead_of_a_score(tools, zero):
    rows = found(tools, {"zero": 0.0}, clean=2.0, spliced=2.5, zero=zero)
    for name in ("loss_recovered", "kl_score"):
        row = rows[name, "zero_ablation_kept"]
        assert (row.value, row.stderr) == (None, None)
        assert "nats, less than the 0.001 needed" in (row.reason or "")
    assert rows["loss_recovered", "mean_ablation_kept"].value == pytest.approx(0.9)
    assert rows["delta_lm_loss", "splice_kept"].value == pytest.approx(0.5)


def test_a_loss_that_is_not_a_number_has_reasons_and_leaves_the_rest(tools):
    rows = found(tools, clean=2.0, spliced=2.5, zero=float("nan"))
    assert rows["loss_recovered", "zero_ablation_kept"].value is None
    assert "nan" in (rows["ce_ablated", "zero_ablation_kept"].reason or "")
    assert rows["loss_recovered", "mean_ablation_kept"].value == pytest.approx(0.9)
    assert rows["delta_lm_loss", "splice_kept"].stderr is not None


def test_a_model_without_a_loss_is_refused_before_the_first_batch(tools):
    context = EvalContext(
        "resid_post.0",
        tools.random_coder(),
        torch.zeros(8),
        1,
        no_language_model="the model has no head",
    )
    with pytest.raises(NotApplicable, match="model_loss does not apply: the model has no head"):
        ModelLossConfig().start(context)


def test_absent_rows_are_those_the_settings_ask_for():
    rows = ModelLossConfig(splice="all", ablations=("mean",)).absent("no head")
    assert {r.definition for r in rows} == {"mean_of_tokens", "splice_all", "mean_ablation_all"}


def test_divergence_and_entropy_of_two_coins():
    coin = torch.tensor([[[0.5, 0.5], [0.5, 0.5]]]).log()
    tokens, counted = torch.tensor([[0, 1]]), torch.tensor([[True, False]])
    clean = CleanPass(coin, tokens, counted)
    assert clean.ce.tolist() == pytest.approx([0.693147], abs=1e-6)
    for other, ce, kl in (
        ([0.75, 0.25], 1.386294, 0.143841),
        ([0.9, 0.1], 2.302585, 0.510826),
    ):
        found = clean.compare(torch.tensor([[other, other]]).log())
        assert found.ce.tolist() == pytest.approx([ce], abs=1e-6)
        assert found.kl.tolist() == pytest.approx([kl], abs=1e-6)


def random_logits(*shape: int, seed: int) -> torch.Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_positions_in_chunks_give_what_they_give_at_once(monkeypatch):
    logits, other = (random_logits(3, 5, 11, seed=s) for s in (0, 1))
    tokens = torch.randint(0, 11, (3, 5), generator=torch.Generator().manual_seed(2))
    counted = torch.ones(3, 5, dtype=torch.bool)
    counted[:, -1] = False
    whole = CleanPass(logits, tokens, counted).compare(other)
    log_p, log_q = logits.double().log_softmax(-1), other.double().log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)[:, :-1].flatten()
    ce = -log_q[:, :-1].gather(-1, tokens[:, 1:, None]).flatten()
    torch.testing.assert_close(whole.kl, kl, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole.ce, ce, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(_passes, "CHUNK_ELEMENTS", 25)  # two positions at a time
    parts = CleanPass(logits, tokens, counted).compare(other)
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)


def test_probabilities_that_underflow_leave_the_divergence_finite():
    certain = torch.tensor([[[0.0, -300.0, -300.0], [0.0, 0.0, 0.0]]])
    tokens, counted = torch.tensor([[0, 1]]), torch.tensor([[True, False]])
    found = CleanPass(certain, tokens, counted).compare(certain.flip(-1))
    assert found.kl.tolist() == pytest.approx([300.0])
    assert found.ce.tolist() == pytest.approx([300.0])


def test_tokens_the_clean_model_excludes_add_nothing_to_the_divergence():
    clean = torch.tensor([[[0.0, 0.0, -torch.inf], [0.0, 0.0, 0.0]]])
    other = torch.tensor([[[1.0, 1.0, -torch.inf], [0.0, 0.0, 0.0]]])
    tokens, counted = torch.tensor([[0, 1]]), torch.tensor([[True, False]])
    assert CleanPass(clean, tokens, counted).compare(other).kl.tolist() == [0.0]


def test_a_position_counts_when_it_is_text_and_the_next_token_can_be_foreseen(tools):
    pad, bos, eos, word = tools.pad, tools.bos, tools.eos, tools.first_word
    tokens = torch.tensor([[bos, word, word, eos, bos, word], [bos, word, bos, word, pad, pad]])
    mask, keep = tokens != pad, tokens >= word
    counted = counted_positions(tokens, mask, keep, {bos, pad})
    assert counted.tolist() == [
        [False, True, True, False, False, False],  # the end of a text is foreseen, BOS is not
        [False, False, False, False, False, False],
    ]
    # where PAD is EOS, the mask tells them apart
    assert counted_positions(tokens, mask, keep, {bos}).tolist() == counted.tolist()
