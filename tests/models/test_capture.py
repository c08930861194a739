"""Reading: one forward, no more of it than is needed, nothing left behind."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sae_lib.errors import BadInput, NotApplicable
from sae_lib.models.families import BY_NAME
from sae_lib.models.language_model import LanguageModel
from tests.models.hooks import count_hooks


@pytest.fixture
def calls(request):
    """Counts the calls of every block of the model it is given."""
    handles = []

    def watch(lm) -> Counter:
        counter: Counter = Counter()
        blocks = lm.model.base_model.get_submodule(BY_NAME[lm.info.family].blocks)
        for layer, block in enumerate(blocks):
            handles.append(
                block.register_forward_pre_hook(lambda *_, layer=layer: counter.update([layer]))
            )
        return counter

    yield watch
    for handle in handles:
        handle.remove()


def test_one_capture_runs_each_block_once_and_none_after_the_last_site(lm, tokens, calls):
    counter = calls(lm)
    lm.capture(tokens, ["mlp_out.1", "resid_pre.0", "attn_out.0", "resid_post.0"])
    assert counter == {0: 1, 1: 1}


def test_reading_before_a_block_does_not_run_it(layout, tokens):
    ran = []
    handle = layout.model.base_model.get_submodule(
        f"{BY_NAME[layout.info.family].blocks}.1"
    ).register_forward_hook(lambda *_: ran.append(1))
    layout.capture(tokens, ["resid_pre.1"])
    handle.remove()
    assert not ran


def test_the_head_is_not_run_for_the_last_stream(tiny, tokens):
    lm = tiny("llama")
    ran = []
    handle = lm.model.lm_head.register_forward_hook(lambda *_: ran.append(1))
    lm.capture(tokens, ["resid_post.2"])
    handle.remove()
    assert not ran


def test_nothing_that_runs_later_changes_what_was_captured(lm, tokens):
    together = lm.capture(tokens, lm.sites())
    for site in lm.sites():
        assert torch.equal(together[site], lm.capture(tokens, [site])[site]), site


def test_captures_and_logits_of_one_forward_are_those_of_two(causal, tokens, calls):
    alone, logits = causal.capture(tokens, causal.sites()), causal.logits(tokens)
    counter = calls(causal)
    here, same_logits = causal.capture_and_logits(tokens, causal.sites())
    assert counter == {0: 1, 1: 1, 2: 1}
    assert torch.equal(logits, same_logits)
    assert all(torch.equal(here[site], alone[site]) for site in alone)


def test_logits_are_those_of_transformers(causal, tokens):
    assert torch.equal(causal.logits(tokens), causal.model(tokens).logits)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_but_its_own_rows(lm, tokens, side):
    pad = torch.zeros(2, 3, dtype=torch.long)
    real = torch.ones_like(tokens)
    parts = [pad, tokens] if side == "left" else [tokens, pad]
    masks = [pad, real] if side == "left" else [real, pad]
    here = slice(3, None) if side == "left" else slice(0, 7)
    padded = lm.capture(torch.cat(parts, 1), lm.sites(), mask=torch.cat(masks, 1).bool())
    alone = lm.capture(tokens, lm.sites())
    for site, x in alone.items():
        torch.testing.assert_close(padded[site][:, here], x, rtol=1e-4, atol=1e-5)
        assert padded[site].isfinite().all()


def test_a_mask_without_padding_is_no_mask(layout, tokens):
    plain = layout.capture(tokens, ["resid_post.2"])["resid_post.2"]
    masked = layout.capture(tokens, ["resid_post.2"], mask=torch.ones_like(tokens))["resid_post.2"]
    assert torch.equal(plain, masked)


def test_hooks_are_gone_after_capture_even_when_it_fails(layout, tokens):
    before = count_hooks(layout)
    layout.capture(tokens, layout.sites())
    with pytest.raises(BadInput):
        layout.capture(tokens, ["resid_post.0", "resid_post.9"])
    assert count_hooks(layout) == before


def test_any_module_can_be_a_site(tiny, tokens):
    lm = tiny("llama")
    here = lm.capture(tokens, ["module:model.layers.1", "resid_post.1", "module:lm_head"])
    assert torch.equal(here["module:model.layers.1"], here["resid_post.1"])
    assert torch.equal(here["module:lm_head"], lm.logits(tokens))
    assert lm.width("module:model.layers.1.mlp.up_proj") == 24


@pytest.mark.parametrize(
    ("site", "says"),
    [
        ("module:model.layers.1.mpl", "no such module. Did you mean 'model.layers.1.mlp'"),
        ("module:model.rotary_emb", r"\(batch, seq, d\)"),
        ("resid_post.9", "resid_post.9 but the model has 3 layers: 0 to 2"),
        ("module:model.layers.0.mlp.act_fn.nothing", "no such module"),
    ],
)
def test_a_site_that_is_not_there_is_named(tiny, tokens, site, says):
    with pytest.raises(BadInput, match=says):
        tiny("llama").capture(tokens, [site])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (torch.tensor([[1, 37]]), "value 37: Token ids go from 0 to 36"),
        (torch.tensor([[-1, 3]]), "value -1: Token ids"),
        (torch.ones(1, 25, dtype=torch.long), "Sequences of 25 tokens are too long"),
        (torch.ones(1, 0, dtype=torch.long), r"not \(1, 0\)"),
    ],
)
def test_tokens_that_the_model_cannot_take_are_refused(tiny, given, says):
    for name in ("llama", "gpt2", "bert"):
        with pytest.raises(BadInput, match=says):
            tiny(name).capture(given, ["resid_post.0"])


def test_the_longest_sequence_is_taken(lm):
    tokens = torch.full((1, lm.info.max_context), 5)
    assert lm.capture(tokens, ["resid_post.2"])["resid_post.2"].isfinite().all()


def test_encoders_have_no_logits_and_say_why(tiny, tokens):
    lm = tiny("bert")
    with pytest.raises(NotApplicable, match="is an encoder \\(bert\\)"):
        lm.logits(tokens)
    for ask in (lm.unembedding, lm.final_norm_gain, lambda: lm.final_norm(torch.zeros(16))):
        with pytest.raises(NotApplicable, match="encoder"):
            ask()


def test_captured_tensors_can_enter_a_loss(tiny, tokens):
    x = tiny("llama").capture(tokens, ["resid_post.1"])["resid_post.1"]
    assert not x.requires_grad
    W = torch.ones(16, requires_grad=True)
    (x @ W).square().sum().backward()
    assert W.grad is not None


def test_no_weight_asks_for_a_gradient_and_dropout_is_off(lm):
    assert not lm.model.training
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())


def test_no_sites_take_no_forward(tiny, tokens, calls):
    lm = tiny("llama")
    counter = calls(lm)
    assert lm.capture(tokens, []) == {}
    assert not counter


def test_layers_after_the_last_site_are_not_run(tiny):
    small = tiny("llama")
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=12,
        num_attention_heads=4,
        vocab_size=4096,
    )
    model = LlamaForCausalLM(config).eval()
    info = replace(small.info, num_layers=12, d_model=64, vocab_size=4096, max_context=64)
    lm = LanguageModel(model, small.tokenizer, info, small.device)
    tokens = torch.zeros(4, 64, dtype=torch.long)
    ran: list[int] = []
    for number, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    lm.capture(tokens, ["resid_post.1"])
    assert max(ran) <= 2  # the layer behind the site may be entered, to read what it is given
    ran.clear()
    lm.capture_and_logits(tokens, ["resid_post.1"])
    assert ran == list(range(12))
