import numpy as np
import pytest
import torch

from sae_lib.apply.reading import encode_texts
from sae_lib.apply.steered_text import (
    NeutralText,
    Prompts,
    lexicon_ids,
    positive_rate,
)
from sae_lib.errors import BadInput

SITE = "resid_post.0"
LEXICON = torch.tensor([5, 6, 7, 8])


def make_prompts(model, positions="all_but_special", **changes) -> Prompts:
    dials = {
        "max_new_tokens": 6,
        "num_samples": 3,
        "temperature": 1.0,
        "seed": 0,
        "positions": positions,
        **changes,
    }
    return Prompts(model, SITE, ["w01 w02", "w03", "w04 w05 w06", "w07"], LEXICON, **dials)


@pytest.fixture(scope="module")
def prompts(model) -> Prompts:
    return make_prompts(model)


@pytest.fixture(scope="module")
def direction() -> torch.Tensor:
    v = torch.randn(8, generator=torch.Generator().manual_seed(0))
    return v / v.norm()


def test_steering_by_nothing_is_the_unsteered_text(prompts, direction):
    plain, nothing = prompts.generate(None, 0.0), prompts.generate(direction, 0.0)
    assert torch.equal(plain.new, nothing.new)
    for mine, theirs in zip(nothing.cells, plain.cells, strict=True):
        assert np.array_equal(mine, theirs)
    assert np.abs(prompts.lexicon_gain(direction, 0.0)).max() < 1e-6


def test_the_same_seed_gives_the_same_text_and_steering_changes_it(prompts, direction):
    one, same = prompts.generate(direction, 4.0), prompts.generate(direction, 4.0)
    assert torch.equal(one.new, same.new)
    assert not torch.equal(one.new, prompts.generate(None, 0.0).new)


def test_samples_of_a_prompt_differ(prompts):
    new = prompts.generate(None, 0.0).new.view(3, 4, -1)
    assert not torch.equal(new[0], new[1])


def test_cells_are_counted_per_prompt_and_sample(prompts, model):
    found = prompts.generate(None, 0.0)
    for sample in range(3):
        for prompt in range(4):
            row = found.new[sample * 4 + prompt].tolist()
            text = row[: row.index(2)] if 2 in row else row
            text = [t for t in text if t not in (0, 1, 2)]
            assert found.cells.tokens[prompt, sample] == len(text)
            assert found.cells.hits[prompt, sample] == sum(t in (5, 6, 7, 8) for t in text)


def test_the_nll_is_that_of_the_unsteered_model_read_without_padding(prompts, model, direction):
    found = prompts.generate(direction, 3.0)
    for prompt in range(4):
        ids = prompts.batch.tokens[prompt][prompts.batch.mask[prompt]]
        logp = model.logits(torch.cat([ids, found.new[prompt]])[None]).log_softmax(-1)[0]
        expected = 0.0
        for i, token in enumerate(found.new[prompt].tolist()):
            if found.is_text[prompt, i]:
                expected -= float(logp[len(ids) - 1 + i, token])
        assert found.cells.nll[prompt, 0] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_logits_in_pieces_give_the_same_nll(model, prompts, monkeypatch):
    whole = prompts.generate(None, 0.0).cells.nll
    monkeypatch.setattr("sae_lib.apply.steered_text._CHUNK_LOGITS", 1)
    assert prompts.generate(None, 0.0).cells.nll == pytest.approx(whole, rel=1e-5)


def test_the_gain_is_the_change_of_the_next_tokens_log_probability(prompts, model, direction):
    gain = prompts.lexicon_gain(direction, 2.0)
    for prompt in range(4):
        ids = prompts.batch.tokens[prompt][prompts.batch.mask[prompt]][None]
        plain = model.logits(ids)[0, -1].softmax(-1)[LEXICON].sum()

        def edit(x):
            return x + 2.0 * direction * (ids != 1)[..., None]  # noqa: B023  (used at once)

        with model.intervene({SITE: edit}):
            steered = model.logits(ids)[0, -1].softmax(-1)[LEXICON].sum()
        assert gain[prompt] == pytest.approx(float((steered / plain).log()), abs=1e-4)


@pytest.mark.parametrize(("positions", "moves"), [("prompt_only", True), ("generated_only", False)])
def test_the_first_token_moves_only_where_the_prompt_is_edited(model, direction, positions, moves):
    some = make_prompts(model, positions)
    assert bool(np.abs(some.lexicon_gain(direction, 3.0)).max() > 1e-3) is moves
    assert not torch.equal(some.generate(direction, 6.0).new, some.generate(None, 0.0).new)


def test_shuffling_keeps_the_tokens_and_costs_likelihood(prompts):
    found = prompts.generate(None, 0.0)
    shuffled = prompts.shuffled_nll(found)
    assert shuffled.shape == found.cells.nll.shape
    assert np.array_equal(shuffled, prompts.shuffled_nll(found))
    assert shuffled.sum() != pytest.approx(found.cells.nll.sum())
    one = found.cells.tokens <= 1  # one token cannot be shuffled
    assert shuffled[one] == pytest.approx(found.cells.nll[one], rel=1e-4)


def test_side_effects_are_those_of_single_texts(model, direction):
    texts = ["w01 w02 w03 w04", "w05 w06"]
    found = NeutralText(model, SITE, encode_texts(model, texts, max_tokens=9)).side_effect(
        direction, 2.0
    )
    assert found.tokens.tolist() == [3, 1]
    for i, text in enumerate(texts):
        ids = torch.tensor([[1, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]])
        before = model.logits(ids).double().log_softmax(-1)[0, 1:-1]
        with model.intervene(
            {SITE: lambda x: x + 2.0 * direction * (torch.arange(x.shape[1]) > 0)[:, None]}
        ):
            after = model.logits(ids).double().log_softmax(-1)[0, 1:-1]
        kl = (before.exp() * (before - after)).sum()
        target = ids[0, 2:, None]
        rise = (before.gather(1, target) - after.gather(1, target)).sum()
        assert found.kl[i] == pytest.approx(float(kl), rel=1e-4)
        assert found.ce_increase[i] == pytest.approx(float(rise), rel=1e-3, abs=1e-5)


def test_side_effects_in_pieces_are_the_same_and_none_without_strength(
    model, direction, monkeypatch
):
    batch = encode_texts(model, ["w01 w02 w03", "w05 w06", "w07 w08"], max_tokens=9)
    whole = NeutralText(model, SITE, batch).side_effect(direction, 2.0)
    assert np.abs(NeutralText(model, SITE, batch).side_effect(direction, 0.0).kl).max() < 1e-6
    monkeypatch.setattr("sae_lib.apply.steered_text._CHUNK_LOGITS", 1)
    pieces = NeutralText(model, SITE, batch).side_effect(direction, 2.0)
    assert pieces.kl == pytest.approx(whole.kl, rel=1e-4)


def test_words_that_are_no_single_token_are_no_evidence(model):
    assert lexicon_ids(model, ["w01", "w02 w03", "nonsense"]).tolist() == [5]
    with pytest.raises(BadInput, match="no word of the lexicon is a single token"):
        lexicon_ids(model, ["nonsense", "w02 w03"])


def test_the_rate_of_genuine_texts_is_counted_where_a_continuation_would_be(model):
    batch = encode_texts(model, ["w09 w09 w01 w02 w09 w03", "w09 w09 w09"], max_tokens=9)
    assert positive_rate(batch, LEXICON, skip=3, length=3) == pytest.approx(2 / 4)
    assert positive_rate(batch, LEXICON, skip=50, length=3) == pytest.approx(3 / 9)
