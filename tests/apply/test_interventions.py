import pytest
import torch

from sae_lib.apply.interventions import (
    add,
    add_latent,
    at_positions,
    norm_preserving,
    project_out,
    scale_latent,
    set_latent,
)
from sae_lib.errors import BadInput

SITE = "resid_post.0"


@pytest.fixture
def coder(coders):
    return coders["topk-s0"]


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def a_latent_that_fires(coder, x) -> int:
    return int((coder.encode(x) > 0).sum((0, 1)).argmax())


def test_setting_a_latent_is_decoding_the_changed_code_and_keeping_the_error(coder, x):
    latent = a_latent_that_fires(coder, x)
    z = coder.encode(x)
    error = x - coder.decode(z)
    z[..., latent] = 2.5
    torch.testing.assert_close(
        set_latent(x, coder, latent, 2.5), coder.decode(z) + error, atol=1e-5, rtol=0
    )


def test_scaling_a_latent_is_decoding_the_scaled_code_and_keeping_the_error(coder, x):
    latent = a_latent_that_fires(coder, x)
    z = coder.encode(x)
    error = x - coder.decode(z)
    z[..., latent] *= -0.5
    torch.testing.assert_close(
        scale_latent(x, coder, latent, -0.5), coder.decode(z) + error, atol=1e-5, rtol=0
    )


def test_edits_that_ask_for_no_change_change_nothing(coder, x):
    latent = a_latent_that_fires(coder, x)
    assert torch.equal(add(x, torch.ones(8), 0.0), x)
    assert torch.equal(scale_latent(x, coder, latent, 1.0), x)
    one = x[:1, :1]
    current = float(coder.encode(one)[0, 0, latent])
    torch.testing.assert_close(set_latent(one, coder, latent, current), one)


def test_adding_a_latent_is_in_units_of_its_largest_activation(coder, x):
    moved = add_latent(x, coder, 3, max_activation=4.0, strength=0.5)
    torch.testing.assert_close(moved - x, (2.0 * coder.W_dec[3]).expand_as(x))


def test_after_projecting_out_nothing_is_left_along_the_direction(x):
    v = 3 * torch.randn(8, generator=torch.Generator().manual_seed(1))
    left = project_out(x, v)
    assert (left @ (v / v.norm())).abs().max() < 1e-5
    across = torch.randn(8, generator=torch.Generator().manual_seed(2))
    across -= (across @ v) / (v @ v) * v
    torch.testing.assert_close(left @ across, x @ across)


def test_a_norm_preserving_edit_keeps_lengths_and_takes_the_edits_direction(x):
    v = torch.randn(8, generator=torch.Generator().manual_seed(1))
    kept = norm_preserving(lambda x: add(x, v, 2.0))(x)
    torch.testing.assert_close(kept.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(
        torch.nn.functional.cosine_similarity(kept, x + 2 * v, dim=-1), torch.ones(2, 5)
    )


@pytest.mark.parametrize("strength", [0.5, -3.0])
def test_the_logits_move_as_those_of_the_moved_activation(model, strength):
    tokens = torch.tensor([[1, 5, 6, 7]])
    v = torch.randn(8, generator=torch.Generator().manual_seed(1))
    everywhere = torch.ones(1, 4, dtype=torch.bool)
    edit = at_positions(lambda x: add(x, v, strength), "all", mask=everywhere, keep=everywhere)
    with model.intervene({SITE: edit}):
        after, logits = model.capture_and_logits(tokens, [SITE])
    plain, plain_logits = model.capture_and_logits(tokens, [SITE])
    torch.testing.assert_close(after[SITE], plain[SITE] + strength * v)
    assert (logits - plain_logits).abs().max() > 1e-2


def test_a_strength_of_zero_reproduces_the_logits_and_hooks_are_gone_after_an_error(model):
    tokens = torch.tensor([[1, 5, 6, 7]])
    everywhere = torch.ones(1, 4, dtype=torch.bool)
    plain = model.logits(tokens)

    def edit(by: float):
        return at_positions(
            lambda x: add(x, torch.ones(8), by), "all", mask=everywhere, keep=everywhere
        )

    with model.intervene({SITE: edit(0.0)}):
        assert (model.logits(tokens) - plain).abs().max() < 1e-5
    with pytest.raises(RuntimeError, match="stop"), model.intervene({SITE: edit(9.0)}):
        raise RuntimeError("stop")
    assert torch.equal(model.logits(tokens), plain)


@pytest.mark.parametrize(
    ("positions", "at_prompt", "at_step"),
    [
        ("all", [False, True, True, True], True),
        ("all_but_special", [False, False, True, True], True),
        ("prompt_only", [False, False, True, True], False),
        ("generated_only", [False, False, False, False], True),
        ("last", [False, False, False, True], False),
    ],
)
def test_an_edit_acts_at_its_positions_and_never_on_padding(positions, at_prompt, at_step):
    mask = torch.tensor([[False, True, True, True]])
    keep = torch.tensor([[False, False, True, True]])
    edit = at_positions(lambda x: x + 1, positions, mask=mask, keep=keep)
    assert edit(torch.zeros(1, 4, 8))[0, :, 0].bool().tolist() == at_prompt
    assert edit(torch.zeros(1, 1, 8)).bool().all().item() is at_step
    assert edit(torch.zeros(1, 1, 8)).bool().all().item() is at_step


def test_a_prompt_of_one_token_is_not_taken_for_a_step_of_generation():
    one = torch.ones(1, 1, dtype=torch.bool)
    edit = at_positions(lambda x: x + 1, "prompt_only", mask=one, keep=one)
    assert edit(torch.zeros(1, 1, 8)).all()
    assert not edit(torch.zeros(1, 1, 8)).any()


def test_an_edit_for_other_prompts_is_refused():
    one = torch.ones(1, 3, dtype=torch.bool)
    edit = at_positions(lambda x: x + 1, "all", mask=one, keep=one)
    with pytest.raises(BadInput, match=r"prompts of shape \(1, 3\)"):
        edit(torch.zeros(2, 3, 8))
    edit(torch.zeros(1, 3, 8))
    with pytest.raises(BadInput, match="has seen its prompts"):
        edit(torch.zeros(1, 3, 8))
