"""What stands at each site, for every family, by the sums that define it."""

import torch

from sae_lib.models.families import BY_MODEL_TYPE, FAMILIES
from sae_lib.models.language_model import LanguageModel

CLOSE = {"rtol": 0, "atol": 2e-6}

NORM_AFTER_ATTENTION = {
    "bert": "encoder.layer.{}.attention.output.LayerNorm",
    "roberta": "encoder.layer.{}.attention.output.LayerNorm",
    "distilbert": "transformer.layer.{}.sa_layer_norm",
    "opt": "decoder.layers.{}.self_attn_layer_norm",
}
NORM_AFTER_MLP = {
    "bert": "encoder.layer.{}.output.LayerNorm",
    "roberta": "encoder.layer.{}.output.LayerNorm",
    "distilbert": "transformer.layer.{}.output_layer_norm",
    "opt": "decoder.layers.{}.final_layer_norm",
}


def norm(lm: LanguageModel, names: dict[str, str], layer: int) -> torch.nn.Module:
    return lm.model.base_model.get_submodule(names[lm.info.model_type].format(layer))


def test_every_site_of_every_family_has_its_width(lm, tokens):
    here = lm.capture(tokens, lm.sites())
    assert len(here) == lm.num_layers * (5 if lm.info.wiring == "parallel" else 6)
    assert {site: x.shape for site, x in here.items()} == {
        site: (2, 7, lm.width(site)) for site in lm.sites()
    }
    assert lm.width("mlp_act.0") == 24
    assert lm.width("resid_mid.0" if "resid_mid.0" in here else "attn_out.0") == 16


def test_the_stream_before_each_block_is_the_hidden_state_of_transformers(lm, tokens):
    here = lm.capture(tokens, lm.sites())
    truth = lm.model(tokens, output_hidden_states=True).hidden_states
    for layer in range(lm.num_layers):
        assert torch.equal(here[f"resid_pre.{layer}"], truth[layer])
        if layer:
            assert torch.equal(here[f"resid_pre.{layer}"], here[f"resid_post.{layer - 1}"])


def test_the_last_stream_is_what_the_final_norm_reads(lm, tokens):
    last = lm.capture(tokens, ["resid_post.2"])["resid_post.2"]
    truth = lm.model.base_model(tokens).last_hidden_state
    if not lm.has_lm_head:
        assert torch.equal(last, truth)
    elif truth.shape == last.shape:
        assert torch.equal(lm.final_norm(last), truth)
    else:
        project = lm.model.base_model.decoder.project_out
        assert torch.equal(project(lm.final_norm(last)), truth)


def test_attention_and_mlp_add_up_to_the_block(lm, tokens):
    here = lm.capture(tokens, lm.sites())
    for layer in range(lm.num_layers):
        pre, attn, mlp, post = (
            here[f"{kind}.{layer}"] for kind in ("resid_pre", "attn_out", "mlp_out", "resid_post")
        )
        if lm.info.wiring == "parallel":
            torch.testing.assert_close(post, pre + attn + mlp, **CLOSE)
            continue
        mid = here[f"resid_mid.{layer}"]
        if lm.info.wiring == "sequential":
            torch.testing.assert_close(mid, pre + attn, **CLOSE)
            torch.testing.assert_close(post, mid + mlp, **CLOSE)
        else:
            after_attention = norm(lm, NORM_AFTER_ATTENTION, layer)
            torch.testing.assert_close(mid, after_attention(pre + attn), **CLOSE)
            torch.testing.assert_close(post, norm(lm, NORM_AFTER_MLP, layer)(mid + mlp), **CLOSE)


def test_after_mlp_act_there_is_only_a_matrix(lm, tokens):
    """What is added is affine in it; in Gemma 2 and 3 that holds before the norm that follows."""
    out = "module:model.layers.1.mlp" if lm.info.family == "gemma2" else "mlp_out.1"
    results = []
    for scale in (0.0, 1.0, 3.0):
        with lm.intervene({"mlp_act.1": lambda x, scale=scale: x * scale}):
            results.append(lm.capture(tokens, [out])[out])
    nothing, once, thrice = results
    assert (once - nothing).abs().max() > 1e-3
    torch.testing.assert_close(thrice - nothing, 3 * (once - nothing), rtol=1e-4, atol=1e-5)


def test_gemma_adds_what_comes_after_the_norm(tiny, tokens):
    for name in ("gemma2", "gemma3"):
        lm = tiny(name)
        raw, added = "module:model.layers.0.self_attn", "attn_out.0"
        here = lm.capture(tokens, [raw, added])
        after = lm.model.model.layers[0].post_attention_layernorm
        assert torch.equal(after(here[raw]), here[added])
        assert not torch.allclose(here[raw], here[added], atol=1e-2)


def test_no_model_type_belongs_to_two_families():
    assert len(BY_MODEL_TYPE) == sum(len(family.model_types) for family in FAMILIES)
