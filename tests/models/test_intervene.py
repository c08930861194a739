"""Changing: what an edit replaces, and that nothing else changes."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sae_lib.errors import BadInput
from sae_lib.models.language_model import LanguageModel
from tests.models.hooks import count_hooks


@pytest.fixture
def v():
    return torch.randn(16, generator=torch.Generator().manual_seed(2))


def result(lm, tokens):
    """Logits, or the last stream of a model that has none."""
    if lm.has_lm_head:
        return lm.logits(tokens)
    return lm.capture(tokens, ["resid_post.2"])["resid_post.2"]


def test_the_identity_changes_no_bit(lm, tokens):
    clean = result(lm, tokens)
    for site in lm.sites():
        with lm.intervene({site: lambda x: x}):
            assert torch.equal(result(lm, tokens), clean), site
    with lm.intervene(dict.fromkeys(lm.sites(), lambda x: x + 0)):
        assert torch.equal(result(lm, tokens), clean)


def test_an_edit_at_any_site_reaches_the_result(lm, tokens):
    clean = result(lm, tokens)
    for site in lm.sites():
        with lm.intervene({site: lambda x: x + torch.linspace(-1, 1, x.shape[-1])}):
            assert not torch.allclose(result(lm, tokens), clean, atol=1e-3), site
    assert torch.equal(result(lm, tokens), clean)


def test_what_is_captured_at_an_edited_site_is_the_replacement(lm, tokens):
    for site in lm.sites():
        new = torch.randn(2, 7, lm.width(site), generator=torch.Generator().manual_seed(3))
        with lm.intervene({site: lambda x, new=new: new}):
            assert torch.equal(lm.capture(tokens, [site])[site], new), site


def test_a_vector_added_to_the_last_stream_passes_norm_and_head_only(causal, tokens, v):
    last = causal.capture(tokens, ["resid_post.2"])["resid_post.2"]
    with causal.intervene({"resid_post.2": lambda x: x + v}):
        steered = causal.logits(tokens)
    expected = causal.final_norm(last + v) @ causal.unembedding().T
    bias = getattr(causal.model.get_output_embeddings(), "bias", None)
    if bias is not None:
        expected = expected + bias
    cap = getattr(causal.model.config, "final_logit_softcapping", None)
    if cap:
        expected = cap * torch.tanh(expected / cap)
    torch.testing.assert_close(steered, expected, rtol=1e-5, atol=1e-5)


def test_the_gain_is_what_the_final_norm_multiplies_with(causal):
    if causal.info.wiring == "post_norm":
        assert torch.equal(causal.final_norm_gain(), torch.ones(16))
        return
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(4))
    norm = causal.model.base_model.get_submodule(
        {
            "gpt_neox": "final_layer_norm",
            "phi": "final_layernorm",
            "opt": "decoder.final_layer_norm",
        }.get(causal.info.family, "ln_f" if causal.info.family.startswith("gpt") else "norm")
    )
    bias = getattr(norm, "bias", None)
    centred = x if bias is None else x - x.mean(-1, keepdim=True)
    unit = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    expected = unit * causal.final_norm_gain() + (0 if bias is None else bias)
    torch.testing.assert_close(causal.final_norm(x), expected, rtol=1e-4, atol=1e-4)


def test_an_edit_between_attention_and_mlp_moves_the_residual_too(lm, tokens, v):
    if lm.info.wiring == "parallel":
        pytest.skip("parallel blocks have nothing between attention and MLP")
    sites = ["resid_mid.1", "mlp_out.1", "resid_post.1"]
    clean = lm.capture(tokens, sites)
    with lm.intervene({"resid_mid.1": lambda x: x + v}):
        here = lm.capture(tokens, sites)
    assert torch.equal(here["resid_mid.1"], clean["resid_mid.1"] + v)
    assert not torch.allclose(here["mlp_out.1"], clean["mlp_out.1"], atol=1e-3)
    if lm.info.wiring == "sequential":
        torch.testing.assert_close(
            here["resid_post.1"], clean["resid_mid.1"] + v + here["mlp_out.1"], rtol=0, atol=2e-6
        )


def test_an_edit_before_a_block_moves_the_residual_too(lm, tokens, v):
    if lm.info.wiring == "post_norm":
        pytest.skip("the sum is hidden behind a norm")
    sites = ["attn_out.1", "mlp_out.1", "resid_post.1"]
    pre = lm.capture(tokens, ["resid_pre.1"])["resid_pre.1"]
    with lm.intervene({"resid_pre.1": lambda x: x + v}):
        here = lm.capture(tokens, sites)
    torch.testing.assert_close(
        here["resid_post.1"],
        pre + v + here["attn_out.1"] + here["mlp_out.1"],
        rtol=0,
        atol=4e-6,
    )


def test_edits_of_both_sides_of_a_border_are_the_same(layout, tokens, v):
    with layout.intervene({"resid_post.0": lambda x: x + v}):
        after = result(layout, tokens)
    with layout.intervene({"resid_pre.1": lambda x: x + v}):
        assert torch.equal(result(layout, tokens), after)


def test_an_edit_may_write_into_what_it_is_given(layout, tokens):
    def wipe(x):
        return x.zero_()

    for site, upstream in (("resid_pre.1", "resid_post.0"), ("mlp_out.1", "mlp_act.1")):
        clean = layout.capture(tokens, [upstream])[upstream]
        with layout.intervene({site: wipe}):
            here = layout.capture(tokens, [upstream, site])
        assert torch.equal(here[upstream], clean)
        assert not here[site].any()


def test_an_edit_may_keep_what_it_is_given(layout, tokens):
    for site in layout.sites():
        clean, kept = layout.capture(tokens, [site])[site], []

        def keep(x, kept=kept):
            kept.append(x)
            return x + 1

        with layout.intervene({site: keep}):
            result(layout, tokens)
        assert torch.equal(kept[0], clean), site


def test_the_inner_context_acts_on_what_the_outer_left(layout, tokens):
    for site in ("resid_pre.1", "resid_post.1", "mlp_act.1"):
        clean = layout.capture(tokens, [site])[site]
        with layout.intervene({site: lambda x: 2 * x}), layout.intervene({site: lambda x: x + 1}):
            assert torch.equal(layout.capture(tokens, [site])[site], 2 * clean + 1)
        assert torch.equal(layout.capture(tokens, [site])[site], clean)


def test_hooks_are_gone_after_any_end(layout, tokens):
    before, clean = count_hooks(layout), result(layout, tokens)

    def fail(x):
        raise ZeroDivisionError

    for site in layout.sites():
        with pytest.raises(ZeroDivisionError), layout.intervene({site: fail}):
            result(layout, tokens)
    with pytest.raises(KeyError), layout.intervene({"resid_post.1": lambda x: 0 * x}):
        raise KeyError
    with pytest.raises(BadInput), layout.intervene({"resid_post.1": fail, "resid_post.9": fail}):
        pass
    assert count_hooks(layout) == before
    assert torch.equal(result(layout, tokens), clean)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda x: x[:, :1], r"\(2, 7, 16\); it is \(2, 1, 16\)"),
        (lambda x: None, "it is NoneType"),
    ],
)
def test_a_replacement_of_another_shape_is_refused(tiny, tokens, edit, says):
    for name in ("llama", "opt"):
        lm = tiny(name)
        for site in ("resid_mid.1", "mlp_out.1", "resid_post.1"):
            with pytest.raises(BadInput, match=says), lm.intervene({site: edit}):
                lm.logits(tokens)


def test_a_replacement_is_cast_to_the_models_numbers(tiny, tokens):
    with tiny("llama").intervene({"resid_post.1": lambda x: x.double()}):
        assert tiny("llama").logits(tokens).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "step", "rtol"),
    [
        ("gpt2", 1e-5, 1e-6),
        ("opt", 1e-5, 1e-6),
        ("gpt_neox", 1e-5, 1e-6),
        # their norms compute in float32 whatever the model's numbers are
        ("llama", 1e-2, 1e-2),
        ("gemma2", 1e-2, 1e-2),
    ],
)
def test_gradients_reach_a_vector_added_at_any_site(tiny, tokens, name, step, rtol):
    """Against central differences in float64."""
    small = tiny(name)
    lm = LanguageModel(
        copy.deepcopy(small.model).double(), small.tokenizer, small.info, small.device
    )
    generator = torch.Generator().manual_seed(5)
    for kind in ("resid_pre", "resid_mid", "attn_out", "mlp_act", "resid_post"):
        site = f"{kind}.1"
        if site not in lm.sites():
            continue
        v = 0.1 * torch.randn(lm.width(site), generator=generator, dtype=torch.float64)

        def score(v, site=site):
            with lm.intervene({site: lambda x: x + v * x.tanh()}):
                return lm.logits(tokens, with_grad=True).log_softmax(-1)[..., 5].sum()

        leaf = v.clone().requires_grad_()
        score(leaf).backward()
        along = torch.randn(v.shape, generator=generator, dtype=torch.float64)
        slope = (score(v + step * along) - score(v - step * along)) / (2 * step)
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad @ along, slope, rtol=rtol, atol=1e-8)


def test_a_reserved_model_is_not_changed_under_the_thread_that_runs_it(lm, tokens):
    clean = result(lm, tokens)
    with (
        lm.reserved(),
        pytest.raises(BadInput, match="a thread of its own"),
        lm.intervene({"resid_post.0": lambda x: x + 1}),
    ):
        pass
    assert count_hooks(lm) == 0
    with lm.intervene({"resid_post.0": lambda x: x + 1}), lm.reserved():  # from before: holds
        assert not torch.equal(result(lm, tokens), clean)
    with lm.intervene({"resid_post.0": lambda x: x + 1}):  # and afterwards it is free again
        assert not torch.equal(result(lm, tokens), clean)


def test_forwards_of_two_threads_do_not_see_each_other(lm):
    """Captures of two inputs of one shape at one site, many times over in two threads."""
    inputs = [torch.full((2, 7), token) for token in (3, 5)]
    alone = [lm.capture(x, ["resid_post.1"])["resid_post.1"] for x in inputs]
    assert not torch.equal(alone[0], alone[1])

    def capture(i: int) -> torch.Tensor:
        return lm.capture(inputs[i % 2], ["resid_post.1"])["resid_post.1"]

    with ThreadPoolExecutor(2) as pool:
        for i, found in enumerate(pool.map(capture, range(60))):
            assert torch.equal(found, alone[i % 2]), i
    assert count_hooks(lm) == 0
