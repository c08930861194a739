"""Generation with a cache against the loop without one."""

import copy

import pytest
import torch
from torch import Tensor

from sae_lib.errors import BadInput, NotApplicable
from sae_lib.models._sampling import next_token
from sae_lib.models.language_model import LanguageModel

NEW = 8


@pytest.fixture
def endless(causal):
    """A model that never ends its text, so that every row is as long as asked."""
    return with_ends(causal, [])


def with_ends(lm: LanguageModel, ends: list[int]) -> LanguageModel:
    model, tokenizer = copy.deepcopy(lm.model), copy.deepcopy(lm.tokenizer)
    model.generation_config.eos_token_id = ends
    model.config.eos_token_id = None
    tokenizer.eos_token = None
    return LanguageModel(model, tokenizer, lm.info, lm.device)


def naive(lm: LanguageModel, row: Tensor, steps: int) -> list[int]:
    """Greedy, one row, the whole text again for each token."""
    text = row.unsqueeze(0)
    for _ in range(steps):
        text = torch.cat([text, lm.logits(text)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return text[0].tolist()


def test_the_cache_changes_nothing(endless, tokens):
    assert endless.generate(tokens, max_new_tokens=NEW, greedy=True).tolist() == [
        naive(endless, row, NEW) for row in tokens
    ]


@pytest.mark.parametrize("kind", ["resid_pre", "resid_mid", "mlp_act"])
def test_the_cache_changes_nothing_under_an_intervention(endless, tokens, kind):
    site = f"{kind}.1"
    if site not in endless.sites():
        pytest.skip("parallel blocks have nothing between attention and MLP")
    push = 10 * torch.randn(endless.width(site), generator=torch.Generator().manual_seed(6))
    clean = endless.generate(tokens, max_new_tokens=NEW, greedy=True)
    with endless.intervene({site: lambda x: x + push}):
        steered = endless.generate(tokens, max_new_tokens=NEW, greedy=True)
        assert steered.tolist() == [naive(endless, row, NEW) for row in tokens]
    assert not torch.equal(steered, clean)
    assert torch.equal(endless.generate(tokens, max_new_tokens=NEW, greedy=True), clean)


def test_an_edit_sees_the_prompt_once_and_then_token_by_token(tiny, tokens):
    lm, shapes = with_ends(tiny("llama"), []), []

    def look(x):
        shapes.append(tuple(x.shape))
        return x

    with lm.intervene({"resid_post.1": look}):
        lm.generate(tokens, max_new_tokens=3, greedy=True)
    assert shapes == [(2, 7, 16), (2, 1, 16), (2, 1, 16)]


def test_padding_on_the_left_does_not_change_the_continuation(endless, tokens):
    padded, mask = tokens.clone(), torch.ones_like(tokens)
    padded[1, :4], mask[1, :4] = 0, 0
    together = endless.generate(padded, mask=mask, max_new_tokens=NEW, greedy=True)
    assert together[0].tolist() == naive(endless, tokens[0], NEW)
    assert together[1, 4:].tolist() == naive(endless, tokens[1, 4:], NEW)


def test_prompts_padded_on_the_right_are_refused(tiny, tokens):
    mask = torch.ones_like(tokens)
    mask[1, -1] = 0
    with pytest.raises(BadInput, match="padded on the left"):
        tiny("llama").generate(tokens, mask=mask, max_new_tokens=1)


def test_one_seed_one_text(endless, tokens):
    state = torch.get_rng_state()
    first = endless.generate(tokens, max_new_tokens=NEW, seed=3)
    assert torch.equal(first, endless.generate(tokens, max_new_tokens=NEW, seed=3))
    assert not torch.equal(first, endless.generate(tokens, max_new_tokens=NEW, seed=4))
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    assert torch.equal(first[:, :7], tokens)


def test_a_row_does_not_depend_on_the_rows_after_it(tiny, tokens):
    lm = with_ends(tiny("llama"), [])
    many = torch.cat([tokens, tokens.flip(1)])
    together = lm.generate(many, max_new_tokens=NEW, seed=3, temperature=2.0)
    for rows in (1, 2, 3):
        alone = lm.generate(many[:rows], max_new_tokens=NEW, seed=3, temperature=2.0)
        assert torch.equal(alone, together[:rows])


def test_cold_sampling_is_greedy(tiny, tokens):
    lm = tiny("gpt2")
    cold = lm.generate(tokens, max_new_tokens=NEW, temperature=1e-4, seed=1)
    assert torch.equal(cold, lm.generate(tokens, max_new_tokens=NEW, greedy=True))
    narrow = lm.generate(tokens, max_new_tokens=NEW, top_p=1e-6, seed=1)
    assert torch.equal(narrow, cold)


def test_a_row_that_ended_is_padded_and_the_others_go_on(tiny, tokens):
    endless = with_ends(tiny("gemma2"), [])
    full = endless.generate(tokens, max_new_tokens=NEW, greedy=True)
    end = int(full[0, 9])
    lm = with_ends(endless, [end])
    stop = [7 + row.tolist().index(end) if end in row.tolist() else None for row in full[:, 7:]]
    assert stop[0] is not None
    assert stop[0] <= 9
    assert stop[1] != stop[0]
    ended = lm.generate(tokens, max_new_tokens=NEW, greedy=True)
    assert ended[0, : stop[0] + 1].tolist() == full[0, : stop[0] + 1].tolist()
    assert set(ended[0, stop[0] + 1 :].tolist()) == {0}
    assert ended[1, : stop[1]].tolist() == full[1, : stop[1]].tolist()


def test_generation_stops_when_every_row_has_ended(tiny, tokens):
    lm = with_ends(tiny("llama"), list(range(37)))
    assert lm.generate(tokens, max_new_tokens=NEW, greedy=True).shape == (2, 8)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"max_new_tokens": 0}, "key max_new_tokens, value 0"),
        ({"max_new_tokens": 18}, "Sequences of 25 tokens are too long"),
        ({"max_new_tokens": 1, "temperature": 0.0}, "greedy=True"),
        ({"max_new_tokens": 1, "top_p": 0.0}, "key top_p"),
        ({"max_new_tokens": 1, "top_p": 1.5}, "key top_p"),
    ],
)
def test_numbers_out_of_range_are_refused(tiny, tokens, given, says):
    with pytest.raises(BadInput, match=says):
        tiny("llama").generate(tokens, **given)


def test_the_longest_text_fits(causal, tokens):
    total = causal.generate(tokens, max_new_tokens=causal.info.max_context - 7, greedy=True)
    assert total.shape[1] <= causal.info.max_context


@pytest.mark.parametrize("greedy", [True, False])
def test_logits_that_are_no_numbers_do_not_become_tokens(tiny, tokens, greedy):
    lm = tiny("llama")
    with (
        lm.intervene({"resid_post.2": lambda x: x * float("inf")}),
        pytest.raises(BadInput, match="new token 0 are not numbers"),
    ):
        lm.generate(tokens, max_new_tokens=2, greedy=greedy)


def test_encoders_do_not_generate(tiny, tokens):
    with pytest.raises(NotApplicable, match="encoder"):
        tiny("bert").generate(tokens, max_new_tokens=1)


def shares_of(logits: Tensor, *, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """How often each token comes when the drawn numbers are spread evenly."""
    n = 20_000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    drawn = next_token(logits.expand(n, -1), u, temperature=temperature, top_p=top_p)
    return torch.bincount(drawn, minlength=logits.numel()) / n


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_the_softmax_says(temperature):
    logits = torch.tensor([0.0, 2.0, -1.0, 1.5, float("-inf")])
    expected = torch.softmax(logits / temperature, 0)
    torch.testing.assert_close(
        shares_of(logits, temperature=temperature), expected, rtol=0, atol=1.1e-4
    )


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    p = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
    for top_p, kept in ((0.39, [1]), (0.41, [1, 3]), (0.69, [1, 3]), (0.8, [1, 3, 4])):
        expected = torch.zeros(5)
        expected[kept] = p[kept] / p[kept].sum()
        torch.testing.assert_close(shares_of(p.log(), top_p=top_p), expected, rtol=0, atol=1.1e-4)


def test_the_largest_draw_is_still_a_possible_token():
    u = torch.tensor([1 - 2**-53, 0.0], dtype=torch.float64)
    logits = torch.tensor([float("-inf"), 0.0, 0.0, float("-inf")]).expand(2, -1)
    assert next_token(logits, u, temperature=1.0, top_p=1.0).tolist() == [2, 1]
    assert next_token(logits, u, temperature=1.0, top_p=0.9).tolist() == [2, 1]
